"""The real road, on a CPU: `transformers serve` is launched, measured, scored with lm-eval, and stopped."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pytest_inferperf.engines.interface import LogLikelihoodRequest
from pytest_inferperf.engines.launch import open_engine
from pytest_inferperf.engines.openai.served import ServedEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.evaluate import evaluate
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.model.case import EngineSpec, Task, Workload

EMBEDDED = Path(__file__).parents[3] / "suites" / "embedded"
TASK = Task(
    name="embedded_transform", path=str(EMBEDDED / "tasks" / "embedded_transform.yaml"), limit=50, early_stop=False
)


def test_server_is_launched_measured_scored_and_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The threads of torch in two processes would wait for each other on a small machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = EngineSpec(model=str(EMBEDDED / "model"), served_model_name="inferperf-tiny-llama")
    with open_engine(spec, log_dir=tmp_path) as engine:
        expected = evaluate(engine, TASK)

    served = EngineSpec(model=spec.model, served_model_name=spec.served_model_name, serve="transformers")
    engine = open_engine(served, log_dir=tmp_path)
    assert isinstance(engine, ServedEngine)
    with engine:
        processes = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
        found = evaluate(engine, TASK)
        # Long answers: on a machine whose cores are all busy the gap between two of them takes more than the share of
        # the concurrency that may be missing from short ones.
        session = measure_session(engine, Workload(isl=16, osl=96, concurrency=2, rounds=1, warmup_rounds=0))
        with pytest.raises(EngineError, match="returns no log-probabilities of prompts"):
            engine.loglikelihood([LogLikelihoodRequest(context=(5,), continuation=(6,))], concurrency=1)
        info = engine.info

    assert found.outcomes == expected.outcomes
    assert found.score == expected.score
    assert set(found.outcomes) == {0.0, 1.0}, "a task that is all right or all wrong shows nothing"
    (measured,) = session.rounds
    assert (measured.num_requests, measured.output_tokens, measured.input_tokens) == (2, 192, 32)
    assert measured.metrics["output_throughput"] > 0
    assert measured.metrics["ttft_ms.p50"] > 0
    assert (info.backend, info.quant_algo, check_engine(served, info)) == ("openai", None, "")
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive, "processes of the server outlived it"
    assert os.listdir(tmp_path), "no log was kept"  # noqa: PTH208
