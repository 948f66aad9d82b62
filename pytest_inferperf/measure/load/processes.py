"""A load that several processes send together: begun at one moment, ended by the last, and put together as one run.

Each process is a fork of this one, with a slice of the plan: every nth request, with the later turns of its conversation, and
its share of the concurrency. It opens
its connections, says so, and waits for the moment at which all begin. When its measured requests have ended it sends
fillers until those of all have. This process only waits: it hears each of the others some times a second, and ends them
all whatever happens. One that loses this process ends by itself.
"""

from __future__ import annotations

import itertools
import os
import selectors
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.hiding import hider
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.conductor import Conductor
from pytest_inferperf.measure.load.framing import frames
from pytest_inferperf.measure.load.generator import run_part
from pytest_inferperf.measure.load.interrupt import Interrupt
from pytest_inferperf.measure.load.messages import Trouble, read_message, say
from pytest_inferperf.measure.load.parts import Part, whole_run
from pytest_inferperf.measure.load.plan import LoadPlan, LoadRun
from pytest_inferperf.measure.load.state import LoadState, joint_state
from pytest_inferperf.measure.load.supply import SizesOf, Spare, Supply, TalkOf
from pytest_inferperf.measure.progress import Live, watched

__all__ = ["Bodies", "run_together", "send_part"]

_LEAD_S = 0.05
"""From the last process that is ready to the beginning: time for all to hear of it."""

_SILENT_S = 60.0
"""A process that says nothing for so long hangs: at the end it may have a lot to read."""

_LOOKS_PER_STATE = 3
"""How often a process says how far it is: about twice a second."""

STOP = b"s"
MOMENT = struct.Struct("!d")


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """What the requests of one process say: see `run_load`."""

    make_body: Callable[[int], bytes]
    sizes_of: SizesOf | None = None
    make_spare: Spare | None = None
    talk_of: TalkOf | None = None


def run_together(
    endpoint: Endpoint,
    plan: LoadPlan,
    bodies: Callable[[int], Bodies],
    *,
    processes: int,
    live: Live | None = None,
    watch: Callable[[list[float]], None] | None = None,
) -> LoadRun:
    """Send the load that `plan` describes from `processes` processes, and return what happened.

    `bodies(i)` is called in process i for what its requests say. `live` is that of `run_load`; `watch` is told some
    times a second what share of its core each process has used for what could not wait, and may raise to end the run.
    Ctrl-C ends it and keeps what was measured. Raises `EngineError` where a process cannot connect, dies or hangs, and
    `SettingsError` for fewer requests or streams than processes.
    """
    if not 1 <= processes <= plan.most_parts:
        raise SettingsError(
            f"{processes} processes: must be from 1 to {plan.most_parts}, so that {plan.each_has}. Ask for fewer."
        )
    with Interrupt() as interrupt, _Crew() as crew:
        for index in range(processes):
            crew.start(partial(send_part, endpoint, plan, bodies, index, processes, live is not None))
        states: dict[int, LoadState] = {}
        shares = [0.0] * processes
        ready, ended, stopped = 0, 0, False
        parts: dict[int, Part] = {}
        # Begun after the forks: they have none of this process's threads.
        with watched(lambda: str(joint_state(list(states.values()), plan.num_requests)), live):
            while len(parts) < processes:
                for index, (what, value) in crew.hear():
                    if what == "ready":
                        ready += 1
                        if ready == processes:
                            crew.tell(MOMENT.pack(time.perf_counter() + _LEAD_S))
                    elif what == "at":
                        shares[index], state = value
                        if state is not None:
                            states[index] = state
                    elif what == "ended":
                        ended += 1
                    elif what == "part":
                        parts[index] = value
                    else:
                        raise value.error()
                if ready == processes and not stopped:
                    if watch is not None:
                        watch(shares)
                    if ended == processes or interrupt.seen:
                        crew.tell(STOP)
                        stopped = True
                elif interrupt.seen and not stopped:
                    raise KeyboardInterrupt
        return whole_run(
            plan, [parts[index] for index in range(processes)], interrupted=interrupt.seen or ended < processes
        )


class _Crew:
    """The processes, and the sockets to them. Owns both: they are gone when the block is left."""

    def __init__(self) -> None:
        self._controls: list[socket.socket] = []
        self._pids: list[int] = []
        self._received: list[bytearray] = []
        self._heard: list[float] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._pids:
            if pid:
                os.kill(pid, signal.SIGKILL)
        for index in range(len(self._pids)):
            self._reap(index)
        for control in self._controls:
            control.close()
        self._selector.close()

    def start(self, work: Callable[[socket.socket], None]) -> None:
        """Fork a process that does `work` with its end of a socket, and no other descriptor, and ends."""
        ours, theirs = socket.socketpair()
        index = len(self._pids)
        self._controls.append(ours)
        with warnings.catch_warnings():
            # Threads of this process do not exist in the other, which takes no lock that one of them may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            _become(theirs, work)
        self._pids.append(pid)
        theirs.close()
        self._received.append(bytearray())
        self._heard.append(time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, index)

    def tell(self, message: bytes) -> None:
        """Send a message to all; one that has gone is found when it is heard."""
        for control in self._controls:
            try:
                control.sendall(message)
            except OSError:
                continue

    def hear(self) -> Iterator[tuple[int, tuple[str, Any]]]:
        """Wait a little for messages, each with the index of its process. Raises `EngineError` for one that is gone."""
        for key, _ in self._selector.select(0.1):
            index: int = key.data
            data = self._controls[index].recv(1 << 20)
            self._heard[index] = time.monotonic()
            if not data:
                self._selector.unregister(self._controls[index])
                status = self._reap(index)
                if self._received[index] is not _FINISHED:
                    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
                    raise EngineError(f"load process {index + 1} of {len(self._pids)} {how} in mid-run.")
                continue
            received = self._received[index]
            received += data
            for data in frames(received):
                message = read_message(data, who=f"load process {index + 1} of {len(self._pids)}")
                if message[0] == "part":
                    self._received[index] = _FINISHED
                yield index, message
        for index, heard in enumerate(self._heard):
            if time.monotonic() - heard > _SILENT_S and self._received[index] is not _FINISHED:
                raise EngineError(
                    f"load process {index + 1} of {len(self._pids)} has said nothing for {_SILENT_S:g} s: it hangs."
                )

    def _reap(self, index: int) -> int:
        """Wait for a process that has ended or was killed; return its exit status, negative for a signal."""
        pid, self._pids[index] = self._pids[index], 0
        if not pid:
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


_FINISHED = bytearray()
"""Stands for what is received from a process that has said all."""


def _become(control: socket.socket, work: Callable[[socket.socket], None]) -> None:
    """Do `work` and end, as a process that has just been forked: nothing of what its parent had open is touched."""
    status = 1
    try:
        # Ctrl-C, and SIGTERM to a whole group, are for the parent, which then says what is to be done.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # A socket of the parent that stays open here would keep its other end from seeing that it was closed.
        kept = {0, 1, 2, control.fileno()}
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if descriptor not in kept:
                try:
                    os.close(descriptor)
                except OSError:
                    continue
        work(control)
        status = 0
    finally:
        os._exit(status)


def send_part(
    endpoint: Endpoint,
    plan: LoadPlan,
    bodies: Callable[[int], Bodies],
    index: int,
    processes: int,
    is_shown: bool,
    control: socket.socket,
) -> None:
    """Send one process's part of a load, as the other end of `control` says, and say there what came of it.

    A server may repeat the key of its caller in an error, and that of this host is unknown to the machine where it is shown.
    """
    hide = hider(also=[endpoint.api_key_env] if endpoint.api_key_env else [])
    try:
        mine = plan.part(index, processes)
        texts = bodies(index)
        supply = Supply(endpoint, mine, texts.make_body, texts.sizes_of, texts.make_spare, texts.talk_of)
        conductor = _Follower(control, index=index, processes=processes, is_shown=is_shown)
        part = run_part(endpoint, mine, supply, conductor, Interrupt())
        for failure in part.failures.values():
            failure.example = hide(failure.example)
    except Exception as error:
        trouble = Trouble.of(error, who=f"load process {index + 1} of {processes}")
        say(control, "error", replace(trouble, message=hide(trouble.message)))
    else:
        say(control, "part", part)


class _Follower(Conductor):
    """Begins and ends when the parent says so."""

    def __init__(self, control: socket.socket, *, index: int, processes: int, is_shown: bool) -> None:
        super().__init__()
        self._looks, self._is_shown = 0, is_shown
        self._control, self._index, self._processes = control, index, processes

    def begin(self) -> float:
        """See `Conductor.begin`."""
        say(self._control, "ready")
        data = self._control.recv(MOMENT.size, socket.MSG_WAITALL)
        if len(data) < MOMENT.size:
            self._alone()
        moment: float = MOMENT.unpack(data)[0]
        time.sleep(max(0.0, moment - time.perf_counter()))
        return moment

    def due(self, times: Iterator[float]) -> Iterator[float]:
        """See `Conductor.due`."""
        return itertools.islice(times, self._index, None, self._processes)

    def ended(self) -> bool:
        """See `Conductor.ended`: the others have not, as far as this process knows."""
        self._tell("ended")
        return False

    def look(self, meter: ClockMeter, state: Callable[[], LoadState]) -> bool:
        """See `Conductor.look`."""
        self._looks += 1
        # How far the load is counts nothing where nobody looks, and little where somebody does.
        shown = state() if self._is_shown and self._looks % _LOOKS_PER_STATE == 0 else None
        self._tell("at", (meter.path_share, shown))
        try:
            data = self._control.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not data:
            self._alone()
        return True

    def _tell(self, what: str, value: object = None) -> None:
        try:
            say(self._control, what, value)
        except OSError:
            self._alone()

    def _alone(self) -> None:
        """End at once: the parent is gone, and nobody asks for what was measured."""
        os._exit(1)
