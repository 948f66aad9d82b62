"""A load that several hosts send together: one plan, begun at one moment, put together as one run.

What a process does on its host is what a fork of this one does (see `processes`): it has every nth request, or every nth
conversation with all its turns, says when its connections are open, begins when it is told, and sends fillers until the measured requests of all have ended. This process
asks each host for its clock before the beginning and after the end, tells it the moment of the beginning on that clock, and
puts what it timed on its own (see `skew`). A load that lost a part is no load: it ends with an error, and gives no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from pytest_inferperf.engines.load_hosts import LoadHost
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, InvalidRun, NodeLost, SettingsError
from pytest_inferperf.measure.load.interrupt import Interrupt
from pytest_inferperf.measure.load.letters import Letter, write_letter
from pytest_inferperf.measure.load.messages import read_message
from pytest_inferperf.measure.load.parcels import pack
from pytest_inferperf.measure.load.parts import Part, whole_run
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.processes import MOMENT, STOP, Bodies
from pytest_inferperf.measure.load.records import MEASURED, Records
from pytest_inferperf.measure.load.skew import HostClock, Offset, measure_offset
from pytest_inferperf.measure.load.state import LoadState, joint_state
from pytest_inferperf.measure.progress import Live, watched

__all__ = ["check_hosts", "run_on_hosts"]

_LEAD_S = 0.5
"""From the last process that is ready to the beginning: time for all hosts to hear of it, one after the other."""

_LOOK_S = 0.1
_SILENT_S = 60.0
"""A process that says nothing for so long hangs: at the end it may have a lot to read."""

_SPARE_S = 2.0
"""Open loop: seconds of warm-up and fillers that are written ahead."""


def run_on_hosts(
    endpoint: Endpoint,
    plan: LoadPlan,
    bodies: Callable[[int], Bodies],
    hosts: Sequence[LoadHost],
    *,
    processes: int,
    live: Live | None = None,
    watch: Callable[[list[float]], None] | None = None,
) -> LoadRun:
    """Send the load that `plan` describes from `processes` processes on each host, and return what happened.

    `bodies(i)` is called here, for what the requests of process i say; the other values are those of `run_together`.
    Ctrl-C ends the load and keeps what was measured. Raises `EngineError` where a process cannot connect, dies or hangs,
    and where a host is lost; `InvalidRun` where one heard of the beginning too late; `SettingsError` for fewer requests or
    streams than processes, and where a host lacks the API key.
    """
    check_hosts(plan, len(hosts), processes)
    count = len(hosts) * processes
    with Interrupt() as interrupt:
        try:
            crew = _Crew(hosts, processes)
            for index in range(count):
                parcel = pack(bodies(index), _share(plan, index, count))
                # At once: another slice of the same texts changes what this one would write.
                crew.write(
                    Letter(
                        endpoint=endpoint,
                        plan=plan,
                        index=index,
                        processes=count,
                        parcel=parcel,
                        is_shown=live is not None,
                    )
                )
            crew.start()
            with watched(lambda: str(joint_state(list(crew.states.values()), plan.num_requests)), live):
                return _conduct(plan, crew, interrupt, watch)
        except NodeLost as error:
            # No other host can go on in the middle of a load.
            raise EngineError(
                f"{error}, in mid-run: what the others sent is another load than was asked for."
            ) from None
        finally:
            for host in hosts:
                host.end()


def check_hosts(plan: LoadPlan, hosts: int, processes: int) -> None:
    """Refuse hosts, with so many processes each, some of which would have nothing to send. Raises `SettingsError`."""
    if hosts * processes <= plan.most_parts:
        return
    fewer = plan.most_parts // processes
    advice = f"Ask for {fewer} host{'' if fewer == 1 else 's'}" if fewer else "Ask for fewer processes on each"
    raise SettingsError(
        f"{hosts} hosts with {processes} processes each: there may be {plan.most_parts} processes at most, so that "
        f"{plan.each_has}. {advice}."
    )


def _conduct(plan: LoadPlan, crew: _Crew, interrupt: Interrupt, watch: Callable[[list[float]], None] | None) -> LoadRun:
    while len(crew.ready) < crew.count:
        crew.hear()
        if interrupt.seen:
            raise KeyboardInterrupt
    before = crew.offsets()
    crew.begin(before)
    stopped = False
    while len(crew.parts) < crew.count:
        crew.hear()
        if stopped:
            continue
        if watch is not None:
            watch(crew.shares)
        if len(crew.ended) == crew.count or interrupt.seen:
            crew.tell(STOP)
            stopped = True
    complete = len(crew.ended) == crew.count
    if complete:
        _check_whole(plan, crew)
    after = crew.offsets()
    clocks = tuple(
        HostClock.of(host.name, crew.processes, *found) for host, *found in zip(crew.hosts, before, after, strict=True)
    )
    parts = [_here(crew.parts[index], clocks[index // crew.processes].offset_s) for index in range(crew.count)]
    run = whole_run(plan, parts, interrupted=interrupt.seen or not complete)
    return replace(run, hosts=clocks)


def _check_whole(plan: LoadPlan, crew: _Crew) -> None:
    """Raise `InvalidRun` where a process has not measured just the requests that were its own."""
    for index in range(crew.count):
        asked, found = plan.part(index, crew.count).num_requests, crew.parts[index].records.kind.count(MEASURED)
        if found != asked:
            raise InvalidRun(
                f"{crew.where(index)}, has measured {found} requests where {asked} were its own: a part of the load is missing, "
                "or there twice. Run it again."
            )


class _Crew:
    """The processes on the hosts, and what they have said so far."""

    def __init__(self, hosts: Sequence[LoadHost], processes: int) -> None:
        self.hosts, self.processes = hosts, processes
        self.count = len(hosts) * processes
        self.ready: set[int] = set()
        self.ended: set[int] = set()
        self.shares = [0.0] * self.count
        """Of its core, what each process has used for what could not wait."""

        self.states: dict[int, LoadState] = {}
        self.parts: dict[int, Part] = {}
        self._letters: list[bytes] = []
        self._heard: list[float] = []

    def write(self, letter: Letter) -> None:
        """Write the letter of the next process."""
        self._letters.append(write_letter(letter))

    def start(self) -> None:
        """Start all processes."""
        for number, host in enumerate(self.hosts):
            host.start(self._letters[number * self.processes : (number + 1) * self.processes])
        self._letters.clear()
        self._heard = [time.monotonic()] * self.count

    def offsets(self) -> list[Offset]:
        """Ask every host for its clock."""
        return [measure_offset(host.clock) for host in self.hosts]

    def begin(self, offsets: Sequence[Offset]) -> None:
        """Tell all when the load begins, each on its own clock. Raises `InvalidRun` where one hears of it too late."""
        moment = time.perf_counter() + _LEAD_S
        for host, offset in zip(self.hosts, offsets, strict=True):
            late_s = host.tell(MOMENT.pack(moment + offset.offset_s)) - offset.offset_s - moment
            if not late_s <= 0:
                raise InvalidRun(
                    f"{host.name} heard of the beginning of the load {1000 * late_s:.0f} ms too late, {_LEAD_S:g} s after it "
                    "was told: the cluster, or the way there, is busy. Run it again."
                )

    def tell(self, message: bytes) -> None:
        """Pass a message to all processes."""
        for host in self.hosts:
            host.tell(message)

    def hear(self) -> None:
        """Wait a little, and take what was said meanwhile. Raises what a process raised, and `EngineError` for one that is gone."""
        time.sleep(_LOOK_S)
        for index, host, said in self._said():
            if isinstance(said, int):
                if index not in self.parts:
                    how = f"was killed by signal {-said}" if said < 0 else f"ended with exit status {said}"
                    raise EngineError(f"{self.where(index)}, {how} in mid-run.")
                continue
            self._heard[index] = time.monotonic()
            what, value = read_message(said, who=f"{self.where(index)},")
            self._take(index, host, what, value)
        for index, heard in enumerate(self._heard):
            if index not in self.parts and time.monotonic() - heard > _SILENT_S:
                raise EngineError(f"{self.where(index)}, has said nothing for {_SILENT_S:g} s: it hangs.")

    def _said(self) -> Iterator[tuple[int, LoadHost, bytes | int]]:
        for number, host in enumerate(self.hosts):
            for place, said in host.hear():
                yield number * self.processes + place, host, said

    def _take(self, index: int, host: LoadHost, what: str, value: Any) -> None:
        if what == "ready":
            self.ready.add(index)
        elif what == "at":
            self.shares[index], state = value
            if state is not None:
                self.states[index] = state
        elif what == "ended":
            self.ended.add(index)
        elif what == "part":
            self.parts[index] = value
        else:
            raise value.error(where=host.name)

    def where(self, index: int) -> str:
        """Name a process."""
        return f"load process {index + 1} of {self.count}, on {self.hosts[index // self.processes].name}"


def _share(plan: LoadPlan, index: int, count: int) -> int:
    """Return how many requests a process will need at least, with twice its streams, or two seconds, for warm-up and fillers."""
    spare = 2 * len(range(index, plan.concurrency, count))
    if plan.arrivals is not None:
        spare = ceil(_SPARE_S * min(plan.arrivals.rate, plan.num_requests) / count)
    return len(range(index, plan.num_requests, count)) + spare


def _here(part: Part, offset_s: float) -> Part:
    """Put a part on the clock of this host. Differences stay what they are."""

    def moved(moment: float | None) -> float | None:
        return None if moment is None else moment - offset_s

    return replace(
        part,
        records=_records_here(part.records, offset_s),
        flying=tuple(sent - offset_s if sent else 0.0 for sent in part.flying),
        warmed=moved(part.warmed),
        first_measured=moved(part.first_measured),
        last=part.last - offset_s,
    )


def _records_here(records: Records, offset_s: float) -> Records:
    found = Records()
    for name, column in vars(records).items():
        values = column
        if column.typecode == "d":
            # A moment that never came is 0 in a row.
            values = [value - offset_s if value else 0.0 for value in column]
        getattr(found, name).extend(values)
    return found
