"""A node that is lost between two tests: what needed it fails, and neither is skipped nor goes on without GPUs."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_inferperf import __version__, collection, placement
from pytest_inferperf.cluster import connection as connections
from pytest_inferperf.cluster.connection import Connection
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.model.case import EngineSpec, GpuRequirement

GPUS = {"gpu-07": [Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)], "plain": []}
ONE = GpuRequirement(count=1)
TEST = """
import pytest

@pytest.fixture(scope="session")
def inferperf_engine(request):
    return request.param

@pytest.mark.inferperf(model="./tiny-llama", backend="transformers")
@pytest.mark.requires_gpu(count=1)
def test_it(inferperf_engine):
    pass
"""


class Cluster:
    """Stands in for the driver of a cluster of these nodes, all of which are there when it is asked first."""

    is_lost = False

    def __init__(self, *names: str, lost: str = "") -> None:
        self._names, self._lost, self._asked = names, lost, 0

    def nodes(self) -> list[dict[str, Any]]:
        self._asked += 1
        left = [name for name in self._names if self._asked == 1 or name != self._lost]
        return [{"node_id": name, "resources": {"CPU": 8, "GPU": len(GPUS[name])}} for name in left]

    def on_nodes(self, node_ids: list[str], *_: object, wait_s: float) -> dict[str, tuple[bool, str]]:
        del wait_s
        return {name: (True, self._described(name)) for name in node_ids}

    def _described(self, name: str) -> str:
        gpus = [asdict(gpu) for gpu in GPUS[name]]
        return json.dumps({"version": __version__, "name": name, "cpu_name": "CPU", "cores": 8, "gpus": gpus})

    def end(self) -> None:
        pass


def connected(*names: str, lost: str = "") -> Connection:
    return Connection(Cluster(*names, lost=lost))  # type: ignore[arg-type]


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, connection: Connection) -> pytest.RunResult:
    """Run two tests that need a GPU, one after the other."""
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connections, "connect", lambda *_, **__: connection)
    model = pytester.mkdir("tiny-llama")
    (model / "config.json").write_text("{}")
    pytester.makepyfile(test_first=TEST, test_second=TEST)
    return pytester.runpytest_inprocess("--inferperf-ray=auto", "-p", "no:cacheprovider", "-rs")


def test_a_gate_whose_node_was_lost_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, connected("gpu-07", "plain", lost="gpu-07"))
    result.assert_outcomes(passed=1, errors=1, skipped=0)
    result.stdout.fnmatch_lines(["the test needs 1 GPU *lost since the run began: node gpu-07 (gpu-07)"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_gate_whose_node_never_was_is_skipped(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, connected("plain"))
    result.assert_outcomes(skipped=2)
    assert "lost since" not in result.stdout.str()


def request_of(
    monkeypatch: pytest.MonkeyPatch, connection: Connection, *, said: GpuRequirement | None = None
) -> GpuRequirement | None:
    """Return the GPUs that an engine asks for that would run without, one of whose tests says that it needs some."""
    spec = EngineSpec(model="m", served_model_name="m", backend="transformers")
    item = SimpleNamespace(callspec=SimpleNamespace(params={"inferperf_engine": spec}))
    session: Any = SimpleNamespace(items=[item], config=None)
    monkeypatch.setattr(placement, "_connection", lambda _: connection)
    monkeypatch.setattr(placement, "state_of", lambda _: SimpleNamespace(settings=SimpleNamespace(update=None)))
    monkeypatch.setattr(placement, "bound_of", lambda _: None)
    monkeypatch.setattr(collection, "need_of", lambda _: said)
    return placement._request(session, spec).need


@pytest.mark.parametrize("said", [None, ONE])
def test_an_engine_does_not_go_on_without_gpus_once_their_node_is_lost(
    monkeypatch: pytest.MonkeyPatch, said: GpuRequirement | None
) -> None:
    connection = connected("gpu-07", "plain", lost="gpu-07")
    assert request_of(monkeypatch, connection, said=said) == ONE
    assert [node.name for node in connection.nodes()] == ["plain"]
    assert request_of(monkeypatch, connection, said=said) == ONE


@pytest.mark.parametrize("said", [None, ONE])
def test_an_engine_runs_without_gpus_where_no_node_ever_had_any(
    monkeypatch: pytest.MonkeyPatch, said: GpuRequirement | None
) -> None:
    assert request_of(monkeypatch, connected("plain"), said=said) is None
