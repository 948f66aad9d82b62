"""Values that the baseline tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    Hardware,
    PerformanceResult,
    Session,
)
from tests.values import engine_info, one_round

HARDWARE = Hardware(name="NVIDIA B200", count=8, kind="gpu")
CONTEXT = {"torch": "2.13.0", "git": "abc123"}


def _engine(**options: Any) -> EngineSpec:
    return EngineSpec(model="/m/Tiny", served_model_name="tiny", **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "baselines"


@pytest.fixture
def hardware() -> Hardware:
    return HARDWARE


@pytest.fixture
def speed_case() -> Case:
    return Case(
        engine=_engine(quant="NVFP4", kv_cache_dtype="fp8", tp=8), workload=Workload(isl=64, osl=32, sessions=1)
    )


@pytest.fixture
def task_case() -> Case:
    return Case(engine=_engine(), task=Task(name="sums", limit=10))


@pytest.fixture
def speed(speed_case: Case) -> Callable[..., ResultRecord]:
    """Make a record of a measurement: `speed(output_throughput=100.0)`."""

    def make(
        metrics: Mapping[str, float] | None = None,
        *,
        nodeid: str = "t.py::test_speed",
        failed: int = 0,
        invalid: str = "",
        warmup_rounds: int = 1,
        case: Case = speed_case,
        gates: tuple[Any, ...] = (),
        **named: float,
    ) -> ResultRecord:
        values = {**(metrics or {}), **named}
        item = one_round(
            values, duration_s=1.5, num_requests=4, num_failed_requests=failed, input_tokens=256, output_tokens=128
        )
        info = engine_info(
            backend="transformers",
            hardware=HARDWARE,
            quant_algo="NVFP4",
            kv_cache_quant_algo="FP8",
            compute_dtype="bfloat16",
            checkpoint="/c",
            checkpoint_hash="00ff",
            options={"use_cache": True, "sizes": [1, 2]},
            versions={"torch": "2.13.0"},
            load_s=2.25,
        )
        return ResultRecord(
            nodeid=nodeid,
            gates=gates,
            result=CaseResult(
                case=case,
                engine=info,
                performance=PerformanceResult(
                    sessions=(
                        Session(rounds=(item, item), warmup_rounds=warmup_rounds, telemetry={"cpu.others": 0.03}),
                    )
                ),
                invalid=invalid,
                context=CONTEXT,
            ),
        )

    return make


@pytest.fixture
def answers(task_case: Case) -> Callable[..., ResultRecord]:
    """Make a record of an evaluation: `answers((1.0, 0.0), quant="NVFP4")`."""

    def make(
        outcomes: tuple[float, ...],
        *,
        quant: str = "BF16",
        digest: str = "d1",
        metric: str = "exact_match",
        higher_is_better: bool = True,
        score: float | None = None,
        unparseable: tuple[bool, ...] | None = None,
        gates: tuple[Any, ...] = (),
    ) -> ResultRecord:
        return ResultRecord(
            nodeid=f"t.py::test_sums[{quant}]",
            gates=gates,
            result=CaseResult(
                case=Case(engine=_engine(quant=quant), task=task_case.task),
                accuracy=AccuracyResult(
                    task="sums",
                    metric=metric,
                    higher_is_better=higher_is_better,
                    score=sum(outcomes) / len(outcomes) if score is None else score,
                    outcomes=outcomes,
                    documents_digest=digest,
                    unparseable=(False,) * len(outcomes) if unparseable is None else unparseable,
                    scores={metric: 0.5},
                    duration_s=3.5,
                ),
                context=CONTEXT,
            ),
        )

    return make
