"""The watch around measured rounds: a thread that is always joined, and costs next to nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.measure import telemetry as module
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.telemetry import MAX_COST, Telemetry
from pytest_inferperf.measure.validity import check_telemetry
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.limits import LIMITS
from pytest_inferperf.model.results import Hardware
from tests.measure.machine import Machine
from tests.measure.nvml import Gpu, NewNvml
from tests.measure.test_session import StubEngine, good

CPU = Hardware(name="Test CPU", count=2, kind="cpu")
GPU = Hardware(name="Test GPU", count=1, kind="gpu")


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "inferperf-telemetry"]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> NewNvml:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = NewNvml(Gpu("GPU-a", pids=[os.getpid()]))
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


def test_no_thread_where_there_is_nothing_to_sample(tmp_path: Path) -> None:
    with Telemetry(CPU, root=Machine(tmp_path).root) as watching:
        assert not ours()
    assert watching.figures["cpu.count"] == len(os.sched_getaffinity(0))


def test_a_gpu_is_sampled_until_the_rounds_end(nvml: NewNvml) -> None:
    with Telemetry(GPU, period_s=0.001) as watching:
        (thread,) = ours()
        assert thread.daemon
        deadline = time.monotonic() + 20
        while nvml.looks < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert watching.figures == {}
    assert not ours()
    assert not nvml.is_open
    assert watching.figures["gpu0.sm_clock_mhz.min"] == 1700
    assert watching.figures["gpu0.other_processes"] == 0


def orphan() -> int:
    """Start a process that is no child of ours, and return its number."""
    started = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, start_new_session=True, check=True
    )
    return int(started.stdout)


def test_ranks_of_our_launch_are_no_neighbours_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compute for pytest, and are children of Slurm's: of two, one is of another job."""
    ranks = [orphan(), orphan()]
    try:
        nvml = NewNvml(Gpu("GPU-a", pids=ranks))
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(module, "launched_processes", lambda: frozenset(ranks[:1]))
        with Telemetry(GPU, period_s=0.001) as watching:
            deadline = time.monotonic() + 20
            while nvml.looks < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
    assert watching.figures["gpu0.other_processes"] == 1


def test_a_cpu_engine_asks_no_gpu(nvml: NewNvml) -> None:
    with Telemetry(CPU, period_s=0.001) as watching:
        time.sleep(0.01)
    assert not any(name.startswith("gpu") for name in watching.figures)
    assert nvml.looks == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_round_that_fails_ends_the_thread(nvml: NewNvml, error: type[BaseException]) -> None:
    with pytest.raises(error), Telemetry(GPU, period_s=0.001):
        raise error
    assert not ours()
    assert not nvml.is_open


def test_slow_looks_are_further_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes 5 ms of CPU time comes once a second, whatever the period."""
    machine = Machine(tmp_path)
    machine.file("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "1\n")
    machine.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    waits: list[float] = []

    class Stop:
        def wait(self, timeout: float) -> bool:
            waits.append(timeout)
            return True

        def set(self) -> None:
            return

    now = iter([1.0, 1.005])
    monkeypatch.setattr(time, "thread_time", lambda: next(now))
    watching = Telemetry(CPU, root=machine.root)
    watching._stop = Stop()  # type: ignore[assignment]
    with watching:
        pass
    assert waits == [pytest.approx(0.005 / MAX_COST)]


def test_this_machine_is_watched() -> None:
    """The real /proc: a busy loop of our own is ours."""
    with Telemetry(CPU) as watching:
        end = time.process_time() + 1.2
        while time.process_time() < end:
            pass
    assert watching.figures["window_s"] >= 1.2
    assert watching.figures["cpu.own"] * watching.figures["cpu.count"] * watching.figures["window_s"] == pytest.approx(
        1.2, abs=0.2
    )
    assert watching.figures["cpu.own"] + watching.figures["cpu.others"] + watching.figures["cpu.steal"] < 1.05


def test_warm_up_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    monkeypatch.setattr(module, "ROOT", machine.root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    machine.process(os.getpid(), "pytest", parent=1)
    # Each round of a neighbour's work: in the warm-up all of the CPU, then a tenth.
    busy = iter([(1000, 0), (1010, 90), (1020, 180)])

    engine = StubEngine(good)
    generate = engine.generate

    def watched(*args: object, **kwargs: object) -> object:
        machine.cpus({0: next(busy)})
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "generate", watched)
    session = measure_session(engine, Workload(isl=4, osl=3, rounds=2, warmup_rounds=1))
    assert session.telemetry["cpu.others"] == pytest.approx(0.1)


@pytest.mark.parametrize(("stranger", "reason"), [(False, ""), (True, "other processes that computed on gpu0: 1, ")])
def test_a_stranger_on_the_gpu_of_an_engine(
    nvml: NewNvml, monkeypatch: pytest.MonkeyPatch, stranger: bool, reason: str
) -> None:
    monkeypatch.setattr(nvml._gpus[0], "pids", [os.getpid(), *([os.getppid()] if stranger else [])])
    engine = StubEngine(good)
    engine.info = replace(engine.info, hardware=GPU)
    session = measure_session(engine, Workload(isl=4, osl=3, rounds=2))
    # Who else is on the CPUs of this machine is not what this is about.
    limits = {limit.ini: limit.default for limit in LIMITS}
    limits |= {"inferperf_max_interference": 1.0, "inferperf_max_throttled": 1.0, "inferperf_min_clock": 0.0}
    found = check_telemetry(session.telemetry, limits)
    assert found.startswith(reason)
    assert bool(found) is stranger
