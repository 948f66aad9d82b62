"""A cluster whose head dies under a run: what was measured is kept, and what needs no cluster goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from tests.cluster.conftest import Raylets
from tests.cluster.project import HEAD
from tests.cluster.runs import Project, head_of, is_running, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's time to wait for a head that is gone: a minute, unless a test has less."""

AT_ONCE_S = 60.0
"""Far more than a failure takes on a busy machine, and far less than waiting for the cluster again would."""


@pytest.fixture(params=["auto", "local"])
def losing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Project, str]]:
    """A run on a cluster of its own, in the second session of its second test, whose head is then killed."""
    with tempfile.TemporaryDirectory(prefix="ifp-", dir="/tmp") as scratch:
        yield from _losing(request.param, tmp_path, Path(scratch))


def _losing(address: str, folder: Path, scratch: Path) -> Iterator[tuple[Project, str]]:
    cluster = Raylets(0, 2) if address == "auto" else None
    environment = cluster.environment if cluster is not None else {}
    project = Project(folder, environment)
    project.test(HEAD)
    arguments = ["--inferperf-json=found.json", "--junit-xml=found.xml", "--inferperf-update=new", "-rA"]
    try:
        run = project.start(*arguments, ray=address, tmp=scratch, **({RECONNECT: "3"} if cluster is not None else {}))
        # It is launched for each session: the third launch has one of the second test behind it.
        wait_for(lambda: len(project.engines()) == 3 or run.poll() is not None)
        assert run.poll() is None, project.end(run)
        started = psutil.Process(run.pid).children(recursive=True)
        if cluster is not None:
            cluster.behead()
        else:
            head_of(started).kill()
        yield project, project.end(run)
        assert run.returncode == 1
        # Nothing is left of the run, nor of a cluster that it had started.
        wait_for(lambda: not any(is_running(process.pid) for process in started))
        wait_for(lambda: not any(scratch.glob("ifp-ray-*")))
    finally:
        if cluster is not None:
            cluster.close()
    wait_for(lambda: not any(map(is_running, project.engines())))


def test_what_was_measured_is_kept_and_what_needs_no_cluster_goes_on(losing: tuple[Project, str]) -> None:
    project, output = losing
    assert "the Ray cluster is lost (Failed to connect to GCS within " in output, output
    before, running = (project.records("found.json")[name] for name in ("test_before", "test_running"))
    assert not before["invalid"]
    assert len(running["performance"]["sessions"]) >= 1
    assert "the Ray cluster is lost" in running["invalid"]
    assert list((project.path / "baselines").rglob("tiny-llama.json"))
    rows = ElementTree.parse(project.path / "found.xml").getroot().iter("testcase")
    cases = {case.get("name", "").partition("[")[0]: case for case in rows}
    assert not list(cases["test_without_a_cluster"])
    for name in ("test_same_engine", "test_another_engine", "test_a_third_engine"):
        failures = [item for item in cases[name] if item.tag in ("failure", "error")]
        assert any("the Ray cluster is lost" in (item.text or "") for item in failures), name
        # Nobody waits for Ray again.
        assert float(cases[name].get("time", "inf")) < AT_ONCE_S, name
