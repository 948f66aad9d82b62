"""Expected times from past result files: the newest of the same case, on the same hardware where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.baselines.past import Past, read_past
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.model.case import Case, ReferenceEngine
from pytest_inferperf.model.results import Abba, Comparison, Hardware, PerformanceResult, Repeat, Session

Make = Callable[..., ResultRecord]
OTHER = Hardware(name="NVIDIA H200", count=8, kind="gpu")


def timed(record: ResultRecord, seconds: Sequence[float], *, load_s: float, on: Hardware | None = None) -> ResultRecord:
    """Give a record's rounds and its engine's load other durations."""
    result = record.result
    assert result.engine is not None
    assert result.performance is not None
    round_ = result.performance.sessions[0].rounds[0]
    session = Session(rounds=tuple(replace(round_, duration_s=item) for item in seconds), warmup_rounds=1)
    engine = replace(result.engine, load_s=load_s, hardware=on or result.engine.hardware)
    return replace(record, result=replace(result, engine=engine, performance=PerformanceResult(sessions=(session,))))


def file(created: str, *records: ResultRecord) -> ResultFile:
    return ResultFile(created=created, environment={}, records=records)


def test_the_mean_round(speed: Make, speed_case: Case, hardware: Hardware) -> None:
    past = Past([file("2026-01-01", timed(speed(output_throughput=1.0), [2.0, 4.0], load_s=30.0))])
    assert past.round_s(speed_case, hardware) == pytest.approx(3.0)
    assert past.load_s(speed_case.engine, hardware) == 30.0
    assert past.hardware(speed_case) == hardware


def test_newest_first_but_the_same_hardware_before(speed: Make, speed_case: Case, hardware: Hardware) -> None:
    record = speed(output_throughput=1.0)
    past = Past(
        [
            file("2026-01-02", timed(record, [2.0], load_s=2.0)),
            file("2026-01-01", timed(record, [1.0], load_s=1.0)),
            file("2026-01-03", timed(record, [3.0], load_s=3.0, on=OTHER)),
        ]
    )
    assert past.load_s(speed_case.engine, hardware) == 2.0
    assert past.round_s(speed_case, hardware) == pytest.approx(2.0)
    assert past.load_s(speed_case.engine, None) == 3.0
    assert past.round_s(speed_case, Hardware(name="CPU", count=1, kind="cpu")) == pytest.approx(3.0)


def test_tasks(answers: Make, task_case: Case) -> None:
    record = answers((1.0, 0.0))
    assert record.result.accuracy is not None
    accuracy = replace(record.result.accuracy, duration_s=42.0)
    past = Past([file("2026-01-01", replace(record, result=replace(record.result, accuracy=accuracy)))])
    assert past.evaluation_s(record.result.case, None) == 42.0
    assert past.metric(record.result.case) == accuracy.metric
    assert past.round_s(record.result.case, None) is None


def test_a_task_that_stopped_early_or_was_asked_twice(answers: Make) -> None:
    """The time of all four questions, by what was asked."""
    record = answers((1.0, 0.0))
    assert record.result.accuracy is not None
    part = replace(record.result.accuracy, duration_s=8.0, asked=(True, False, True, False))
    twice = replace(record.result.accuracy, duration_s=9.0, repeat=Repeat(questions=1, flips=0))
    for accuracy, seconds in ((part, 16.0), (twice, 6.0)):
        past = Past([file("2026-01-01", replace(record, result=replace(record.result, accuracy=accuracy)))])
        assert past.evaluation_s(record.result.case, None) == pytest.approx(seconds)


def test_comparisons(speed: Make, speed_case: Case, hardware: Hardware) -> None:
    """The reference engine's load, the rounds of both, and the blocks themselves: of valid runs, and of the same engine."""
    record = timed(speed(output_throughput=1.0), [2.0], load_s=30.0)
    result = record.result
    assert result.performance is not None
    assert result.engine is not None
    round_ = result.performance.sessions[0].rounds[0]
    reference = ReferenceEngine(label="BF16", spec=replace(speed_case.engine, quant="BF16", kv_cache_dtype="auto"))
    compared = Comparison(
        reference=reference,
        engine=replace(result.engine, load_s=12.0),
        blocks=(Abba(reference=(replace(round_, duration_s=5.0),), candidate=(replace(round_, duration_s=4.0),)),),
    )
    found = replace(record, result=replace(result, performance=None, comparisons=(compared,)))
    past = Past([file("2026-01-01", found)])
    assert past.round_s(speed_case, hardware) == 4.0
    assert past.load_s(reference.spec, hardware) == 12.0
    assert past.load_s(speed_case.engine, hardware) == 30.0
    assert past.compared(speed_case, reference, hardware) == (found.result, compared)
    renamed = replace(reference, label="quant=BF16", reload=True)
    assert past.compared(speed_case, renamed, hardware) is not None
    for other in (
        replace(reference, python="/old/bin/python"),
        replace(reference, spec=replace(reference.spec, quant="FP8")),
        replace(reference, spec=replace(reference.spec, engine_options=(("use_cache", False),))),
    ):
        assert past.compared(speed_case, other, hardware) is None
    failed = replace(compared.blocks[0].reference[0], num_failed_requests=1)
    broken = replace(compared, blocks=(replace(compared.blocks[0], reference=(failed,)),))
    for bad in (replace(found.result, invalid="throttled"), replace(found.result, comparisons=(broken,))):
        assert Past([file("2026-01-01", replace(found, result=bad))]).compared(speed_case, reference, hardware) is None


def test_another_case_says_nothing(speed: Make, speed_case: Case) -> None:
    past = Past([file("2026-01-01", speed(output_throughput=1.0))])
    assert speed_case.workload is not None
    longer = replace(speed_case, workload=replace(speed_case.workload, osl=999))
    assert past.round_s(longer, None) is None
    assert past.hardware(longer) is None
    assert past.load_s(longer.engine, None) is not None
    assert past.load_s(replace(longer.engine, tp=4), None) is None
    moved = replace(speed_case, engine=replace(speed_case.engine, model="/elsewhere"))
    assert past.round_s(moved, None) is not None
    assert not Past()
    assert past


def test_reads_a_file_or_a_folder(speed: Make, speed_case: Case, tmp_path: Path) -> None:
    write_result_file(tmp_path / "runs" / "1" / "r.json", file("2026-01-01", speed(output_throughput=1.0)))
    for path in (tmp_path / "runs", tmp_path / "runs" / "1" / "r.json"):
        assert read_past(path).hardware(speed_case) is not None


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultFileError, match=r"no \*\.json in this folder"):
        read_past(tmp_path)
    (tmp_path / "bad.json").write_text('{"created": ')
    with pytest.raises(ResultFileError, match=r"bad\.json: line 1.*not JSON"):
        read_past(tmp_path)
    with pytest.raises(ResultFileError, match=r"nowhere\.json: no such file"):
        read_past(tmp_path / "nowhere.json")
