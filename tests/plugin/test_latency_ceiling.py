"""`latency_ceiling`: the direction is the other one, and a slower engine fails."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, Project

CEILING = 'latency_ceiling("ttft_ms.p99", "tpot_ms.mean", "itl_ms.p50", "e2e_latency_ms.p90", tolerance=0.1)'


@pytest.fixture
def recorded(project: Project) -> Project:
    """A project with a recorded TTFT of 100 ms and TPOT of 10 ms."""
    project.test(PERFORMANCE, CEILING)
    project.run("--inferperf-update=new")
    return project


@pytest.mark.parametrize(
    ("script", "failing"),
    [
        ({}, []),
        ({"ttft_ms": 50}, []),
        ({"ttft_ms": 109}, []),
        ({"ttft_ms": 111}, ["ttft_ms.p99"]),
        ({"tpot_ms": 11.5}, ["tpot_ms.mean", "itl_ms.p50"]),
        ({"ttft_ms": 300, "tpot_ms": 30}, ["ttft_ms.p99", "tpot_ms.mean", "itl_ms.p50", "e2e_latency_ms.p90"]),
    ],
)
def test_slower_fails_and_faster_passes(recorded: Project, script: dict[str, float], failing: list[str]) -> None:
    recorded.engine(**script)
    result = recorded.run("-rN")
    result.assert_outcomes(**({"failed": 1} if failing else {"passed": 1}))
    section = "\n".join(result.outlines).partition("= inferperf =")[2]
    rows = [line.split() for line in section.splitlines()]
    assert [row[1] for row in rows if row[:1] == ["FAIL"]] == failing


def test_row_says_ceiling(recorded: Project) -> None:
    recorded.engine(ttft_ms=120)
    result = recorded.run()
    result.stdout.fnmatch_lines(
        [
            "ttft_ms.p99 120 ms is above its ceiling 110 (+20.0 % vs baseline 100); 2 of 4 gates failed",
            "  FAIL  ttft_ms.p99         120.00 <= 110.00 ms  baseline 100.00 +10 %  baselines/performance/*",
        ]
    )


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (
            'latency_ceiling("output_throughput")',
            "*latency_ceiling: 'output_throughput' is better when higher; use throughput_floor.",
        ),
        (
            'latency_ceiling("ttft_ms")',
            "*latency_ceiling: a statistic is missing in 'ttft_ms'. Write one of: ttft_ms.mean, ttft_ms.p50, *",
        ),
        (
            'latency_ceiling("ttft_ms.p42")',
            "*latency_ceiling: unknown statistic 'p42' in 'ttft_ms.p42'. Write one of: *",
        ),
        ('latency_ceiling("ttft")', "*latency_ceiling: unknown metric 'ttft'."),
        ("latency_ceiling(ttft_ms=5)", "*latency_ceiling: a statistic is missing in 'ttft_ms'. *"),
    ],
)
def test_wrong_mark(project: Project, mark: str, expected: str) -> None:
    project.test(PERFORMANCE, mark)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([expected])
