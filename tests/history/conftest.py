"""A store of result files, made by the writer that runs use."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    Hardware,
    PerformanceResult,
    Placement,
    Session,
)
from pytest_inferperf.model.verdicts import GateVerdict, Status
from tests.values import engine_info, one_round

Add = Callable[..., Path]
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def record(
    value: float = 100.0,
    *,
    day: int = 0,
    score: float | None = None,
    invalid: str = "",
    driver: str = "570",
    shared: bool = False,
) -> ResultRecord:
    """Make a record of a measurement, or of an evaluation with a score; `shared` where others were let onto its node."""
    spec = EngineSpec(model="/srv/tiny", served_model_name="tiny", quant="NVFP4")
    info = engine_info(
        backend="scripted",
        hardware=Hardware(name="Test GPU", count=2, kind="gpu"),
        quant_algo="NVFP4",
        compute_dtype="bfloat16",
        max_model_len=4096,
        checkpoint="/srv/tiny",
        checkpoint_hash="c0ffee",
        options={"max_batch_size": 8},
        load_s=1.0 + day,
    )
    case = (
        Case(engine=spec, workload=Workload(isl=16, osl=8, concurrency=4))
        if score is None
        else Case(engine=spec, task=Task(name="gsm8k"))
    )
    rounds = tuple(
        one_round(
            {"output_throughput": value * factor, "ttft_ms.p99": 1000 / value},
            num_requests=4,
            input_tokens=64,
            output_tokens=32,
        )
        for factor in (0.9, 1.0, 1.2)
    )
    return ResultRecord(
        nodeid="test_it.py::test_it",
        status=Status.PASS,
        verdicts=(GateVerdict(gate="output_throughput", status=Status.PASS, measured=value, limit=90.0),),
        result=CaseResult(
            case=case,
            engine=info,
            performance=PerformanceResult(sessions=(Session(rounds=rounds, warmup_rounds=1),))
            if score is None
            else None,
            accuracy=None
            if score is None
            else AccuracyResult(
                task="gsm8k",
                metric="exact_match",
                higher_is_better=True,
                score=score,
                outcomes=(1.0, 0.0),
                documents_digest="d1",
            ),
            invalid=invalid,
            placement=Placement(
                engine="NVFP4 tiny", node="a (3f2a)", gpus=2, asked="22:00", granted="22:01", waited_s=60.0, shared=True
            )
            if shared
            else None,
            context={"git_commit": f"{day:012x}", "driver": driver},
        ),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def add(store: Path) -> Add:
    """Add the result file of a day: `add(3, record(100.0, day=3))`."""

    def make(day: int, *records: ResultRecord, name: str = "", environment: dict[str, str] | None = None) -> Path:
        path = store / (name or f"2026/run {day:03}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        created = (START + timedelta(days=day)).isoformat()
        write_result_file(path, ResultFile(created=created, environment=environment or {}, records=records))
        return path

    return make
