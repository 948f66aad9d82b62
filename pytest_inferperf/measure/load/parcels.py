"""What the requests of a load process say, in a form that goes to another machine."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.hands import Hand, Played
from pytest_inferperf.measure.load.processes import Bodies
from pytest_inferperf.measure.load.prompts import Drawing, SyntheticBodies

__all__ = ["DrawnParcel", "Parcel", "WrittenParcel", "pack"]


@dataclass(frozen=True, kw_only=True)
class DrawnParcel:
    """Prompts that are drawn where they are sent."""

    drawing: Drawing

    def open(self, endpoint: Endpoint) -> Bodies:
        """Return what the requests to an endpoint say. Raises `EngineError` for what nobody draws."""
        try:
            return Bodies(make_body=SyntheticBodies.of_drawing(endpoint, self.drawing))
        except (OverflowError, ValueError, SettingsError) as error:
            raise EngineError(f"prompts of a load that cannot be drawn: {error}.") from None


@dataclass(frozen=True, kw_only=True)
class WrittenParcel:
    """Requests that were written where the load was asked for."""

    bodies: tuple[bytes, ...]
    sizes: tuple[tuple[int, int], ...] | None
    """Tokens that each sends and must get."""

    def open(self, endpoint: Endpoint) -> Bodies:
        """Return them, and then more like them. Raises `EngineError` for what no request says."""
        try:
            if len(self.bodies) < 2 or (self.sizes is not None and len(self.sizes) != len(self.bodies)):
                raise ValueError(f"{len(self.bodies)} of them")
            for body in self.bodies:
                _units(json.loads(body))
        except (LookupError, TypeError, ValueError) as error:
            raise EngineError(f"requests of a load that are none: {error!r}.") from None
        written = Written(self.bodies, self.sizes)
        return Bodies(make_body=written, sizes_of=written.sizes if self.sizes is not None else None)


Parcel = DrawnParcel | WrittenParcel | Hand


def pack(bodies: Bodies, count: int) -> Parcel:
    """Return what a process says as a value that goes to another machine; at least `count` of its requests are sent.

    Of a file it is what was dealt to the process, no more.
    """
    if isinstance(bodies.make_body, Played):
        return bodies.make_body.hand
    assert bodies.make_spare is None
    if isinstance(bodies.make_body, SyntheticBodies):
        return DrawnParcel(drawing=bodies.make_body.drawing())
    numbers = range(max(2, count))
    sizes = tuple(bodies.sizes_of(index) for index in numbers) if bodies.sizes_of is not None else None
    return WrittenParcel(bodies=tuple(bodies.make_body(index) for index in numbers), sizes=sizes)


class Written:
    """Requests that were written elsewhere, and then ever more like them: their tokens, or words, in another order.

    What all prompts have in common stays where it is.
    """

    def __init__(self, bodies: Sequence[bytes], sizes: Sequence[tuple[int, int]] | None) -> None:
        """At least two bodies of the API, so that there is something to tell what they have in common by."""
        self._bodies, self._sizes = list(bodies), sizes
        self._shared: int | None = None

    def __call__(self, index: int) -> bytes:
        """Return the body of request `index`."""
        if index < len(self._bodies):
            return self._bodies[index]
        if self._shared is None:
            self._shared = _in_common([_units(json.loads(body)) for body in self._bodies])
        asked = json.loads(self._bodies[index % len(self._bodies)])
        units = _units(asked)
        own = units[self._shared :]
        # No seed: two processes that shuffle the same tokens must not send the same prompt.
        random.SystemRandom().shuffle(own)
        _put(asked, units[: self._shared] + own)
        return json.dumps(asked, separators=(",", ":")).encode()

    def sizes(self, index: int) -> tuple[int, int]:
        """Return the tokens that request `index` sends and must get."""
        assert self._sizes is not None
        return self._sizes[index % len(self._bodies)]


def _units(asked: dict[str, Any]) -> list[Any]:
    """Return the tokens of a prompt, or its words."""
    if "messages" in asked:
        return str(asked["messages"][-1]["content"]).split()
    prompt = asked["prompt"]
    return prompt.split() if isinstance(prompt, str) else list(prompt)


def _in_common(prompts: Sequence[list[Any]]) -> int:
    """Return with how many units all prompts begin alike: in any order, the first and the last differ earliest."""
    first, last = min(prompts), max(prompts)
    pairs = enumerate(zip(first, last, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))


def _put(asked: dict[str, Any], units: list[Any]) -> None:
    if "messages" in asked:
        asked["messages"][-1]["content"] = " ".join(units)
    elif isinstance(asked["prompt"], str):
        # Tokens of whole words begin with the space before them.
        asked["prompt"] = ("" if asked["prompt"][:1] != " " else " ") + " ".join(units)
    else:
        asked["prompt"] = units
