"""What cannot run on the node of a cluster, said before anything is asked of one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.placement import why_not_on_cluster

SPEC = EngineSpec(model="tiny-llama", served_model_name="tiny-llama")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, serve="vllm serve"), "serve='vllm serve' is a server that is started on this machine"),
        (replace(SPEC, engine_options=(("orchestrator", "ray"),)), "lets TensorRT-LLM ask Ray for GPUs itself"),
    ],
)
def test_refused(spec: EngineSpec, said: str) -> None:
    assert said in why_not_on_cluster(spec)
    assert "without --inferperf-ray" in why_not_on_cluster(spec)


def test_an_engine_of_the_shipped_backends_is_taken() -> None:
    assert why_not_on_cluster(replace(SPEC, engine_options=(("orchestrator", "rpc"),))) == ""
