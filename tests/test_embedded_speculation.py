"""The suite of speculative decoding: the shipped draft model passes its gates, and a worse one does not."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.gates.performance import judge_performance
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import PerformanceResult
from pytest_inferperf.model.verdicts import Status
from tests.test_embedded_suite import SHARED

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "suites" / "embedded"


def run_suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark")
    command = [sys.executable, "-m", "pytest", str(SUITE / "test_speculative.py"), *plugins, *SHARED, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("untrained") / "draft"
    shutil.copytree(SUITE / "draft", folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "*.md"))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_shipped_draft_passes_the_floor_of_its_acceptance_length() -> None:
    done = run_suite("-k", "acceptance_length and BF16")
    assert done.returncode == 0, done.stdout
    assert "ok  acceptance_length" in done.stdout


@pytest.fixture(scope="module")
def suite() -> Any:
    spec = importlib.util.spec_from_file_location("embedded_test_speculative", SUITE / "test_speculative.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(suite: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The suite's engine, and the target alone, both in this process."""
    from pytest_inferperf.engines.transformers_engine import TransformersEngine
    from pytest_inferperf.model.case import EngineSpec

    def in_process(spec: EngineSpec) -> TransformersEngine:
        return TransformersEngine(spec, checkpoint=spec.model)

    monkeypatch.setattr(suite, "open_engine", in_process)
    options = (("draft_model", str(SUITE / "draft")), ("max_draft_len", 4), ("speculative", "draft_target"))
    spec = EngineSpec(model=str(SUITE / "model"), served_model_name="tiny", engine_options=options)
    with in_process(spec) as engine:
        yield engine


def test_untrained_draft_fails_the_floor(suite: Any, engine: Any, untrained: Path) -> None:
    """Its answers are as good as any; its proposals are not. Judged by the gate and the workload of the suite's marks."""
    from pytest_inferperf.engines.transformers_engine import TransformersEngine

    marks = {mark.name: mark.kwargs for mark in suite.test_acceptance_length.pytestmark}
    (limit,) = marks["throughput_floor"].values()
    gate = PerformanceGate(metric=parse_metric("acceptance_length"), limit=limit)
    workload = Workload(**marks["inferperf"])
    options = tuple(sorted({**dict(engine.spec.engine_options), "draft_model": str(untrained)}.items()))
    worse = replace(engine.spec, engine_options=options)
    with TransformersEngine(worse, checkpoint=worse.model) as poor:
        for some, expected in ((engine, Status.PASS), (poor, Status.FAIL)):
            measured = PerformanceResult(sessions=(measure_session(some, workload),))
            verdict = judge_performance(gate, measured, None, 0.05)
            assert verdict.status is expected, verdict


def test_gate_of_equal_answers_passes_an_intact_verify_step(suite: Any, engine: Any) -> None:
    suite.test_greedy_output_is_the_targets_own(engine)


def test_gate_of_equal_answers_fails_a_verify_step_that_believes_the_draft(
    suite: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One proposal too many in every step where the target chose otherwise: the draft is good, and most are right."""
    from pytest_inferperf.engines import speculation

    verify = speculation.verify

    def lenient(proposed: list[int], logits: Any, completion: Any, finish: Any) -> int:
        before = len(completion.tokens)
        accepted = verify(proposed, logits, completion, finish)
        if proposed and accepted <= len(proposed):
            completion.tokens[before + accepted - 1] = proposed[accepted - 1]
        return accepted

    monkeypatch.setattr(speculation, "verify", lenient)
    with pytest.raises(AssertionError, match=r"\d+ of 80 answers differ; prompt, found, expected: "):
        suite.test_greedy_output_is_the_targets_own(engine)


def test_gate_of_equal_answers_needs_speculation(suite: Any, engine: Any) -> None:
    """An engine that ignores its draft model gives equal answers, and proves nothing."""
    from pytest_inferperf.engines.transformers_engine import TransformersEngine

    plain = replace(engine.spec, engine_options=())
    with TransformersEngine(plain, checkpoint=plain.model) as alone, pytest.raises(AssertionError):
        suite.test_greedy_output_is_the_targets_own(alone)


def test_draft_is_small_and_speaks_the_models_vocabulary() -> None:
    assert (SUITE / "draft" / "model.safetensors").stat().st_size <= 2_000_000
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (SUITE / "draft" / name).read_bytes() == (SUITE / "model" / name).read_bytes()
