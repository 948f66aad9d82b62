"""From a spec to a running engine, through real processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_inferperf.engines import backends
from pytest_inferperf.engines.backends import BACKENDS, Backend, resolve_backend
from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.launch import open_engine
from pytest_inferperf.errors import CheckpointError, EngineError, MissingExtra
from pytest_inferperf.model.case import EngineSpec

Build = Callable[..., tuple[EngineSpec, Path]]


def test_builds_checks_and_runs_in_processes(source: Path, calibration: Path, tmp_path: Path) -> None:
    spec = EngineSpec(
        model=str(source), served_model_name="tiny", quant="NVFP4", kv_cache_dtype="fp8", calib_dataset=str(calibration)
    )
    lines: list[str] = []
    with open_engine(spec, cache_dir=tmp_path / "cache", progress=lines.append, log_dir=tmp_path / "logs") as engine:
        (answer,) = engine.generate([GenerationRequest(prompt=(1, 2, 3), max_tokens=6, ignore_eos=True)], concurrency=1)
        chunks = list(engine.stream(GenerationRequest(prompt=(1, 2, 3), max_tokens=6, ignore_eos=True)))
        (score,) = engine.loglikelihood([LogLikelihoodRequest(context=(1, 2), continuation=(3,))], concurrency=1)
        assert engine.info.quant_algo == "NVFP4"
        assert engine.info.kv_cache_quant_algo == "FP8"
        assert Path(engine.info.checkpoint).parent == tmp_path / "cache"
        with pytest.raises(EngineError, match="max_tokens=300 make 301, more than max_model_len=256"):
            engine.generate([GenerationRequest(prompt=(1,), max_tokens=300)], concurrency=1)
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
    assert score.logprob < 0
    assert "quantize tiny NVFP4+kv_fp8: calibrating 4/4" in lines
    assert "quantize tiny NVFP4+kv_fp8: done" in lines


def test_build_that_takes_too_long_is_a_checkpoint_error(source: Path, calibration: Path, tmp_path: Path) -> None:
    spec = EngineSpec(model=str(source), served_model_name="tiny", quant="FP8", calib_dataset=str(calibration))
    with pytest.raises(CheckpointError, match=r"gave no answer to 'build' within 0\.01 s"):
        open_engine(spec, cache_dir=tmp_path, build_timeout_s=0.01)


def test_backend_names_are_checked() -> None:
    assert resolve_backend("auto").name == "transformers"
    with pytest.raises(EngineError, match=r"unknown backend 'transformer'.\nDid you mean 'transformers'\?"):
        resolve_backend("transformer")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(MissingExtra, match=r'pip install "pytest-inferperf\[embedded\]"'):
        resolve_backend("transformers")


@pytest.mark.parametrize(
    ("gpu", "installed", "chosen"),
    [(True, True, "tensorrt_llm"), (False, True, "transformers"), (True, False, "transformers")],
)
def test_auto_prefers_tensorrt_llm_with_its_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: bool, chosen: str
) -> None:
    row = Backend(
        name="tensorrt_llm",
        class_path="x:Y",
        requires=("json",) if installed else ("no_such_module",),
        extra="tensorrt-llm",
    )
    monkeypatch.setitem(BACKENDS, "tensorrt_llm", row)
    monkeypatch.setattr(backends, "has_nvidia_gpu", lambda: gpu)
    assert resolve_backend("auto").name == chosen
