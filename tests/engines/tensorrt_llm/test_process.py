"""The backend in its own process, as every run has it: the stand-in reaches it by PYTHONPATH."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines import supervisor
from pytest_inferperf.engines.backends import BACKENDS
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from tests.engines.tensorrt_llm.conftest import STAND_IN, VERSIONS, Start, spec_of

REQUEST = GenerationRequest(prompt=(10, 11, 12), max_tokens=6, ignore_eos=True)


@pytest.fixture
def launch(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(supervisor, "GRACE_S", 2.0)
    for folder in (STAND_IN, STAND_IN / "light"):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TRTLLM_STAND_IN_MARKER", str(tmp_path / "shut-down"))
    engines: list[EngineProcess] = []

    def launch(spec: EngineSpec, **changes: Any) -> EngineProcess:
        engines.append(
            EngineProcess(
                spec,
                class_path=BACKENDS["tensorrt_llm"].class_path,
                checkpoint=checkpoints[spec.quant],
                log_dir=tmp_path / "logs",
                **{"load_timeout_s": 60, "call_timeout_s": 60, **changes},
            )
        )
        return engines[-1]

    yield launch
    for engine in engines:
        engine.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("version", VERSIONS)
def test_it_generates_relaunches_and_is_shut_down(
    launch: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
    engine = launch(spec_of("NVFP4", "fp8", tp=8, ep=8, speculative="mtp", max_draft_len=1))
    assert engine.info.versions == {"tensorrt_llm": version}
    (before,) = engine.generate([REQUEST], concurrency=1)
    assert (before.token_ids, before.decoding_steps) == ((13, 14, 15, 16, 17, 18), 4)
    first = engine.pid
    engine.relaunch()
    assert not is_alive(first)
    assert tuple(token for chunk in engine.stream(REQUEST) for token in chunk.token_ids) == before.token_ids
    (tmp_path / "shut-down").unlink()
    engine.close()
    assert (tmp_path / "shut-down").read_text() == "shut down"


def test_ranks_are_started_from_a_single_task_of_slurm(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun --ntasks=1 pytest`: to the engine, MPI must not look like a task, or it would start no ranks."""
    for name, value in {"SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    engine = launch(spec_of(tp=8))
    assert engine.info.hardware.words == "8 x NVIDIA B200"


def test_out_of_memory_is_named(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "oom")
    with pytest.raises(EngineError, match=r"failed: out of memory: Executor worker returned error: CUDA out of memory"):
        launch(spec_of())


def test_a_worker_that_dies_is_an_error(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "dies")
    engine = launch(spec_of())
    with pytest.raises(EngineError, match=r"ended with exit status 9"):
        engine.generate([REQUEST], concurrency=1)


def test_a_request_that_is_refused_is_an_error_and_the_engine_goes_on(
    launch: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = launch(spec_of(max_num_tokens=4))
    with pytest.raises(EngineError, match=r"max_num_tokens=4"):
        engine.generate([GenerationRequest(prompt=(1, 2, 3, 4, 5), max_tokens=1)], concurrency=1)
    assert len(engine.generate([REQUEST], concurrency=1)) == 1


def test_an_engine_that_hangs_is_killed(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "hangs")
    engine = launch(spec_of(), call_timeout_s=0.5)
    with pytest.raises(EngineError, match=r"gave no answer to 'generate' within 0\.5 s and was killed"):
        engine.generate([REQUEST], concurrency=1)
    assert not is_alive(engine.pid)


def test_an_argument_that_the_release_lacks_is_named(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", "1.2.1")
    with pytest.raises(
        EngineError, match=r"'nvfp4_gemm_backends': TensorRT-LLM 1\.2\.1 has no argument 'nvfp4_gemm_conf"
    ):
        launch(spec_of(nvfp4_gemm_backends="cutlass"))
