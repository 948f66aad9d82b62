"""`inferperf_fail_on_improvement`: a gain beyond the tolerance is a stale baseline, and fails only where the ini says so."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, Project

FLOOR = 'throughput_floor("output_throughput_per_user")'
INI = "[pytest]\ninferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n"
STRICT = INI + "inferperf_fail_on_improvement = true\n"
NOISY = [1.0, 1.002, 0.998, 1.001, 0.999, 1.003, 0.997, 1.0, 1.002, 0.998]


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a baseline of ten sessions."""
    project.engine(session_factors=NOISY)
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new")
    return project


def test_a_proven_gain_passes_and_says_that_the_baseline_is_stale(recorded: Project) -> None:
    recorded.engine(tpot_ms=8)
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*note: output_throughput_per_user: better by at least * %: the baseline is stale, tighten it: "
            "--inferperf-update=tighten, or inferperf baseline tighten RESULTS.json *"
        ]
    )


def test_a_proven_gain_fails_where_the_ini_says_so(recorded: Project) -> None:
    recorded.pytester.makeini(STRICT)
    recorded.engine(tpot_ms=8)
    result = recorded.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "output_throughput_per_user is better than its baseline by at least * %, more than the tolerance of 5 %: the "
            "baseline is stale, tighten it (inferperf_fail_on_improvement); 1 of 1 gate failed",
            "Next: pytest * --inferperf-update=tighten",
        ]
    )
    recorded.engine(tpot_ms=8, session_factors=NOISY)
    recorded.run("--inferperf-update=tighten")
    recorded.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("tpot_ms", [10, 9.7])
def test_no_gain_and_a_gain_within_the_tolerance_pass(recorded: Project, tpot_ms: float) -> None:
    recorded.pytester.makeini(STRICT)
    recorded.engine(tpot_ms=tpot_ms)
    result = recorded.run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*stale*")


def test_a_gain_that_the_bounds_do_not_prove_passes(project: Project) -> None:
    """The estimate is beyond the tolerance; its bound, among sessions that vary by 4 %, is not."""
    project.engine(session_factors=[1.0, 1.06, 0.95, 1.04, 0.96, 1.05, 0.95, 1.0, 1.04, 0.96])
    project.test(PERFORMANCE, FLOOR.replace(")", ", tolerance=0.2)"))
    project.run("--inferperf-update=new")
    project.pytester.makeini(STRICT)
    project.engine(tpot_ms=8.2)
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*stale*")


def test_an_uncalibrated_gain_is_not_proven(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new", "--inferperf-set=sessions=1")
    project.pytester.makeini(STRICT)
    project.engine(tpot_ms=5)
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*better beyond tolerance, which so few sessions do not prove: if the baseline is stale*"]
    )


def test_an_xfail_expects_no_gain(recorded: Project) -> None:
    recorded.pytester.makeini(STRICT)
    recorded.engine(tpot_ms=8)
    recorded.test(PERFORMANCE, FLOOR, 'xfail(reason="slow")')
    recorded.run().assert_outcomes(failed=1)
