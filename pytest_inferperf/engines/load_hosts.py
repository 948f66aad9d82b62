"""Other machines that send load to a server. Who they are, and how they are reached, is a cluster's matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_inferperf.engines.openai.endpoint import Endpoint

__all__ = ["LoadHost", "LoadHosts"]


class LoadHost(ABC):
    """One machine and the load processes that it runs for us. Every call raises `EngineError` once it is lost."""

    name: str
    """In words: `node gpu-07 (3f2a9c01)`."""

    @abstractmethod
    def start(self, letters: Sequence[bytes]) -> None:
        """Start a load process for each letter, which says what it has to send."""

    @abstractmethod
    def clock(self) -> float:
        """Read the clock that its load processes time by, seconds."""

    @abstractmethod
    def tell(self, message: bytes) -> float:
        """Pass a message to all its load processes; return its clock then."""

    @abstractmethod
    def hear(self) -> list[tuple[int, bytes | int]]:
        """Return what its load processes have said since the last time, each with its place among the letters.

        The last that comes of each is its exit status, negative for a signal.
        """

    @abstractmethod
    def end(self) -> None:
        """End its load processes. Never raises; may be called again."""


class LoadHosts(ABC):
    """The machines that may send."""

    wanted: int = 0
    """How many are to send; 0 for none, until this machine is too few."""

    @abstractmethod
    def room(self, endpoint: Endpoint) -> tuple[int, int]:
        """Return how many of them may send to an endpoint, and how many processes each of them has room for.

        Raises `EngineError` or `HardwareError` where nobody knows.
        """

    @abstractmethod
    def taken(self, endpoint: Endpoint, hosts: int, processes: int) -> AbstractContextManager[Sequence[LoadHost]]:
        """Have so many of them for a load, each with cores for so many processes.

        Raises `HardwareError` where there are not as many. They stay taken until `close`, or until a load fails.
        """

    @abstractmethod
    def wanting(self, count: int) -> LoadHosts:
        """Return the same, of which so many are wanted."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Who has sent so far, a sentence for each load."""

    @abstractmethod
    def close(self) -> None:
        """Give all of them back. May be called again."""
