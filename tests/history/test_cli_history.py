"""`inferperf history`, `trend`, `bisect-range` and `query`, as they are typed."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from pytest_inferperf import cli
from tests.history.conftest import Add, record


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def regressed(add: Add) -> None:
    """Thirty days; on the 21st a new driver costs 6 %."""
    noise = random.Random(1)
    for day in range(30):
        value = 100.0 * (0.94 if day >= 20 else 1.0) * (1 + noise.gauss(0, 0.005))
        add(day, record(value, day=day, driver="580" if day >= 20 else "570"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = cli.main(list(arguments))
    printed = capsys.readouterr()
    return status, (printed.out + printed.err).splitlines()


@pytest.mark.usefixtures("regressed")
def test_trend_names_the_step_its_size_and_where_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(capsys, "trend", "--metric", "output_throughput")
    assert status == 0
    assert lines[0].startswith("WORSE -")
    assert "tiny NVFP4-isl16-osl8-c4 output_throughput on Test GPU x2" in lines[0]
    size = float(lines[0].split()[1])
    assert -7 < size < -5
    assert lines[1:4] == [
        "  came     between 2026-01-20 00:00 and 2026-01-21 00:00, commits 000000000013..000000000014",
        "  changed  driver 570 -> 580",
        "  results  2026/run 019.json and 2026/run 020.json",
    ]
    assert "1 step, 1 for the worse, in 1 series." in lines


@pytest.mark.usefixtures("regressed")
def test_each_step_has_the_runs_around_it(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps on two days, of series that the last 25 results alone are looked at of."""
    noise = random.Random(2)
    for day in range(30):
        score = (0.7 if day >= 12 else 0.8) + noise.gauss(0, 0.002)
        add(day, record(day=day, score=score), name=f"scores/{day:03}.json")
    _, lines = run(capsys, "trend", "--last", "25")
    ends = {
        line.split("  ")[1].split(" on ")[0]: lines[number + 3] for number, line in enumerate(lines) if "WORSE" in line
    }
    assert ends == {
        "tiny NVFP4-gsm8k-exact_match exact_match": "  results  scores/011.json and scores/012.json",
        "tiny NVFP4-isl16-osl8-c4 output_throughput": "  results  2026/run 019.json and 2026/run 020.json",
        "tiny NVFP4-isl16-osl8-c4 ttft_ms.p99": "  results  2026/run 019.json and 2026/run 020.json",
    }


@pytest.mark.usefixtures("regressed")
def test_direction_comes_from_the_metric_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = run(capsys, "trend", "--metric", "ttft_ms.p99")
    assert lines[0].startswith("WORSE +")


def test_an_unchanged_series_has_no_step(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    noise = random.Random(2)
    for day in range(30):
        add(day, record(100 + noise.gauss(0, 1), day=day))
    assert run(capsys, "trend") == (0, ["No steps in 2 series."])


def test_scores_step_in_points(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(20):
        add(day, record(score=0.75 if day < 12 else 0.72, day=day))
    _, lines = run(capsys, "trend")
    assert lines[0].startswith("WORSE -3.0 points (-3.")
    assert "75.00 -> 72.00 points" in lines[0]


def test_invalid_runs_experiments_and_torn_files_make_no_step(
    store: Path, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in range(20):
        add(day, record(100.0 + 0.1 * (day % 3), day=day))
    add(20, record(50.0, day=20, invalid="throttled"))
    add(21, record(50.0, day=21), environment={"--inferperf-inject": "slowdown:50%"})
    (store / "torn.json").write_text('{"created": ')
    assert run(capsys, "trend")[1] == [
        "No steps in 2 series.",
        "2 results of invalid runs and of experiments left out.",
        "skipped torn.json: cut short, or not JSON",
    ]


SHARED = "others were let onto the node, and may have slowed it (column shared of the tables)."


def test_measurements_beside_others_make_no_step(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures on whole nodes are one."""
    noise = random.Random(3)
    values = [noise.gauss(100 if day < 20 else 80, 0.5) for day in range(30)]
    for day, value in enumerate(values):
        add(day, record(value, day=day, shared=day >= 20))
    assert run(capsys, "trend") == (0, ["No steps in 2 series.", f"10 measurements left out: {SHARED}"])
    for day, value in enumerate(values):
        add(day, record(value, day=day))
    _, lines = run(capsys, "trend", "--metric", "output_throughput")
    assert lines[0].startswith("WORSE -20.")
    assert lines[3] == "  results  2026/run 019.json and 2026/run 020.json"
    assert not any("left out" in line for line in lines)


def test_the_runs_around_a_step_had_their_nodes_to_themselves(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(30):
        add(day, record(100.0 if day < 20 else 80.0, day=day, shared=day in (19, 20)))
    _, lines = run(capsys, "bisect-range", "--metric", "output_throughput")
    assert lines[1].endswith("2026/run 018.json")
    assert lines[2].endswith("2026/run 021.json")
    assert lines[3] == f"2 measurements left out: {SHARED}"


def test_scores_beside_others_are_scores(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(20):
        add(day, record(score=0.75 if day < 12 else 0.72, day=day, shared=True))
    _, lines = run(capsys, "trend")
    assert lines[0].startswith("WORSE -3.0 points")
    assert not any("left out" in line for line in lines)


def test_history_counts_measurements_beside_others(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add(1, record(shared=True), record(), record(score=0.75, shared=True))
    header, row = run(capsys, "history")[1][:2]
    assert dict(zip(header.split(), row.split()[:1] + row.split()[2:], strict=False))["shared"] == "1"


@pytest.mark.usefixtures("regressed")
def test_bisect_range_shows_both_runs_and_all_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(capsys, "bisect-range", "--metric", "output_throughput")
    assert status == 0
    assert lines[1].startswith("  before  2026-01-20 00:00  000000000013  ")
    assert lines[2].startswith("  after   2026-01-21 00:00  000000000014  ")
    table = [line.split() for line in lines if line.startswith(("driver", "git_commit", "engine"))]
    assert table == [["driver", "570", "580"], ["git_commit", "000000000013", "000000000014"]]
    assert lines[-1] == "Next: git bisect start 000000000014 000000000013"


def test_bisect_range_without_a_step(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add(1, record())
    assert run(capsys, "bisect-range") == (
        2,
        [
            "inferperf: results: 0 steps found, so there is none of number 1. See inferperf trend with the same --metric "
            "and --case."
        ],
    )


@pytest.mark.usefixtures("regressed")
def test_a_choice_of_nothing_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = run(capsys, "trend", "--metric", "ttft")
    assert status == 2
    assert lines == [
        "inferperf: results: no results of metric 'ttft' and case 'any'. Metrics: output_throughput, ttft_ms.p99."
    ]
    assert run(capsys, "trend", "--case", "test gpu")[0] == 0
    assert run(capsys, "trend", "--case", "h100")[0] == 2


def test_short_series_are_said(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add(1, record())
    assert run(capsys, "trend")[1] == ["No steps in 2 series (2 with fewer than the 10 results that a step needs)."]


def test_history_lists_runs_and_compacts(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(3):
        add(day, record(day=day))
    expected = [
        "run               commit  tests  passed  failed  open  invalid  shared  file",
        "2026-01-02 00:00  000000000001  1  1  0  0  0  0  2026/run 001.json",
        "2026-01-03 00:00  000000000002  1  1  0  0  0  0  2026/run 002.json",
        "",
        "3 runs, 1 older not shown (--last).",
    ]
    for _ in range(2):
        status, lines = run(capsys, "history", "--last", "2")
        assert status == 0
        assert [line.split() for line in lines] == [line.split() for line in expected]
        assert run(capsys, "history", "compact", "results")[1] == [
            "3 runs in results/inferperf-history.parquet. The JSON files are as they were."
        ]


def test_history_takes_one_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "history", "a", "b") == (2, ["inferperf: history: one store is asked for, not 2: a b"])


def test_query(store: Path, add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    add(1, record(100.0))
    (store / "torn.json").write_text("{")
    sql = "SELECT metric, value FROM metrics ORDER BY metric"
    assert run(capsys, "query", sql) == (
        0,
        [
            "metric             value",
            "output_throughput  100.0",
            "ttft_ms.p99        10.0",
            "skipped torn.json: cut short, or not JSON",
        ],
    )
    cli.main(["query", sql, "results", "--csv"])
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows == [["metric", "value"], ["output_throughput", "100.0"], ["ttft_ms.p99", "10.0"]]
    assert run(capsys, "query", "COPY metrics TO 'x.csv'")[0] == 2
    assert not Path("x.csv").exists()
