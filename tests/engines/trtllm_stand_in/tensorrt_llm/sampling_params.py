"""Sampling parameters: keyword-only, strict, and spoiled by use."""

from __future__ import annotations

from typing import Any

from .table import SAMPLING


class SamplingParams:
    def __init__(self, **given: Any) -> None:
        for name in given:
            if name not in SAMPLING:
                raise TypeError(f"SamplingParams.__init__() got an unexpected keyword argument {name!r}")
        self.given = dict(given)
        self.used = False
        for name, default in SAMPLING.items():
            setattr(self, name, given.get(name, default))

    def setup(self) -> None:
        """A request fills in fields: what a second one would get is not what was asked."""
        if self.used:
            raise ValueError("these SamplingParams belong to another request")
        self.used = True
        self.end_id = 257
        # What is not said is decided by whichever sampler is in use.
        for name in ("max_tokens", "temperature", "seed", "ignore_eos"):
            if name not in self.given:
                raise ValueError(f"SamplingParams without {name}: its default decides the result")
