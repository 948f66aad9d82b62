"""A result file gives back what was written, and says what is wrong where it cannot."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import (
    ResultFile,
    ResultRecord,
    case_from_json,
    gate_from_json,
    gate_to_json,
    read_result_file,
    record_from_json,
    record_to_json,
    write_result_file,
)
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, Gate, PerformanceGate, SpeedupFloor
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import Abba, Comparison, Placement, Repeat
from pytest_inferperf.model.verdicts import GateVerdict, Status

Make = Callable[..., ResultRecord]


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


REFERENCE = ReferenceEngine(
    label="python=/venv/bin/python",
    spec=EngineSpec(model="m", served_model_name="m", engine_options=(("use_cache", False),)),
    python="/venv/bin/python",
    reload=True,
)
GATES: list[Gate] = [
    PerformanceGate(metric=parse_metric("ttft_ms.p99")),
    PerformanceGate(metric=parse_metric("output_throughput"), limit=5.0, tolerance=0.1),
    SpeedupFloor(metric=parse_metric("tpot_ms.p50"), reference=REFERENCE, ratio=1.5, tolerance=0.1),
    AccuracyLossCeiling(reference="BF16", points=1.0),
    AccuracyLossCeiling(reference="NVFP4+kv_fp8", percent=2.5, unparseable_points=0.5, metric="acc"),
    AccuracyFloor(points=61.5, metric="acc"),
]
VERDICT = GateVerdict(
    gate="ttft_ms.p99",
    status=Status.FAIL,
    unit="ms",
    higher_is_better=False,
    measured=12.5,
    limit=11.0,
    baseline=10.0,
    tolerance=0.1,
    source="baselines/x.json",
    reason="above its ceiling",
    next_step="do this",
    notes=("uncalibrated",),
    details={"flips": 3, "p": 0.04, "test": "exact"},
)


def placed(record: ResultRecord) -> ResultRecord:
    place = Placement(
        engine="FP8 llama", node="gpu-07 (3f2a9c01)", gpus=8, asked="2026-11-21", granted="2026-11-22", waited_s=1.5
    )
    return replace(record, nodeid="t.py::placed", result=replace(record.result, placement=place))


@pytest.fixture
def file(speed: Make, answers: Make) -> ResultFile:
    stopped = answers((1.0, 0.0), quant="FP8")
    assert stopped.result.accuracy is not None
    partial = replace(
        stopped.result.accuracy,
        asked=(False, True, False, True),
        sequential=True,
        groups=(0, 0, 1, 2),
        task_sizes=(1, 1),
        logprobs={3: (-0.5, -1.25, -2.0), 1: (-0.25, -3.0)},
        repeat=Repeat(questions=2, flips=1),
    )
    records = (
        replace(speed({"ttft_ms.p99": 12.5}), gates=tuple(GATES[:3]), verdicts=(VERDICT,), status=Status.FAIL),
        replace(answers((0.1, math.pi, -1e300)), gates=tuple(GATES[3:]), status=Status.PASS),
        answers((1.0, 0.0)),
        replace(stopped, result=replace(stopped.result, accuracy=partial)),
        ResultRecord(nodeid="t.py::none", result=replace(answers((1.0,)).result, accuracy=None, invalid="throttled")),
        placed(answers((1.0, 1.0))),
    )
    return ResultFile(created="2026-11-21T00:00:00+00:00", environment={"driver": "580"}, records=records)


def test_round_trip(tmp_path: Path, file: ResultFile) -> None:
    path = tmp_path / "r.json"
    write_result_file(path, file)
    assert read_result_file(path) == file
    assert names(tmp_path) == ["r.json"]


def test_comparisons_round_trip(tmp_path: Path, speed: Make, answers: Make) -> None:
    fast, right = speed({"ttft_ms.p99": 12.5}), answers((0.25, 1.0))
    assert fast.result.performance is not None
    assert fast.result.engine is not None
    rounds = fast.result.performance.sessions[0].rounds
    timed = Comparison(
        reference=REFERENCE,
        engine=fast.result.engine,
        blocks=(Abba(reference=rounds, candidate=rounds), Abba(reference=rounds, candidate=())),
        warmup_rounds=2,
    )
    answered = Comparison(reference=REFERENCE, engine=fast.result.engine, accuracy=right.result.accuracy)
    record = replace(fast, result=replace(fast.result, comparisons=(timed, answered)))
    path = tmp_path / "r.json"
    file = ResultFile(created="", environment={}, records=(record,))
    write_result_file(path, file)
    assert read_result_file(path) == file


def test_an_unknown_metric_of_a_comparison_is_named(tmp_path: Path, speed: Make) -> None:
    fast = speed({"ttft_ms.p99": 12.5})
    assert fast.result.performance is not None
    assert fast.result.engine is not None
    rounds = fast.result.performance.sessions[0].rounds
    timed = Comparison(reference=REFERENCE, engine=fast.result.engine, blocks=(Abba(reference=rounds, candidate=()),))
    path = tmp_path / "r.json"
    record = replace(fast, result=replace(fast.result, performance=None, comparisons=(timed,)))
    write_result_file(path, ResultFile(created="", environment={}, records=(record,)))
    path.write_text(path.read_text().replace("ttft_ms.p99", "ttft_msec.p99"))
    with pytest.raises(
        ResultFileError, match=r"records\[0\]\.result\.comparisons\[0\]: unknown metric 'ttft_msec\.p99'"
    ):
        read_result_file(path)


def test_records_travel_as_plain_data(file: ResultFile) -> None:
    for record in file.records:
        data = record_to_json(record)
        assert json.loads(json.dumps(data)) == data
        assert record_from_json(data) == record


@pytest.mark.parametrize("gate", GATES)
def test_gates(gate: Gate) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate


def test_cases(speed_case: Case, task_case: Case) -> None:
    engine = replace(speed_case.engine, engine_options=(("a", 1), ("b", None), ("c", 0.5)))
    for case in (speed_case, task_case, replace(speed_case, engine=engine)):
        assert case_from_json(json.loads(json.dumps(case.to_json()))) == case


def test_options_that_json_lacks_become_text(speed: Make) -> None:
    record = speed(output_throughput=1.0)
    assert record.result.engine is not None
    options = {"path": PurePosixPath("/x"), "nan": math.nan, "deep": {"t": (1, 2)}}
    engine = replace(record.result.engine, options=options)
    data = record_to_json(replace(record, result=replace(record.result, engine=engine)))
    assert data["result"]["engine"]["options"] == {"path": "/x", "nan": "nan", "deep": {"t": [1, 2]}}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999])
def test_cut_short(tmp_path: Path, file: ResultFile, share: float) -> None:
    path = tmp_path / "r.json"
    write_result_file(path, file)
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(ResultFileError) as caught:
        read_result_file(path)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: (the file is empty|line \d+, column \d+: not JSON: [^.]+)\. The run was interrupted or"
        r" the copy is incomplete: copy the file again, or repeat the run\.",
        str(caught.value),
    )


def test_wherever_it_is_cut(tmp_path: Path, speed: Make) -> None:
    path = tmp_path / "r.json"
    write_result_file(path, ResultFile(created="", environment={}, records=(speed(output_throughput=1.0),)))
    text = path.read_text().rstrip()
    for end in range(0, len(text), 5):
        path.write_text(text[:end])
        with pytest.raises(ResultFileError, match="The run was interrupted or the copy is incomplete"):
            read_result_file(path)


def test_no_such_file(tmp_path: Path) -> None:
    message = f"{tmp_path}/r.json: no such file. A run writes one with --inferperf-json=FILE."
    with pytest.raises(ResultFileError, match=f"^{re.escape(message)}$"):
        read_result_file(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"nodeid"', '"nodied"', "$.records[0]: unknown key 'nodied'. Did you mean 'nodeid'? Keys: gates, nodeid, result,"
         " status, verdicts."),
        ('"schema_version": 1', '"schema_version": 3', "schema_version 3 is newer than 1, the version this"
         " pytest-inferperf reads. Upgrade: pip install --upgrade pytest-inferperf"),
        ('"type": "performance"', '"type": "perf"', '$.records[0].gates[0].type: "perf" is not valid. Did you mean'
         " 'performance'? Valid values: accuracy_floor, accuracy_loss_ceiling, error_rate_ceiling, frontier_floor,"
             " performance, speedup_floor."),
        ('"points": 1.0', '"points": "1"', '$.records[1].gates[0].points: "1" is not a number or null.'),
        ('"status": "FAIL"', '"status": "BAD"', None),
        ('"metric": "output_throughput"', '"metric": "output_troughput"', None),
    ],
)  # fmt: skip
def test_wrong_content(tmp_path: Path, file: ResultFile, old: str, new: str, message: str | None) -> None:
    path = tmp_path / "r.json"
    write_result_file(path, file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ResultFileError) as caught:
        read_result_file(path)
    if message is not None:
        assert str(caught.value) == f"{path}: {message}"
    else:
        assert re.match(rf"{re.escape(str(path))}: \$\.records\[0\]\.", str(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asked": (True, False, False, False)}, "accuracy.asked: 1 for 2 documents. Every document has one."),
        ({"groups": (0, 0, 1)}, "accuracy.groups: 3 for 4 documents. Every document has one."),
        ({"task_sizes": (1, 2)}, "accuracy.task_sizes: 3 for 2 documents. Each is of one task."),
        ({"unparseable": (True,)}, "accuracy.unparseable: 1 for 2 documents. Every document has one."),
    ],
)
def test_counts_that_do_not_fit(tmp_path: Path, file: ResultFile, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "r.json"
    record = file.records[3]
    assert record.result.accuracy is not None
    wrong = replace(record, result=replace(record.result, accuracy=replace(record.result.accuracy, **changes)))
    write_result_file(path, replace(file, records=(wrong,)))
    with pytest.raises(ResultFileError, match=re.escape(message)):
        read_result_file(path)


def test_a_record_that_is_not_finite_is_left_out_alone(tmp_path: Path, file: ResultFile, speed: Make) -> None:
    path = tmp_path / "r.json"
    bad = [
        speed(output_throughput=math.nan, nodeid="t.py::nan"),
        replace(file.records[0], nodeid="t.py::inf", verdicts=(replace(VERDICT, measured=math.inf),)),
    ]
    message = (
        f"{path}: t.py::nan is left out: $.result.performance.sessions[0].rounds[0].metrics.output_throughput is nan.\n"
        f"{path}: t.py::inf is left out: $.verdicts[0].measured is inf.\n"
        "Whatever could not be measured is left out, not NaN; repair what measures it, and run the test again."
    )
    with pytest.raises(ResultFileError, match=f"^{re.escape(message)}$"):
        write_result_file(path, replace(file, records=(bad[0], *file.records, bad[1])))
    assert read_result_file(path) == file


def test_a_measured_metric_that_does_not_exist(tmp_path: Path, file: ResultFile) -> None:
    path = tmp_path / "r.json"
    write_result_file(path, file)
    path.write_text(path.read_text().replace('"ttft_ms.p99": 12.5', '"ttft_sm.p99": 12.5', 1))
    message = f"{path}: $.records[0].result.performance: unknown metric 'ttft_sm.p99'.\nDid you mean 'ttft_ms'? "
    with pytest.raises(ResultFileError, match=f"^{re.escape(message)}"):
        read_result_file(path)


def test_full_disk(tmp_path: Path, file: ResultFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "r.json"
    message = f"{path}: cannot be written: No space left on device. Nothing was written."
    with pytest.raises(ResultFileError, match=f"^{re.escape(message)}$"):
        write_result_file(path, file)
