"""Sessions: recorded ten at a time, launched while a verdict is open and no longer, and judged by their spread."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.plugin.conftest import PERFORMANCE, Project

FLOOR = 'throughput_floor("output_throughput_per_user")'
FILE = "baselines/performance/test-cpu-2x/tiny-llama.json"
SPREAD = [0.97, 1.03, 0.98, 1.02, 0.99, 1.01, 0.996, 1.004, 1.0, 1.0]
"""Speeds of ten launches of an unchanged engine: 1.8 % apart."""


def relaunches(project: Project) -> int:
    return project.engines().count("relaunch NVFP4")


def stored(project: Project) -> dict[str, Any]:
    (entry,) = json.loads((project.path / FILE).read_text())["entries"].values()
    metrics: dict[str, Any] = entry["metrics"]
    return metrics


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a baseline of 100 tok/s/user in ten sessions, and an empty log of engines."""
    project.test(PERFORMANCE, FLOOR)
    project.engine(session_factors=SPREAD)
    project.run("--inferperf-update=new")
    (project.path / "engines.log").unlink()
    return project


def test_a_baseline_is_ten_sessions(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(session_factors=SPREAD)
    project.run("--inferperf-update=new")
    assert relaunches(project) == 9
    sessions = stored(project)["output_throughput_per_user"]["sessions"]
    assert sessions == [pytest.approx([100 * speed] * 3) for speed in SPREAD]


@pytest.mark.parametrize(
    ("mark", "option", "count"),
    [("", "--inferperf-set=sessions=5", 5), (", sessions=6", "--inferperf-reason=why", 6)],
)
def test_the_number_of_sessions_to_record_can_be_chosen(project: Project, mark: str, option: str, count: int) -> None:
    project.test(PERFORMANCE.replace(")", f"{mark})"), FLOOR)
    project.run("--inferperf-update=new", option).stdout.no_fnmatch_line("*uncalibrated*")
    assert {len(item["sessions"]) for item in stored(project).values()} == {count}


def test_few_sessions_are_recorded_with_a_label_and_judged_by_the_tolerance_alone(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new", "--inferperf-set=sessions=4").stdout.fnmatch_lines(
        ["* values recorded in *", "uncalibrated: 4 sessions recorded; with 5 or more the false alarm rate is known*"]
    )
    (project.path / "engines.log").unlink()
    project.engine(session_factors=[0.951, 0.1])
    held = project.run()
    held.assert_outcomes(passed=1)
    held.stdout.fnmatch_lines(["  note: uncalibrated: 4 stored sessions, 5 or more are needed to know the false *"])
    project.engine(session_factors=[0.949, 1.0])
    project.run().assert_outcomes(failed=1)
    assert relaunches(project) == 0


@pytest.mark.parametrize(
    ("speeds", "more", "outcome"),
    [
        ([1.005], 0, "passed"),
        ([0.85], 0, "failed"),
        ([0.97, 1.03], 1, "passed"),
        ([0.94, 0.90], 1, "failed"),
        ([0.97, 0.97, 1.02], 2, "passed"),
        ([0.96, 0.955, 0.93], 2, "failed"),
        ([0.97, 0.97, 0.97, 0.97, 0.98], 4, "passed"),
        ([0.97, 0.97, 0.97, 0.92, 0.92], 4, "failed"),
    ],
)
def test_further_sessions_only_while_the_verdict_is_open(
    recorded: Project, speeds: list[float], more: int, outcome: str
) -> None:
    # One session too many would turn each of them around.
    recorded.engine(session_factors=[*speeds, 0.2 if outcome == "passed" else 9.0])
    result = recorded.run()
    result.assert_outcomes(**{outcome: 1})
    assert relaunches(recorded) == more
    count = f"{more + 1} session{'s' if more else ''}"
    result.stdout.fnmatch_lines([f"  note: output_throughput_per_user: loss * ({count} against 10 stored)"])


def test_a_run_that_records_few_sessions_goes_on_while_its_verdict_is_open(recorded: Project) -> None:
    recorded.engine(session_factors=[0.97, 1.03, 0.2])
    recorded.run("--inferperf-update=tighten", "--inferperf-set=sessions=1").assert_outcomes(passed=1)
    assert relaunches(recorded) == 1


def test_progress_names_the_session_and_the_most_there_can_be(recorded: Project) -> None:
    recorded.engine(session_factors=[0.97, 1.03])
    recorded.run("--log-level=INFO", "--log-file=progress.log")
    lines = (recorded.path / "progress.log").read_text().splitlines()
    shown = [line for line in lines if "measure isl 16" in line]
    assert len(shown) == 10
    assert not any("session" in line for line in shown[:5])
    assert all(" session 2 (up to 5): measure isl 16 osl 8" in line for line in shown[5:]), shown[5:]


def test_an_open_gate_asks_for_more_and_a_decided_one_stays_decided(recorded: Project) -> None:
    recorded.test(PERFORMANCE, FLOOR, 'latency_ceiling("tpot_ms.p50", tolerance=0.5)', "latency_ceiling(tpot_ms_p99=1)")
    recorded.engine(session_factors=[0.97, 1.03])
    result = recorded.run()
    result.assert_outcomes(failed=1)
    assert relaunches(recorded) == 1
    result.stdout.fnmatch_lines(
        [
            "  note: output_throughput_per_user: * (2 sessions against 10 stored)",
            "  note: tpot_ms.p50: * (1 session against 10 stored)",
        ]
    )


UNDECIDED = [0.97, 0.97, 0.97, 0.94, 1.0]


def test_undecided_at_the_cap_fails(recorded: Project) -> None:
    recorded.engine(session_factors=[*UNDECIDED, 1.0])
    result = recorded.run("--inferperf-json=r.json")
    result.assert_outcomes(failed=1)
    assert relaunches(recorded) == 4
    result.stdout.fnmatch_lines(
        [
            "INCONCLUSIVE: output_throughput_per_user 97 tok/s/user is within its floor 95, but a loss of 5 % is not "
            "ruled out: loss 3.*; 1 more session would decide it, and no look is left; 1 of 1 gate did not pass",
            "  OPEN  output_throughput_per_user  97.00 >= 95.00 tok/s/user  *",
            "Next: measure on a quieter machine, give the gate a wider tolerance, or record 12 sessions: pytest *",
        ]
    )
    (record,) = json.loads((recorded.path / "r.json").read_text())["records"]
    assert record["status"] == "INCONCLUSIVE"
    assert len(record["result"]["performance"]["sessions"]) == 5


def test_undecided_at_the_cap_can_warn(recorded: Project) -> None:
    recorded.engine(session_factors=UNDECIDED)
    result = recorded.run("-W", "default", "-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestWarning: test_it.py::*: INCONCLUSIVE: output_throughput_per_user 97 *"])


def test_a_warning_says_no_secret(recorded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the warning are a password, which nobody would know by them."""
    monkeypatch.setenv("DB_PASSWORD", "per_user 97")
    recorded.engine(session_factors=UNDECIDED)
    result = recorded.run("-W", "default", "-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestWarning: test_it.py::*: INCONCLUSIVE: output_throughput_[[]hidden] *"])
    result.stdout.no_fnmatch_line("*per_user 97*")


def test_sessions_of_the_mark_are_where_a_judged_run_begins(recorded: Project) -> None:
    """The looks are walked in order all the same: the first decision stands."""
    recorded.test(PERFORMANCE.replace(")", ", sessions=3)"), FLOOR)
    recorded.engine(session_factors=[1.01, 0.5, 0.5])
    result = recorded.run()
    result.assert_outcomes(passed=1)
    assert relaunches(recorded) == 2
    result.stdout.fnmatch_lines(
        [
            "  ok  output_throughput_per_user  50.00 >= 95.00 *",
            "  note: *: 50 tok/s/user is below its floor 95, but a loss of 5 % is ruled out: at most *",
        ]
    )


def test_engine_that_cannot_be_launched_again_stays_undecided_and_says_so(recorded: Project) -> None:
    recorded.engine(session_factors=[0.97], can_relaunch=False)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "INCONCLUSIVE: *; the engine cannot be launched again, so there is one session; 1 of 1 gate did not pass",
            "Next: implement relaunch() in the engine and set can_relaunch = True, or give the gate a wider tolerance",
        ]
    )
    recorded.engine(session_factors=[1.01], can_relaunch=False)
    recorded.run().assert_outcomes(passed=1)


def test_engine_that_cannot_be_launched_again_records_one_session(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(can_relaunch=False)
    project.run("--inferperf-update=new").stdout.fnmatch_lines(["uncalibrated: 1 session recorded; *"])
    assert {len(item["sessions"]) for item in stored(project).values()} == {1}
    asked = project.run("--inferperf-set=sessions=2")
    asked.assert_outcomes(failed=1)
    asked.stdout.fnmatch_lines(["ScriptedEngine cannot be launched again. Implement relaunch(), which starts the *"])


def test_a_relaunch_that_fails_is_an_error_and_no_verdict(recorded: Project) -> None:
    recorded.engine(session_factors=[0.97], relaunch_error="the GPU fell off the bus")
    result = recorded.run("--inferperf-json=r.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the GPU fell off the bus", "  INVALID  output_throughput_per_user  *"])
    (record,) = json.loads((recorded.path / "r.json").read_text())["records"]
    assert record["status"] == "INVALID"


def test_nothing_more_is_measured_of_an_invalid_run(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.engine(failed=1)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    assert relaunches(project) == 0


def test_broken_baseline_file_keeps_what_was_measured(recorded: Project) -> None:
    (recorded.path / FILE).write_text("{")
    recorded.run("--inferperf-json=r.json").assert_outcomes(failed=1)
    assert relaunches(recorded) == 0
    (record,) = json.loads((recorded.path / "r.json").read_text())["records"]
    assert len(record["result"]["performance"]["sessions"]) == 1


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (("--inferperf-update=new",), 0),
        (("--inferperf-update=tighten",), 9),
        (("--inferperf-update=all", "--inferperf-reason=why"), 9),
    ],
)
def test_only_a_run_that_records_measures_ten(recorded: Project, arguments: tuple[str, ...], more: int) -> None:
    recorded.engine(session_factors=[1.01])
    recorded.run(*arguments)
    assert relaunches(recorded) == more


def test_a_metric_that_the_entry_lacks_is_recorded_in_ten_sessions(recorded: Project) -> None:
    data = json.loads((recorded.path / FILE).read_text())
    for entry in data["entries"].values():
        del entry["metrics"]["ttft_ms.p99"]
    (recorded.path / FILE).write_text(json.dumps(data))
    recorded.run("--inferperf-update=new").assert_outcomes(passed=1)
    assert relaunches(recorded) == 9
    assert len(stored(recorded)["ttft_ms.p99"]["sessions"]) == 10


@pytest.mark.parametrize("tolerance", ["0.005", "0.019"])
def test_tolerance_that_the_stored_sessions_cannot_resolve_fails(recorded: Project, tolerance: str) -> None:
    recorded.test(PERFORMANCE, f'throughput_floor("output_throughput_per_user", tolerance={tolerance})')
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_throughput_per_user cannot be judged: a tolerance of * % cannot be resolved by 10 stored sessions "
            "that vary by 1.8 %: the smallest is 1.97* %; 1 of 1 gate failed",
            "Next: give the gate tolerance=0.019*, or record more sessions, or on a quieter machine: pytest * --inferperf-set=sessions=20",
        ]
    )


def test_an_xfail_does_not_expect_a_tolerance_that_cannot_be_judged(recorded: Project) -> None:
    tight = 'throughput_floor("output_throughput_per_user", tolerance=0.005)'
    recorded.test(PERFORMANCE, tight, 'xfail(reason="issue 7")')
    recorded.run().assert_outcomes(failed=1)


def test_alpha_of_the_ini_file_reaches_the_gate(recorded: Project) -> None:
    recorded.engine(session_factors=[0.995])
    recorded.run("-o", "inferperf_alpha=0.2").assert_outcomes(passed=1)
    assert relaunches(recorded) == 0
    recorded.run("-o", "inferperf_alpha=0.01").assert_outcomes(passed=1)
    assert relaunches(recorded) > 0


def test_rounds_of_every_session_are_in_the_table_of_pytest_benchmark(recorded: Project) -> None:
    recorded.engine(session_factors=[0.97, 1.03])
    recorded.run("--benchmark-json=b.json").assert_outcomes(passed=1)
    (benchmark,) = json.loads((recorded.path / "b.json").read_text())["benchmarks"]
    assert benchmark["stats"]["rounds"] == 6
    assert benchmark["extra_info"]["inferperf.output_throughput_per_user"] == pytest.approx(100)


def test_tighten_follows_a_proven_gain_and_no_lucky_run(recorded: Project) -> None:
    before = (recorded.path / FILE).read_text()
    recorded.engine(session_factors=[speed * 1.005 for speed in SPREAD])
    lucky = recorded.run("--inferperf-update=tighten")
    lucky.stdout.fnmatch_lines(
        ["not recorded: *: output_throughput_per_user is not tightened: the gain may be noise: loss at most *"]
    )
    assert json.loads(before)["entries"].keys() == json.loads((recorded.path / FILE).read_text())["entries"].keys()
    assert stored(recorded)["output_throughput_per_user"]["sessions"][0] == pytest.approx([97.0] * 3)
    recorded.engine(session_factors=[speed * 1.05 for speed in SPREAD])
    recorded.run("--inferperf-update=tighten")
    assert stored(recorded)["output_throughput_per_user"]["sessions"][0] == pytest.approx([101.85] * 3)


def test_a_published_entry_is_not_added_to_so_nothing_more_is_measured(recorded: Project) -> None:
    data = json.loads((recorded.path / FILE).read_text())
    for entry in data["entries"].values():
        del entry["warmup_rounds"]
        entry["provenance"] = {"kind": "published", "source": "a paper"}
        entry["metrics"] = {"output_throughput_per_user": {"value": 90.0}}
    (recorded.path / FILE).write_text(json.dumps(data))
    recorded.run("--inferperf-update=new").stdout.fnmatch_lines(
        ["not recorded: *: the baseline is published (a paper)"]
    )
    assert relaunches(recorded) == 0


def stop_in_session_3(project: Project) -> None:
    """Press Ctrl-C while the third session is launched."""
    conftest = project.path / "conftest.py"
    launch = "        self.session += 1\n"
    stop = f"{launch}        if self.session == 2:\n            raise KeyboardInterrupt\n"
    conftest.write_text(conftest.read_text().replace(launch, stop))
    project.engine(session_factors=[0.97])


def test_ctrl_c_between_sessions_ends_the_run_and_keeps_what_was_measured(recorded: Project) -> None:
    """Also where the gate is open, that would be a warning, and warnings are errors."""
    stop_in_session_3(recorded)
    result = recorded.pytester.runpytest_subprocess(
        "-p", "no:xdist", "-W", "error", "-o", "inferperf_on_inconclusive=warn", "--inferperf-json=r.json"
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (record,) = json.loads((recorded.path / "r.json").read_text())["records"]
    assert record["result"]["invalid"] == "the test body failed: KeyboardInterrupt: "
    assert len(record["result"]["performance"]["sessions"]) == 2


def test_a_warning_that_is_an_error_is_the_message(recorded: Project) -> None:
    recorded.engine(session_factors=UNDECIDED)
    result = recorded.run("-W", "error", "-o", "inferperf_on_inconclusive=warn")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INCONCLUSIVE: output_throughput_per_user 97 *"])
    result.stdout.no_fnmatch_line("*warnings.warn*")
