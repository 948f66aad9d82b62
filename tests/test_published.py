"""Results made from the published tables, replayed through the suites: each row gets the verdict it deserves.

The figures are written out again here: a baseline that was mistyped gives the wrong verdict.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    EngineInfo,
    Hardware,
    PerformanceResult,
    Session,
)
from pytest_inferperf.selection import bound_of
from tests.test_suites import items, run
from tests.values import engine_info, one_round

pytestmark = pytest.mark.newest

# pytester takes modules that a run imported out of sys.modules again; a second import would make second classes.
for _name in ("replay", "baselines.replay", "engines.replayed", "judging", "gates.judge", "fixture", "marks.gates"):
    importlib.import_module(f"pytest_inferperf.{_name}")

RECORDS = {
    ("deepseek-r1", 1): ("output_throughput_per_user", 250.0),
    ("deepseek-r1", 2048): ("output_throughput", 30_000.0),
    ("llama-4-maverick", 1): ("output_throughput_per_user", 1000.0),
    ("llama-4-maverick", 2048): ("output_throughput", 72_000.0),
}
"""By model and concurrency."""

SCORES = {
    "deepseek-r1": {
        "mmlu": (90.8, 90.7),
        "gsm8k": (96.3, 96.1),
        "aime24": (80.0, 80.0),
        "gpqa_diamond_cot_zeroshot": (69.7, 69.2),
        "hendrycks_math500": (95.4, 94.2),
    },
    "llama-3.1-405b": {"mmlu": (86.5, 86.1), "gsm8k": (96.3, 96.1)},
    "llama-3.3-70b": {"mmlu": (82.5, 80.5), "gsm8k": (95.3, 92.6)},
}
"""In percent: the reference, and NVFP4."""

QUESTIONS = {
    "mmlu": 14042,
    "gsm8k": 1319,
    "aime24": 30,
    "gpqa_diamond_cot_zeroshot": 198,
    "hendrycks_math500": 500,
}
RECORD_SUITES = ("deepseek_r1", "llama_4_maverick")
SCORE_SUITES = ("deepseek_r1", "llama_3_1_405b", "llama_3_3_70b")


@pytest.fixture
def suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        # These tests may run under xdist; the runs inside them do not.
        monkeypatch.delenv(name, raising=False)
    return pytester


def engine(case: Case) -> EngineInfo:
    return engine_info(
        backend="tensorrt_llm",
        hardware=Hardware(name="NVIDIA B200", count=8, kind="gpu"),
        quant_algo=case.engine.quant,
        compute_dtype="bfloat16",
        max_model_len=8192,
    )


def speed(case: Case, factor: float) -> PerformanceResult | None:
    """Make a session of a record, or of nothing that was published."""
    assert case.workload is not None
    found = RECORDS.get((case.engine.served_model_name, case.workload.concurrency))
    if found is None:
        return None
    metric, value = found
    one = one_round(
        {metric: factor * value},
        duration_s=10.0,
        num_requests=case.workload.concurrency,
        input_tokens=1024,
        output_tokens=2048,
    )
    return PerformanceResult(sessions=(Session(rounds=(one,), warmup_rounds=1),))


def answers(case: Case) -> AccuracyResult | None:
    assert case.task is not None
    found = SCORES.get(case.engine.served_model_name, {}).get(case.task.name)
    if found is None:
        return None
    count = QUESTIONS[case.task.name]
    right = round(count * found[case.engine.quant == "NVFP4"] / 100)
    return AccuracyResult(
        task=case.task.name,
        metric="acc" if case.task.name == "mmlu" else "exact_match",
        higher_is_better=True,
        score=right / count,
        outcomes=(1.0,) * right + (0.0,) * (count - right),
        documents_digest="d",
    )


def write(path: Path, collected: Iterable[pytest.Item], *, factor: float = 1.0) -> None:
    """Write what a machine would have written that measured exactly what was published."""
    records = []
    for item in collected:
        bound = bound_of(item)
        if bound is None:
            continue
        case = bound.case
        result = CaseResult(
            case=case,
            engine=engine(case),
            performance=speed(case, factor) if case.workload is not None else None,
            accuracy=answers(case) if case.task is not None else None,
        )
        if result.performance is not None or result.accuracy is not None:
            records.append(ResultRecord(nodeid=item.nodeid, result=result, gates=bound.gates))
    write_result_file(path, ResultFile(created="2026-01-01T00:00:00+00:00", environment={}, records=tuple(records)))


def replay(suites: pytest.Pytester, suite: str, *arguments: str, factor: float = 1.0) -> pytest.RunResult:
    path = suites.path / "published.json"
    write(path, items(suites, suite), factor=factor)
    return run(suites, suite, f"--inferperf-replay={path}", *arguments)


@pytest.mark.parametrize("suite", RECORD_SUITES)
@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "passed"), (0.95, "failed")])
def test_records_pass_and_5_percent_less_fails(
    suites: pytest.Pytester, suite: str, factor: float, outcome: str
) -> None:
    result = replay(suites, suite, "-k", "record", factor=factor)
    assert result.parseoutcomes().keys() - {"deselected"} == {outcome}
    assert result.parseoutcomes()[outcome] == 2


@pytest.mark.parametrize(("suite", "count"), [("deepseek_r1", 10), ("llama_3_1_405b", 4), ("llama_3_3_70b", 4)])
def test_published_scores_pass_and_say_that_nothing_was_paired(suites: pytest.Pytester, suite: str, count: int) -> None:
    result = replay(suites, suite, "-k", "accuracy or test_reference")
    assert result.parseoutcomes()["passed"] == count
    assert "failed" not in result.parseoutcomes()
    notes = [line for line in result.outlines if "unpaired and uncalibrated" in line]
    assert len(notes) == count


def test_llama_3_3_70b_fails_a_ceiling_of_one_point(suites: pytest.Pytester) -> None:
    suites.makepyfile(
        test_strict="""
        import pytest

        @pytest.mark.inferperf(model="org/x", served_model_name="llama-3.3-70b", quant="NVFP4", backend="tensorrt_llm")
        @pytest.mark.inferperf(tp=8, task=["mmlu", "gsm8k"])
        @pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
        def test_strict(inferperf):
            inferperf.evaluate()
        """
    )
    path = suites.path / "published.json"
    write(path, items(suites, "llama_3_3_70b"))
    result = run(suites, str(suites.path / "test_strict.py"), f"--inferperf-replay={path}")
    assert result.parseoutcomes() == {"failed": 2}
    result.stdout.fnmatch_lines(
        [
            "acc loss vs BF16 2.00 points is above its ceiling 1.00 (published 0.8250 -> 0.8050); *",
            "exact_match loss vs BF16 2.7* points is above its ceiling 1.00 (published 0.9530 -> 0.92*); *",
        ]
    )


@pytest.mark.parametrize("suite", ["nemotron_4", "blackwell_smoke"])
def test_what_was_not_published_has_no_result_and_does_not_pass(suites: pytest.Pytester, suite: str) -> None:
    outcomes = replay(suites, suite).parseoutcomes()
    assert "passed" not in outcomes
    assert outcomes["errors"] >= 4
