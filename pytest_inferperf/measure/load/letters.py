"""What a load process on another machine is told to send, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.hands import Hand
from pytest_inferperf.measure.load.parcels import Parcel
from pytest_inferperf.measure.load.plain import read, write
from pytest_inferperf.measure.load.plan import LoadPlan

__all__ = ["Letter", "read_letter", "write_letter"]


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What one process has to send. It goes to another machine: no API key is in it, which that machine has itself."""

    endpoint: Endpoint
    plan: LoadPlan
    """Of the whole load."""

    index: int
    processes: int
    """Of all hosts."""

    parcel: Parcel
    is_shown: bool


def write_letter(letter: Letter) -> bytes:
    """Turn a letter into bytes."""
    return write(letter)


def read_letter(data: bytes) -> Letter:
    """Inverse of `write_letter`. Raises `EngineError` for anything else."""
    try:
        found: Letter = read(Letter, data, "letter")
        if not 0 <= found.index < found.processes:
            raise ValueError(f"letter.index: {found.index} of {found.processes} processes")
        if isinstance(found.parcel, Hand):
            dealt, own = sum(map(len, found.parcel.conversations)), found.plan.part(found.index, found.processes)
            if dealt != own.num_requests:
                raise ValueError(f"letter.parcel: {dealt} requests where {own.num_requests} are its own")
    except (ValueError, SettingsError) as error:
        raise EngineError(
            f"what this host was given is no letter to a load process: {error}. Install the same pytest-inferperf on all hosts."
        ) from None
    return found
