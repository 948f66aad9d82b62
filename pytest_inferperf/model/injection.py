"""Regressions that are put into a run on purpose, to prove that its gates would catch a real one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_inferperf.errors import SettingsError, choices

__all__ = ["CONTEXT_KEY", "KINDS", "Injection", "InjectionKind", "parse_injection", "parse_injections", "shown"]

CONTEXT_KEY = "inferperf_inject"
"""Where the context of a record names what was injected: such a record never becomes a baseline."""


@dataclass(frozen=True, kw_only=True)
class InjectionKind:
    """One row: what is made worse, and how a size of it is written."""

    name: str
    units: Mapping[str, float]
    """Unit to the largest size that makes sense; every size is above 0."""

    example: str
    effect: str


_ROWS = (
    InjectionKind(
        name="slowdown",
        units={"%": 99.0},
        example="slowdown:5%",
        effect="throughput is lower by it: every call and every token takes 1 / (1 - size) of its time",
    ),
    InjectionKind(
        name="latency",
        units={"%": 10_000.0, "ms": 600_000.0},
        example="latency:20ms",
        effect="every token comes later: by a share of its time since the request, gaps included, or by a constant, "
        "which moves TTFT and end-to-end latency and leaves the gaps",
    ),
    InjectionKind(
        name="accuracy",
        units={"pt": 100.0},
        example="accuracy:2pt",
        effect="the score falls by about so many points: a share of the prompts is answered wrong",
    ),
    InjectionKind(
        name="errors",
        units={"%": 100.0},
        example="errors:5%",
        effect="a share of the requests of a workload fails",
    ),
    InjectionKind(
        name="agreement",
        units={"%": 100.0},
        example="agreement:20%",
        effect="answers under load end otherwise than those at concurrency 1: their last part, of this share, is wrong",
    ),
    InjectionKind(
        name="memory",
        units={"%": 10_000.0},
        example="memory:20%",
        effect="the engine reports a peak memory that is higher by it",
    ),
    InjectionKind(
        name="noise",
        units={"%": 50.0},
        example="noise:3%",
        effect="every launch of the engine runs at a speed of its own: times are multiplied by a lognormal factor of "
        "this standard deviation, with mean 1",
    ),
)

KINDS: dict[str, InjectionKind] = {row.name: row for row in _ROWS}


@dataclass(frozen=True, kw_only=True)
class Injection:
    """One injected regression: `slowdown:5%` is kind `slowdown`, size 5, unit `%`."""

    kind: str
    size: float
    unit: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.size:g}{self.unit}"


def shown(injections: Iterable[Injection]) -> str:
    """Write injections as they are typed: `slowdown:5%, accuracy:2pt`; "" for none."""
    return ", ".join(map(str, injections))


def parse_injections(texts: Iterable[str]) -> tuple[Injection, ...]:
    """Read the values of `--inferperf-inject`. Raises `SettingsError` for a wrong one, or one kind and unit twice."""
    found: dict[tuple[str, str], Injection] = {}
    for text in texts:
        item = parse_injection(text)
        first = found.setdefault((item.kind, item.unit), item)
        if first is not item:
            raise SettingsError(f"--inferperf-inject: both {first} and {item} are given; keep one.")
    return tuple(found.values())


def parse_injection(text: str) -> Injection:
    """Read `KIND:SIZE`, such as `slowdown:5%`. Raises `SettingsError` for a kind, unit or size that does not exist."""

    def wrong(why: str) -> SettingsError:
        forms = ", ".join(f"{row.name}:SIZE{' or '.join(row.units)}" for row in _ROWS)
        return SettingsError(
            f"--inferperf-inject {text!r}: {why}\nWrite {forms}. Example: --inferperf-inject=slowdown:5%"
        )

    name, colon, size = text.partition(":")
    if not colon:
        raise wrong("it has no size.")
    kind = KINDS.get(name)
    if kind is None:
        raise wrong(f"unknown kind {name!r}. {choices(name, KINDS, what='Kinds')}")
    match = re.fullmatch(r"\s*([^\sa-zA-Z%]+)\s*(%|[a-zA-Z]*)\s*", size)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise wrong(f"{size!r} is not a number with a unit, as in {kind.example}.")
    most = kind.units.get(match[2])
    if most is None:
        given = f"the unit {match[2]!r} does not exist" if match[2] else "a unit is missing"
        raise wrong(f"{given}; {name} takes {' or '.join(kind.units)}, as in {kind.example}.")
    if not 0 < value <= most:
        raise wrong(f"{name} takes a size above 0 and at most {most:g}{match[2]}, as in {kind.example}.")
    return Injection(kind=name, size=value, unit=match[2])
