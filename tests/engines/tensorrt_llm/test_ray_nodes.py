"""`orchestrator="ray"`: what is refused before TensorRT-LLM would wait for ever, and what hardware the engine ran on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_inferperf.engines.backends import BACKENDS
from pytest_inferperf.engines.needs import implied_need
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.errors import EngineError
from tests.engines.tensorrt_llm.conftest import STAND_IN, VERSIONS, Start, spec_of


@pytest.fixture
def launch(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TLLM_", "RAY_"))]:
        monkeypatch.delenv(name)
    for folder in (STAND_IN, STAND_IN / "light", STAND_IN / "ray_stand_in"):
        monkeypatch.syspath_prepend(folder)
    engines: list[EngineProcess] = []

    def launch(nodes: str, *, tp: int = 8, pp: int = 2) -> EngineProcess:
        monkeypatch.setenv("RAY_STAND_IN", nodes)
        engines.append(
            EngineProcess(
                spec_of(tp=tp, pp=pp, orchestrator="ray"),
                class_path=BACKENDS["tensorrt_llm"].class_path,
                checkpoint=checkpoints["BF16"],
                log_dir=tmp_path / "logs",
                load_timeout_s=60,
            )
        )
        return engines[-1]

    yield launch
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_over_two_nodes(launch: Start, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
    engine = launch("B200:8,B200:8")
    assert engine.info.hardware.words == "16 x NVIDIA B200 on 2 nodes"
    assert engine.info.options["orchestrator"] == "ray"
    engine.relaunch()


def test_the_nodes_are_those_that_ray_chose(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs fit one node, but half of each is taken: other hardware than eight on one."""
    assert launch("B200:8,B200:8", tp=4).info.hardware.words == "8 x NVIDIA B200"
    monkeypatch.setenv("RAY_STAND_IN_BUSY", "4")
    assert launch("B200:8,B200:8", tp=4).info.hardware.words == "8 x NVIDIA B200 on 2 nodes"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("B200:8", r"tp=8 x pp=2 need 16 GPUs, and the Ray cluster has 8 on 1 node\. TensorRT-LLM would wait"),
        ("B200:8,H200:8", r"the Ray cluster has GPUs of several kinds \(B200, H200\)"),
        ("", r"need 16 GPUs, this machine has 8, and no Ray cluster runs on it\. Start one over all nodes"),
    ],
)
def test_what_ray_cannot_hold_is_an_error_before_anything_is_loaded(launch: Start, nodes: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        launch(nodes)


def test_a_node_without_gpus_cannot_be_rank_0(launch: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_GPUS", "0")
    with pytest.raises(EngineError, match=r"puts rank 0 of an engine on the node that pytest runs on; found no NVIDIA"):
        launch("B200:8,B200:8")


def test_pytest_asks_its_own_machine_for_one_gpu_only() -> None:
    need = implied_need(spec_of("NVFP4", tp=8, pp=2, orchestrator="ray"))
    assert need is not None
    assert (need.count, need.sm) == (1, 100)
