"""A run that the machine disturbed is INVALID, whatever its figures; one that it left alone is judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.measure import cpu
from pytest_inferperf.model.limits import LIMITS
from tests.plugin.conftest import PERFORMANCE, Project

EASY, IMPOSSIBLE = (f"throughput_floor(output_throughput_per_user={limit})" for limit in ("1", "1e9"))
DEFAULTS = tuple(part for limit in LIMITS for part in ("-o", f"{limit.ini}={limit.default:g}"))
# The quota of the machine that runs these tests is not what they are about.
INTERFERENCE = DEFAULTS[:2]

NEIGHBOUR = """
import os, resource, sys
os.setsid()
if pid := os.fork():
    print(pid)
    os._exit(0)
os.sched_setaffinity(0, {int(sys.argv[1])})
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # Ends by itself, should the test not end it.
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.execvp("yes", ["yes"])
"""
"""A busy process that is not ours: init is its parent, and its session is its own."""


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """This process on one CPU: then one neighbour is much, on any machine."""
    before = os.sched_getaffinity(0)
    chosen = max(before)
    os.sched_setaffinity(0, {chosen})
    yield chosen
    os.sched_setaffinity(0, before)


@pytest.fixture
def neighbour(one_cpu: int) -> Iterator[int]:
    """`yes > /dev/null` on our CPU."""
    command = [sys.executable, "-c", NEIGHBOUR, str(one_cpu)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text():
        assert time.monotonic() < deadline, "the neighbour lives on"
        time.sleep(0.01)


def record(project: Project) -> dict[str, Any]:
    (found,) = json.loads((project.path / "r.json").read_text())["records"]
    assert isinstance(found, dict)
    return found


def test_a_busy_neighbour_makes_the_run_invalid(project: Project, neighbour: int) -> None:
    project.engine(round_s=0.5)
    project.test(PERFORMANCE, EASY, IMPOSSIBLE.replace("per_user", "per_gpu"))
    result = project.run("--inferperf-json=r.json", *INTERFERENCE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "INVALID: the run is invalid: others took * % of the CPU time, where 20 % is the limit (*): stop what runs "
            "beside the test, or set inferperf_max_interference in the ini file; no gate was judged",
            "2 gates in 1 test: 2 invalid",
        ]
    )
    found = record(project)
    assert found["status"] == "INVALID"
    assert found["result"]["invalid"].startswith("others took ")
    (session,) = found["result"]["performance"]["sessions"]
    assert len(session["rounds"]) == 3
    assert session["telemetry"]["cpu.others"] > 0.2
    assert session["telemetry"]["cpu.count"] == 1


Reader = Callable[[int], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Say how many of 100 ticks of the next measurements were busy, one after the other."""
    looks: list[dict[int, cpu._CpuTime]] = []
    monkeypatch.setattr(cpu, "_read_cpus", lambda path, cpus: looks.pop(0))

    def add(busy: int) -> None:
        looks.extend({0: cpu._CpuTime(ticks, 0, total)} for ticks, total in ((0, 0), (busy, 100)))

    return add


@pytest.mark.parametrize(("gate", "outcome"), [(EASY, "passed"), (IMPOSSIBLE, "failed")])
def test_a_quiet_machine_is_judged(project: Project, machine: Reader, gate: str, outcome: str) -> None:
    machine(15)
    project.test(PERFORMANCE, gate)
    result = project.run("--inferperf-json=r.json", *INTERFERENCE)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([f"1 gate in 1 test: 1 {outcome}"])
    assert record(project)["result"]["invalid"] == ""


def test_the_ini_moves_the_limit(project: Project, machine: Reader) -> None:
    machine(60)
    machine(60)
    project.test(PERFORMANCE, EASY)
    project.run("-o", "inferperf_max_interference=0.7").assert_outcomes(passed=1)
    project.run("-o", "inferperf_max_interference=0.1").assert_outcomes(failed=1)


def test_a_body_that_goes_on_cannot_hide_it(project: Project, machine: Reader) -> None:
    machine(60)
    project.test(PERFORMANCE, EASY, body="try: inferperf.measure()\n    except Exception: pass")
    result = project.run(*INTERFERENCE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: others took *", "1 gate in 1 test: 1 invalid"])


def test_without_a_gate_it_fails_too(project: Project, machine: Reader) -> None:
    machine(60)
    project.test(PERFORMANCE)
    result = project.run(*INTERFERENCE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: others took *"])


def test_an_invalid_run_is_never_recorded(project: Project, machine: Reader) -> None:
    machine(60)
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    project.run("--inferperf-update=new", *INTERFERENCE).stdout.fnmatch_lines(["not recorded: *others took *"])
    assert not list(project.path.glob("baselines/performance/*/*.json"))


@pytest.mark.parametrize(("busy", "outcome"), [(15, "passed"), (60, "failed")])
def test_blocks_beside_a_reference_are_watched_too(project: Project, machine: Reader, busy: int, outcome: str) -> None:
    machine(busy)
    project.test(PERFORMANCE, 'speedup_floor("output_throughput_per_user", over="BF16")')
    result = project.run("--inferperf-json=r.json", *INTERFERENCE)
    result.assert_outcomes(**{outcome: 1})
    (comparison,) = record(project)["result"]["comparisons"]
    assert len(comparison["telemetry"]) == 1
    if outcome == "failed":
        result.stdout.fnmatch_lines(["INVALID: the run is invalid: others took *"])


def test_it_may_be_run_again(project: Project, machine: Reader) -> None:
    machine(60)
    machine(0)
    project.test(PERFORMANCE, EASY)
    result = project.run("--reruns=1", *INTERFERENCE)
    result.stdout.fnmatch_lines(["1 gate in 1 test: 1 passed", "*1 passed, 1 rerun*"])


def test_what_the_machine_does_not_tell_is_not_checked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_read_cpus", lambda path, cpus: {})
    project.test(PERFORMANCE, EASY)
    project.run("--inferperf-json=r.json", *INTERFERENCE).assert_outcomes(passed=1)
    assert "cpu.others" not in record(project)["result"]["performance"]["sessions"][0]["telemetry"]
