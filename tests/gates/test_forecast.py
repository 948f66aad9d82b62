"""Forecasts of gates: what they promise is what the judges do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import get_args

import numpy as np
import pytest

from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    MetricBaseline,
    Missing,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
)
from pytest_inferperf.gates.forecast import OnFile, Unknown, forecast
from pytest_inferperf.gates.looks import Unresolvable
from pytest_inferperf.gates.odds import block_odds, floor_odds, question_odds, session_odds
from pytest_inferperf.gates.sessions import judge_sessions
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine, Task, Workload
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.plan import Foresight
from pytest_inferperf.model.results import Abba, Comparison, Hardware, Repeat, Round
from tests.values import engine_info, one_round

ENGINE = EngineSpec(model="/m", served_model_name="m", quant="NVFP4")
SPEED = Case(engine=ENGINE, workload=Workload(isl=8, osl=8))
SUMS = Case(engine=ENGINE, task=Task(name="sums"))
MEASURED = Provenance(kind="measured")
FLOOR = PerformanceGate(metric=parse_metric("output_throughput"))
CEILING = AccuracyLossCeiling(reference="BF16", points=2.0)


def sessions(logs: Iterable[float]) -> tuple[tuple[float, ...], ...]:
    return tuple((100 * math.exp(value),) * 3 for value in logs)


def spread(sd: float, count: int) -> tuple[tuple[float, ...], ...]:
    """Sessions whose log means have exactly this standard deviation."""
    values = np.linspace(-1, 1, count)
    return sessions((values / values.std(ddof=1) * sd).tolist())


def speeds(
    *stored: tuple[float, ...], value: float | None = None, tolerance: float | None = None, warmup_rounds: int = 1
) -> OnFile:
    baseline = MetricBaseline(sessions=stored, value=value, tolerance=tolerance)
    entry = PerformanceEntry(
        path="b/x.json",
        key="K",
        metrics={"output_throughput": baseline},
        warmup_rounds=warmup_rounds,
        provenance=MEASURED,
    )
    return OnFile(case=SPEED, performance=entry)


def answers(reference: Sequence[float], own: Sequence[float] | None = None, *, higher: bool = True) -> OnFile:
    scores = {"BF16": reference} | ({} if own is None else {"NVFP4": own})
    entry = AccuracyEntry(
        path="a/m.json",
        key="sums-acc",
        metric="acc",
        higher_is_better=higher,
        documents_digest="d",
        num_documents=len(reference),
        scores={
            name: ScoreEntry(
                score=sum(values) / max(1, len(values)), outcomes=tuple(values), unparseable=None, provenance=MEASURED
            )
            for name, values in scores.items()
        },
    )
    return OnFile(case=SUMS, accuracy=entry)


# Performance.


def test_calibrated_sessions() -> None:
    found = forecast(FLOOR, speeds(*spread(0.01, 10)))
    assert found.aim == "tolerance 5 %"
    assert found.state is Foresight.ABLE
    assert found.text == (
        "10 sessions, sd 1 %: finds 4.2 % with 90 % power in up to 5 sessions; an unchanged engine passes after 1.0; "
        "could hold 2.3 %"
    )


def test_a_gate_with_too_little_power_says_what_would_help() -> None:
    found = forecast(FLOOR, speeds(*spread(0.025, 12)))
    assert found.state is Foresight.WEAK
    assert found.text == (
        "12 sessions, sd 2.5 %: finds 5.3 % with 90 % power in up to 5 sessions; 19 stored sessions hold 5 %"
    )
    more = forecast(FLOOR, speeds(*spread(0.025, 19)))
    assert more.state is Foresight.ABLE
    hopeless = forecast(FLOOR, speeds(*spread(0.03, 8)))
    assert hopeless.state is Foresight.WEAK
    assert hopeless.text.endswith("; more stored sessions do not hold 5 %")


def test_a_tolerance_below_the_noise_cannot_decide() -> None:
    """The forecast refuses what the judge refuses, in its words."""
    stored = spread(0.03, 6)
    found = forecast(replace(FLOOR, tolerance=0.01), speeds(*stored))
    refused = judge_sessions(stored, stored[:1], higher_is_better=True, tolerance=0.01)
    assert isinstance(refused, Unresolvable)
    assert found.state is Foresight.UNABLE
    assert found.text == f"6 sessions, sd 3 %: {refused.reason}"


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_sessions_are_uncalibrated(count: int) -> None:
    found = forecast(FLOOR, speeds(*spread(0.01, 4)[:count]))
    assert found.state is Foresight.UNCALIBRATED
    head = "1 session" if count == 1 else "4 sessions"
    assert found.text == f"{head} of the 5 it takes: the plain tolerance judges, its error rates are unknown"


def test_equal_sessions_promise_no_more_than_is_believed() -> None:
    found = forecast(FLOOR, speeds(*sessions([0.0] * 6)))
    assert found.text.startswith("6 sessions, sd 0.01 %: finds 5 % with")


def test_lower_is_better() -> None:
    gate = PerformanceGate(metric=parse_metric("ttft_ms.p99"))
    known = speeds(*spread(0.01, 10))
    assert isinstance(known.performance, PerformanceEntry)
    entry = replace(known.performance, metrics={"ttft_ms.p99": known.performance.metrics["output_throughput"]})
    found = forecast(gate, replace(known, performance=entry))
    assert found.text.startswith("10 sessions, sd 1 %: finds 4.2 % with 90 % power in up to 5 sessions; an unchanged")


def test_power_and_alpha_are_those_asked_for() -> None:
    known = speeds(*spread(0.01, 10))
    assert "finds 3.5 % with 70 % power" in forecast(FLOOR, replace(known, power=0.7)).text
    assert "could hold 3 %" in forecast(FLOOR, replace(known, alpha=0.01)).text


@pytest.mark.parametrize(
    ("mark", "entry", "expected"),
    [(None, None, "tolerance 5 %"), (None, 0.08, "tolerance 8 %"), (0.1, 0.08, "tolerance 10 %")],
)
def test_tolerance_goes_from_mark_to_entry_to_default(mark: float | None, entry: float | None, expected: str) -> None:
    known = speeds(*spread(0.01, 10), tolerance=entry)
    assert forecast(replace(FLOOR, tolerance=mark), known).aim == expected


def test_absolute_and_published_limits() -> None:
    absolute = forecast(replace(FLOOR, limit=200.0), OnFile(case=SPEED))
    assert (absolute.aim, absolute.state, absolute.text) == (
        "limit 200 tok/s",
        Foresight.ABLE,
        "absolute limit: no baseline",
    )
    published = forecast(FLOOR, replace(speeds(value=150.0), performance_on="8 x B200"))
    assert (published.aim, published.text) == (
        "limit 150 tok/s",
        "published limit on 8 x B200: no sessions to compare with",
    )


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (OnFile(case=SPEED, performance=Missing(path="p", key="K", reason="no such file")), "p: no such file; key K"),
        (
            speeds(*spread(0.01, 10), warmup_rounds=0),
            "b/x.json: recorded after 0 warm-up rounds, this run after 1; key K",
        ),
        (OnFile(case=SPEED), ": none was looked up; key "),
    ],
)
def test_missing_performance(known: OnFile, text: str) -> None:
    found = forecast(FLOOR, known)
    assert found.state is Foresight.MISSING
    assert found.text == text
    assert found.next_step == "pytest {nodeid} --inferperf-update=new"


def test_an_entry_without_the_metric() -> None:
    gate = PerformanceGate(metric=parse_metric("tpot_ms.p50"))
    assert forecast(gate, speeds(*spread(0.01, 10))).text == "b/x.json: the entry has no tpot_ms.p50; key K"


# Accuracy.


def binary(right: int, count: int) -> list[float]:
    return [1.0] * right + [0.0] * (count - right)


def flipped(values: Sequence[float], every: int) -> list[float]:
    return [1 - value if index % every == 0 else value for index, value in enumerate(values)]


def test_assumed_flips() -> None:
    found = forecast(CEILING, answers(binary(9000, 14042)))
    assert (found.gate, found.aim, found.state) == ("acc loss vs BF16", "tolerance 2 points", Foresight.ABLE)
    assert found.text == (
        "14042 questions, 5 % flips assumed: finds 1.8 points with 90 % power; an unchanged engine passes after 3518"
    )


def test_flips_on_file() -> None:
    reference = binary(3000, 4000)
    found = forecast(CEILING, answers(reference, flipped(reference, 50)))
    assert found.text == (
        "4000 questions, 2 % flips on file: finds 1.9 points with 90 % power; an unchanged engine passes after 1624"
    )


def test_its_own_answers_say_nothing_about_flips() -> None:
    """A reference compared with itself has no flips on file: what was stored is one run."""
    known = answers(binary(3000, 4000))
    bf16 = replace(known, case=replace(SUMS, engine=replace(ENGINE, quant="BF16")))
    assert "5 % flips assumed" in forecast(CEILING, bf16).text


def test_no_flips_at_all() -> None:
    reference = binary(3000, 4000)
    found = forecast(CEILING, answers(reference, reference))
    assert found.state is Foresight.ABLE
    assert "0 % flips on file" in found.text


def test_too_few_questions_to_be_sure() -> None:
    found = forecast(CEILING, answers(binary(900, 1319)))
    assert found.state is Foresight.WEAK
    assert (
        found.text
        == "1319 questions, 5 % flips assumed: finds 2.9 points with 90 % power; 4882 questions hold 2 points"
    )
    assert forecast(CEILING, answers(binary(3500, 4890))).state is Foresight.ABLE


@pytest.mark.parametrize(
    ("points", "count", "text"),
    [
        (
            0.5,
            1319,
            "1319 questions, 5 % flips assumed: 0.5 points cannot be resolved, the smallest is 1.2 points; "
            "it takes 20609 questions",
        ),
        (0.1, 600, "600 questions: 0.1 points cannot be resolved; the smallest is 0.6 points"),
    ],
)
def test_questions_that_cannot_resolve_the_tolerance(points: float, count: int, text: str) -> None:
    found = forecast(replace(CEILING, points=points), answers(binary(count // 2, count)))
    assert found.state is Foresight.UNABLE
    assert found.text == text


def test_perplexity() -> None:
    gate = AccuracyLossCeiling(reference="BF16", percent=3.0)
    reference = [1.0 + 0.001 * (index % 7) for index in range(500)]
    alone = forecast(gate, answers(reference, higher=False))
    assert alone.state is Foresight.UNKNOWN
    assert alone.text == "500 questions: how far answers differ is known after the first recorded run"
    own = [value + (0.02 if index % 2 else -0.02) for index, value in enumerate(reference)]
    found = forecast(gate, answers(reference, own, higher=False))
    assert found.state is Foresight.ABLE
    assert found.text == (
        "500 questions, answers of NVFP4 on file: finds 2.8 % with 90 % power; an unchanged engine passes after 125"
    )


@pytest.mark.parametrize(
    ("gate", "known", "text"),
    [
        (CEILING, answers([3.0] * 9), "acc is not a score between 0 and 1 that is better when higher: use percent="),
        (CEILING, answers(binary(0, 600)), "600 questions: the reference is wrong on all 600 questions*"),
        (
            AccuracyLossCeiling(reference="BF16", percent=1.0),
            answers(binary(0, 9)),
            "the reference is 0, and a percentage of it is undefined: use points=",
        ),
        (CEILING, OnFile(case=SUMS, accuracy=Unknown(reason="a/m.json: not JSON", broken=True)), "a/m.json: not JSON"),
    ],
)
def test_accuracy_gates_that_cannot_decide(gate: Gate, known: OnFile, text: str) -> None:
    found = forecast(gate, known)
    assert found.state is Foresight.UNABLE
    assert found.text.startswith(text.rstrip("*"))


def test_a_published_reference_judges_uncalibrated() -> None:
    found = forecast(CEILING, answers([]))
    assert (found.state, found.used) == (Foresight.UNCALIBRATED, None)
    assert found.text == "published BF16, no answers to pair with: the scores of all questions are compared"


def test_missing_reference() -> None:
    found = forecast(replace(CEILING, reference="FP8"), answers(binary(5, 9)))
    assert found.state is Foresight.MISSING
    assert found.text == "a/m.json: no FP8 beside BF16; key sums-acc"
    assert found.next_step == "evaluate the same task with quant='FP8' and --inferperf-update=new"
    absent = OnFile(case=SUMS, accuracy=Missing(path="a/m.json", key="sums-acc", reason="no such entry"))
    assert forecast(CEILING, absent).text == "a/m.json: no such entry; key sums-acc"


def test_metric_that_is_not_known_yet() -> None:
    found = forecast(CEILING, OnFile(case=SUMS, accuracy=Unknown(reason="two metrics")))
    assert (found.gate, found.state, found.text) == ("accuracy loss vs BF16", Foresight.UNKNOWN, "two metrics")


def test_accuracy_floor() -> None:
    gate = AccuracyFloor(points=50.0)
    assert forecast(gate, OnFile(case=SUMS)).text == "absolute limit: no baseline"
    found = forecast(gate, answers(binary(5, 400)))
    assert found.aim == "limit 50 points"
    assert found.text == "absolute limit: no baseline; a score of 400 questions has a standard error of 2.5 points"


def test_every_kind_of_gate_has_a_row() -> None:
    reference = ReferenceEngine(label="BF16", spec=replace(ENGINE, quant="BF16"))
    made: dict[type, Gate] = {
        PerformanceGate: FLOOR,
        SpeedupFloor: SpeedupFloor(metric=FLOOR.metric, reference=reference),
        AccuracyLossCeiling: CEILING,
        AccuracyFloor: AccuracyFloor(points=50.0),
        ErrorRateCeiling: ErrorRateCeiling(share=0.01),
    }
    # A frontier gate is forecast from all points of its sweep: `forecast_frontier`.
    assert {*made, FrontierFloor} == set(get_args(Gate))
    for gate in made.values():
        assert forecast(gate, OnFile(case=SPEED)).gate in (gate.name, "accuracy loss vs BF16")


# Speedups.

OVER = SpeedupFloor(
    metric=parse_metric("output_throughput"),
    reference=ReferenceEngine(label="BF16", spec=replace(ENGINE, quant="BF16")),
    tolerance=0.03,
)


def beside(*differences: float, metric: str = "output_throughput") -> OnFile:
    """A past run whose blocks show these relative gains of the candidate, in logs."""

    def rounds(value: float) -> tuple[Round, ...]:
        one = one_round({metric: value}, input_tokens=8, output_tokens=8)
        return (one, one)

    engine = engine_info(backend="b", hardware=Hardware(name="CPU", count=1, kind="cpu"), max_model_len=64)
    blocks = tuple(Abba(reference=rounds(100.0), candidate=rounds(100 * math.exp(item))) for item in differences)
    return OnFile(
        case=SPEED,
        compared={OVER.reference: Comparison(reference=OVER.reference, engine=engine, blocks=blocks)},
    )


def blocks(sd: float, count: int, gain: float = 0.0) -> OnFile:
    values = np.linspace(-1, 1, count)
    return beside(*(values / values.std(ddof=1) * sd + gain).tolist())


def test_a_speedup_before_its_first_run() -> None:
    found = forecast(OVER, OnFile(case=SPEED))
    assert (found.gate, found.aim, found.state, found.used) == (
        "output_throughput vs BF16",
        "tolerance 3 %",
        Foresight.UNKNOWN,
        None,
    )
    assert found.text == "interleaved in up to 10 blocks: how far they vary is known after the first run"


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (beside(0.0, 0.01), "the past run has 2 blocks of output_throughput, too few to say more"),
        (
            beside(0.0, 0.0, 0.0, metric="tpot_ms"),
            "the past run has 0 blocks of output_throughput, too few to say more",
        ),
        (beside(0.0, 0.0, math.inf), "the past run is of no use (candidate session 3 measured inf: *)"),
    ],
)
def test_past_blocks_that_say_nothing(known: OnFile, text: str) -> None:
    found = forecast(OVER, known)
    assert found.state is Foresight.UNKNOWN
    assert fnmatch(found.text, f"interleaved in up to 10 blocks: {text}")


def test_past_blocks_say_what_a_speedup_can_find() -> None:
    found = forecast(OVER, blocks(0.01, 5))
    assert found.state is Foresight.ABLE
    assert found.text == (
        "interleaved in up to 10 blocks, 5 on file, sd 1 %: finds 2.6 % with 90 % power; 1 x, as on file, passes after 3.9; "
        "could hold 1.5 %"
    )
    odds = block_odds(sd=0.01, loss=0.0, tolerance=0.03)
    assert found.used == pytest.approx(odds.used, abs=0.05)


def test_an_engine_far_above_its_ratio_takes_the_fewest_blocks() -> None:
    found = forecast(replace(OVER, ratio=1.5), blocks(0.01, 3, gain=math.log(1.8)))
    assert found.aim == "1.5 x, tolerance 3 %"
    assert "; 1.8 x, as on file, passes after 3.0" in found.text
    assert found.used == pytest.approx(3.0, abs=0.01)


def test_blocks_that_vary_too_much_say_what_they_hold() -> None:
    found = forecast(OVER, blocks(0.05, 10))
    assert found.state is Foresight.WEAK
    assert "1 x, as on file, passes in " in found.text
    held = re.search(r"such blocks hold ([\d.]+) %$", found.text)
    assert held is not None
    able = forecast(replace(OVER, tolerance=float(held[1]) / 100 + 0.002), blocks(0.05, 10))
    assert able.state is Foresight.ABLE


def test_a_speedup_takes_the_default_tolerance_and_the_direction_of_its_metric() -> None:
    lower = replace(OVER, tolerance=None, metric=parse_metric("ttft_ms.p50"))
    found = forecast(lower, replace(beside(*[0.05, 0.06, 0.055], metric="ttft_ms.p50"), default_tolerance=0.04))
    assert found.aim == "tolerance 4 %"
    assert "0.946 x, as on file, passes in 0 % of runs" in found.text


# What an unchanged engine takes.


def test_used_of_sessions() -> None:
    known = speeds(*spread(0.02, 10))
    odds = session_odds(sd=0.02, baseline_sessions=10, loss=0.0, tolerance=0.05)
    assert forecast(FLOOR, known).used == pytest.approx(odds.used)
    assert forecast(FLOOR, speeds(*spread(0.01, 3))).used == 1.0
    assert forecast(FLOOR, OnFile(case=SPEED)).used is None


def test_used_of_questions_is_that_of_the_answers_on_file() -> None:
    """A candidate that lost 1.5 points when it was recorded loses them again: it takes longer than one without loss."""
    reference = binary(3000, 4000)
    worse = [0.0] * 60 + reference[60:]
    found = forecast(CEILING, answers(reference, worse))
    odds = question_odds(spread=0.015, questions=4000, loss=0.015, tolerance=0.02)
    assert found.used == pytest.approx(odds.used / 4000)
    assert odds.passes < 0.9
    assert f"an unchanged engine passes in {100 * odds.passes:.3g} % of runs" in found.text


def test_without_early_stop_every_question_is_asked_and_judged_once() -> None:
    known = answers(binary(900, 1319))
    once = replace(known, case=replace(SUMS, task=Task(name="sums", early_stop=False)))
    found = forecast(CEILING, once)
    assert found.used == 1.0
    assert "finds 2.8 points" in found.text
    assert "finds 2.9 points" in forecast(CEILING, known).text


def test_used_of_a_floor() -> None:
    known = answers(binary(5, 400), binary(300, 400))
    odds = floor_odds(score=0.75, questions=400, floor=0.5)
    assert forecast(AccuracyFloor(points=50.0), known).used == pytest.approx(odds.used / 400)
    grouped = replace(known, case=replace(SUMS, task=Task(name="sums", group_by="passage")))
    assert forecast(AccuracyFloor(points=50.0), grouped).used is None
    assert forecast(AccuracyFloor(points=50.0), OnFile(case=SUMS)).used is None


# A/A flips.


def repeated(flips: int, quant: str) -> OnFile:
    known = answers(binary(3000, 4000))
    assert isinstance(known.accuracy, AccuracyEntry)
    score = replace(known.accuracy.scores["BF16"], repeat=Repeat(questions=1000, flips=flips))
    return replace(
        known,
        accuracy=replace(known.accuracy, scores={"BF16": score}),
        case=replace(SUMS, engine=replace(ENGINE, quant=quant)),
    )


@pytest.mark.parametrize(
    ("flips", "quant", "text"),
    [
        (7, "BF16", "0.7 % A/A flips on file"),
        (7, "NVFP4", "5 % flips assumed"),
        (80, "NVFP4", "8 % A/A flips on file"),
    ],
)
def test_a_a_flips(flips: int, quant: str, text: str) -> None:
    """The reference itself flips as it did when asked twice; another engine flips no less."""
    assert forecast(CEILING, repeated(flips, quant)).text.startswith(f"4000 questions, {text}: ")
