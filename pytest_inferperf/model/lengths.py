"""How long prompts and outputs are: one length, or a distribution of lengths."""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass

from pytest_inferperf.errors import SettingsError

__all__ = ["Lengths", "parse_lengths"]

_SPREAD = 3
"""Standard deviations from the mean beyond which a normal length is drawn again, so that there is a largest one."""

_FORMS = "Write a number of tokens, uniform(LEAST,MOST) or normal(MEAN,SD)"


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A number of tokens for each request. `parse_lengths` makes one."""

    kind: str
    """`fixed`, `uniform` or `normal`."""

    first: int
    """The length; or the least one; or the mean."""

    second: int = 0
    """The largest length of `uniform`, the standard deviation of `normal`."""

    def draw(self, generator: random.Random) -> int:
        """Return the length of the next request, at least 1. A fixed one draws nothing from the generator."""
        if self.kind == "fixed":
            return self.first
        if self.kind == "uniform":
            return generator.randint(self.first, self.second)
        while True:
            found = round(generator.gauss(self.first, self.second))
            if 1 <= found <= self.largest and found >= self.first - _SPREAD * self.second:
                return found

    @property
    def largest(self) -> int:
        """The largest length that can be drawn."""
        return {"fixed": self.first, "uniform": self.second, "normal": self.first + _SPREAD * self.second}[self.kind]

    @property
    def short(self) -> str:
        """What an id has: `1024`, `819-1024`, `1024sd100`."""
        return {
            "fixed": f"{self.first}",
            "uniform": f"{self.first}-{self.second}",
            "normal": f"{self.first}sd{self.second}",
        }[self.kind]

    @property
    def value(self) -> int | str:
        """What a mark and a file have: 1024, "uniform(819,1024)"."""
        return self.first if self.kind == "fixed" else f"{self.kind}({self.first},{self.second})"


@functools.cache
def parse_lengths(value: int | str) -> Lengths:
    """Read 1024, "uniform(819,1024)" or "normal(1024,100)". Raises `SettingsError` for anything else."""
    if isinstance(value, int):
        if value < 1:
            raise SettingsError(f"{value}: must be at least 1 token.")
        return Lengths(kind="fixed", first=value)
    match = re.fullmatch(r"\s*(uniform|normal)\s*\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)\s*", value)
    if match is None:
        raise SettingsError(f"{value!r} is no distribution of lengths. {_FORMS}.")
    kind, first, second = match[1], int(match[2]), int(match[3])
    if first < 1 or second < 1 or (kind == "uniform" and second < first):
        order = ", and the least is not above the most" if kind == "uniform" else ""
        raise SettingsError(f"{value!r}: both numbers are at least 1{order}. {_FORMS}.")
    return Lengths(kind=kind, first=first, second=second)
