"""What the CPUs did, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_inferperf.measure.cpu import CpuWatch
from tests.measure.machine import ME, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def watch(machine: Machine, *cpus: int) -> CpuWatch:
    return CpuWatch(root=machine.root, pid=ME, cpus=cpus or (0, 1))


def test_an_idle_machine(machine: Machine) -> None:
    watching = watch(machine)
    machine.cpus({0: (0, 100), 1: (0, 100)})
    found = watching.figures()
    assert found.pop("window_s") >= 0
    assert found == {"cpu.count": 2, "cpu.load_1m": 0.9, "cpu.own": 0, "cpu.others": 0, "cpu.steal": 0}


def test_own_time_is_not_interference(machine: Machine) -> None:
    machine.process(101, "engine", parent=ME, session=101)
    watching = watch(machine)
    machine.process(ME, "pytest", parent=1, own=10)
    machine.process(101, "engine", parent=ME, session=101, own=150)
    machine.cpus({0: (100, 0), 1: (60, 40)})
    found = watching.figures()
    assert found["cpu.own"] == pytest.approx(0.8)
    assert found["cpu.others"] == 0


def test_a_busy_neighbour_is_named(machine: Machine) -> None:
    machine.process(900, "bash", parent=1)
    machine.process(901, "my (odd)\n name", parent=900)
    watching = watch(machine)
    machine.process(ME, "pytest", parent=1, own=100)
    machine.process(901, "my (odd)\n name", parent=900, own=70)
    machine.process(902, "ls", parent=900, own=3, start=600)
    machine.cpus({0: (100, 0), 1: (75, 25)})
    found = watching.figures()
    assert found["cpu.others"] == pytest.approx(0.375)
    assert {name: value for name, value in found.items() if name.startswith("cpu.others.")} == {
        "cpu.others.my (odd)? name": pytest.approx(0.35)
    }


def test_time_before_the_measurement_does_not_count(machine: Machine) -> None:
    machine.process(ME, "pytest", parent=1, own=5000)
    machine.process(901, "yes", parent=1, own=90_000)
    machine.cpus({0: (60_000, 50), 1: (35_000, 50)})
    watching = watch(machine)
    machine.cpus({0: (60_000, 150), 1: (35_000, 150)})
    assert watching.figures()["cpu.others"] == 0


def test_a_process_number_that_is_used_again_is_another_process(machine: Machine) -> None:
    machine.process(901, "yes", parent=1, own=90_000)
    watching = watch(machine)
    machine.process(901, "yes", parent=1, own=100, start=700)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    assert watching.figures()["cpu.others.yes"] == pytest.approx(0.5)


def test_only_the_cpus_that_we_may_use_count(machine: Machine) -> None:
    watching = watch(machine, 0)
    machine.process(901, "elsewhere", parent=1, own=200, cpu=1)
    machine.process(902, "here", parent=1, own=30, cpu=0)
    machine.cpus({0: (30, 70), 1: (100, 0), 2: (100, 0)})
    found = watching.figures()
    assert {name: value for name, value in found.items() if name.startswith(("cpu.others", "cpu.count"))} == {
        "cpu.others": pytest.approx(0.3),
        "cpu.others.here": pytest.approx(0.3),
        "cpu.count": 1,
    }


def test_stolen_time(machine: Machine) -> None:
    watching = watch(machine)
    machine.cpus({0: (0, 60), 1: (0, 60)}, steal=40)
    found = watching.figures()
    assert [found["cpu.steal"], found["cpu.others"]] == pytest.approx([0.4, 0])


def test_children_that_ended_are_ours(machine: Machine) -> None:
    machine.process(101, "engine", parent=ME, session=101, own=40)
    machine.process(102, "worker", parent=101, session=101, own=30, children=5)
    watching = watch(machine)
    machine.ended(102)
    machine.process(101, "engine", parent=ME, session=101, own=80, children=95)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    found = watching.figures()
    assert found["cpu.own"] == pytest.approx(0.5)
    assert found["cpu.others"] == 0


def test_orphans_of_the_engine_are_ours(machine: Machine) -> None:
    """A worker whose parent ended belongs to init, and still to the session that the engine leads."""
    machine.process(101, "engine", parent=ME, session=101)
    machine.process(103, "rank1", parent=1, session=101)
    watching = watch(machine)
    machine.process(103, "rank1", parent=1, session=101, own=100)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    assert watching.figures()["cpu.others"] == 0
    assert watching.ours == {ME, 101, 103}


def test_an_orphan_that_ends_takes_its_past_with_it(machine: Machine) -> None:
    machine.process(101, "engine", parent=ME, session=101, own=10)
    machine.process(103, "rank1", parent=1, session=101, own=90_000)
    watching = watch(machine)
    machine.ended(103)
    machine.process(101, "engine", parent=ME, session=101, own=110)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    assert watching.figures()["cpu.others"] == 0


def test_ranks_that_a_launcher_started_for_us_are_ours(machine: Machine) -> None:
    machine.process(700, "slurmstepd", parent=1)
    machine.process(701, "launcher", parent=700, session=701)
    machine.process(702, "rank", parent=701, session=701)
    watching = CpuWatch(root=machine.root, pid=ME, cpus=(0, 1), also={702})
    machine.process(ME, "pytest", parent=1, own=10)
    machine.process(702, "rank", parent=701, session=701, own=150)
    machine.cpus({0: (100, 0), 1: (60, 40)})
    assert watching.figures()["cpu.others"] == 0
    assert watching.ours == {ME, 702}


def test_other_jobs_of_our_shell_are_others(machine: Machine) -> None:
    machine.process(50, "bash", parent=1, session=50)
    machine.process(ME, "pytest", parent=50, session=50)
    machine.process(51, "yes", parent=50, session=50)
    watching = watch(machine)
    machine.process(51, "yes", parent=50, session=50, own=100)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    assert watching.figures()["cpu.others"] == pytest.approx(0.5)
    assert watching.known == {50, ME, 51}


def test_a_short_measurement_has_no_shares(machine: Machine) -> None:
    watching = watch(machine)
    machine.cpus({0: (49, 0), 1: (0, 50)})
    assert not any(name in watching.figures() for name in ("cpu.own", "cpu.others", "cpu.steal"))
    machine.cpus({0: (50, 0), 1: (0, 50)})
    assert watching.figures()["cpu.others"] == pytest.approx(0.5)


def test_an_old_kernel_counts_no_steal(machine: Machine) -> None:
    machine.file("proc/stat", "cpu0 0 0 0 0\n")
    watching = watch(machine, 0)
    machine.file("proc/stat", "cpu0 60 0 0 140\n")
    found = watching.figures()
    assert [found["cpu.steal"], found["cpu.others"]] == pytest.approx([0, 0.3])


def test_a_counter_that_runs_backwards_is_not_negative(machine: Machine) -> None:
    """The kernel's iowait and idle may."""
    machine.cpus({0: (0, 1000), 1: (50, 0)})
    watching = watch(machine)
    machine.cpus({0: (0, 990), 1: (200, 50)})
    assert watching.figures()["cpu.others"] == pytest.approx(0.75)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    watching = CpuWatch(root=tmp_path, pid=ME, cpus=(0, 1))
    assert not watching.can_sample
    watching.sample()
    assert set(watching.figures()) == {"window_s", "cpu.count"}


V1 = "nr_periods {periods}\nnr_throttled {throttled}\nthrottled_time {us}000\n"
V2 = (
    "usage_usec 1\nuser_usec 1\nsystem_usec 0\ncore_sched.force_idle_usec 0\nnr_periods {periods}\n"
    "nr_throttled {throttled}\nthrottled_usec {us}\nnr_bursts 0\nburst_usec 0\n"
)


@pytest.mark.parametrize(
    ("membership", "path", "text"),
    [
        ("0::/user.slice/job\n", "user.slice/job/cpu.stat", V2),
        ("0::/\n", "cpu.stat", V2),
        ("0::/user.slice/job\n", "user.slice/cpu.stat", V2),
        ("0::/docker/0a1b\n", "cpu.stat", V2),
        ("9:name=systemd:/\n0::/job\n", "unified/job/cpu.stat", V2),
        ("4:memory:/x\n3:cpuset:/x\n2:cpu,cpuacct:/job\n0::/\n", "cpu,cpuacct/job/cpu.stat", V1),
        ("2:cpuacct:/job\n1:cpu:/job\n", "cpu/job/cpu.stat", V1),
        ("2:cpuacct,cpu:/job\n", "cpu/job/cpu.stat", V1),
    ],
    ids=["v2", "namespace", "ancestor", "container", "hybrid", "v1", "v1 alone", "v1 link"],
)
def test_throttling_by_a_quota(machine: Machine, membership: str, path: str, text: str) -> None:
    machine.file("proc/self/cgroup", membership)
    path = f"sys/fs/cgroup/{path}"
    machine.file(path, text.format(periods=1000, throttled=900, us=5_000_000))
    watching = watch(machine)
    machine.file(path, text.format(periods=1040, throttled=910, us=5_250_000))
    found = watching.figures()
    assert found["cpu.throttled"] == pytest.approx(0.25)
    assert found["cpu.throttled_s"] == pytest.approx(0.25)


def test_a_quota_that_does_not_bind(machine: Machine) -> None:
    machine.file("proc/self/cgroup", "0::/\n")
    machine.file("sys/fs/cgroup/cpu.stat", V2.format(periods=0, throttled=0, us=0))
    assert watch(machine).figures()["cpu.throttled"] == 0


def test_a_group_without_a_quota_tells_nothing(machine: Machine) -> None:
    machine.file("proc/self/cgroup", "0::/\n")
    machine.file("sys/fs/cgroup/cpu.stat", "usage_usec 6\nuser_usec 5\nsystem_usec 1\n")
    assert "cpu.throttled" not in watch(machine).figures()


def clock(machine: Machine, cpu: int, mhz: int) -> None:
    folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
    machine.file(f"{folder}/cpuinfo_max_freq", "4000000\n")
    machine.file(f"{folder}/scaling_cur_freq", f"{mhz}000\n")


@pytest.mark.parametrize(("own", "expected"), [(50, {"cpu.clock": 0.5, "cpu.clock_mhz": 2000}), (40, {})])
def test_the_clock_of_the_fastest_cpu_while_we_are_busy(machine: Machine, own: int, expected: dict[str, float]) -> None:
    clock(machine, 0, 800)
    clock(machine, 1, 800)
    watching = watch(machine)
    assert watching.can_sample
    for mhz in (800, 2000, 2400):
        clock(machine, 1, mhz)
        watching.sample()
    machine.process(ME, "pytest", parent=1, own=own)
    machine.cpus({0: (own, 100 - own), 1: (0, 100)})
    found = watching.figures()
    assert {name: value for name, value in found.items() if "clock" in name} == expected


def test_a_clock_that_goes_away_is_not_zero(machine: Machine) -> None:
    clock(machine, 0, 800)
    watching = watch(machine)
    machine.file("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "<unknown>\n")
    watching.sample()
    machine.process(ME, "pytest", parent=1, own=100)
    machine.cpus({0: (100, 0), 1: (0, 100)})
    assert "cpu.clock" not in watching.figures()
