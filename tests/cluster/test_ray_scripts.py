"""The scripts that compare Ray with a plain run: what they call a difference, and what they time."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.case import Case, EngineSpec, Task
from pytest_inferperf.model.results import AccuracyResult, CaseResult
from pytest_inferperf.model.verdicts import Status

# At the end: what is tested is the installed package.
sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.ray_cost import figures_of
from benchmarks.ray_outcomes import Run, problems_of


def record(*, nats: float = -1.0, outcomes: tuple[float, ...] = (1.0, 0.0), note: str = "") -> ResultRecord:
    engine = EngineSpec(model="m", served_model_name="m", backend="transformers", quant="BF16")
    accuracy = AccuracyResult(
        task="t",
        metric="acc",
        higher_is_better=True,
        score=0.5,
        outcomes=outcomes,
        documents_digest="0",
        logprobs={0: (nats,)},
    )
    result = CaseResult(case=Case(engine=engine, task=Task(name="t")), accuracy=accuracy, notes=(note,) if note else ())
    return ResultRecord(nodeid="t", result=result, status=Status.PASS)


def run(found: ResultRecord, ended: str = "passed") -> Run:
    return Run(outcomes={"t": ended}, records={"t": found}, end="")


PLAIN = run(record())
TWO = "requests answered by 2 of 2 replicas: node a 1 in 1 part, node a 1 in 2 parts"


def test_answers_that_are_alike_are_no_difference() -> None:
    assert problems_of(PLAIN, run(record(note=TWO, nats=-1.005)), "t", 2) == []
    assert problems_of(PLAIN, run(record()), "t", 1) == []


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (run(record(note=TWO, outcomes=(0.0, 1.0))), "outcomes: (1.0, 0.0) -> (0.0, 1.0)"),
        (run(record(note=TWO, nats=-1.5)), "log-probabilities moved by up to 0.5000 nats"),
        (run(record(note=TWO), "failure"), "passed -> failure"),
        (run(replace(record(note=TWO), status=Status.FAIL)), f"verdict: {Status.PASS} -> {Status.FAIL}"),
        (run(record()), "1 of 2 replicas answered"),
        (Run(outcomes={"t": "passed"}, records={}, end=""), "has no result"),
    ],
)
def test_whatever_is_otherwise_or_was_answered_by_fewer_is_named(found: Run, problem: str) -> None:
    assert problems_of(PLAIN, found, "t", 2) == [problem]


def test_start_engines_cases_and_end_are_told_apart() -> None:
    phases: list[tuple[str, str, float, float]] = []
    for number, load in enumerate([4.0, 0.01, 3.0, 0.01]):
        at = 100.0 + 10 * number
        phases += [(f"t{number}", "setup", at, at + load), (f"t{number}", "call", at + load, at + load + 2)]
        phases += [(f"t{number}", "teardown", at + load + 2, at + load + 2.01)]
    clock = {"phases": phases, "cpu_s": {"pytest": 4.0, "head": 0.4, "node": 0.0}}
    found = figures_of(clock, 1000, begun=99.0, ended=140.0)
    assert found["start"] == pytest.approx(5.0)
    assert found["engine"] == pytest.approx(3.0)
    assert found["case"] == pytest.approx(0.02)
    assert found["1,000 documents"] == pytest.approx(8.0)
    assert found["end"] == pytest.approx(140.0 - 132.02)
    assert found["CPU of the head by case"] == pytest.approx(0.1)
