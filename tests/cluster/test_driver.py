"""The process that is connected to Ray, with a Ray of our own in it: what a cluster that is well never shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_inferperf.cluster import driver as drivers
from pytest_inferperf.cluster.driver import Driver, LateAnswer, NoAnswer
from pytest_inferperf.errors import ClusterLost, EngineError, HardwareError
from tests.cluster.runs import is_running, wait_for

RAY = """
import os, sys, time
from types import SimpleNamespace


class RayTaskError(Exception):
    cause = None


class GetTimeoutError(Exception):
    pass


exceptions = SimpleNamespace(RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError)


def init(address):
    if address != "there":
        raise ConnectionError(f"nothing at {address}")


def is_initialized():
    return os.environ["SAYS"] != "disconnected"


def shutdown():
    pass


def available_resources():
    return {"CPU": 1.0}


def cluster_resources():
    return {"CPU": 2.0}


def nodes():
    exec(os.environ["SAYS"])
    return []
"""

Start = Callable[..., Driver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Connect to a Ray that does `says` when it is asked for its nodes."""
    (tmp_path / "ray.py").write_text(RAY)
    started: list[Driver] = []

    def connect(says: str = "pass", *, address: str = "there") -> Driver:
        started.append(Driver(environment={"PYTHONPATH": str(tmp_path), "SAYS": says}, address=address))
        return started[-1]

    yield connect
    for driver in started:
        driver.end()
        assert not is_running(driver.pid)


def test_what_is_asked_is_answered(start: Start) -> None:
    driver = start()
    assert driver.nodes() == []
    assert driver.resources() == ({"CPU": 2.0}, {"CPU": 1.0})
    assert not driver.is_lost


def test_where_nothing_is_it_says_so(start: Start) -> None:
    with pytest.raises(HardwareError, match="nothing at nowhere"):
        start(address="nowhere")


@pytest.mark.parametrize(
    ("says", "error", "text"),
    [
        ("raise RayTaskError('it failed there')", EngineError, "it failed there"),
        ("raise GetTimeoutError()", LateAnswer, "^$"),
        ("raise RuntimeError('the actor died')", NoAnswer, "RuntimeError: the actor died"),
    ],
    ids=["failed", "late", "gone"],
)
def test_a_call_that_fails_is_no_cluster_lost(start: Start, says: str, error: type[Exception], text: str) -> None:
    driver = start(says)
    with pytest.raises(error, match=text):
        driver.nodes()
    assert driver.resources()
    assert not driver.is_lost


def test_a_head_that_is_silent_is_lost_and_whoever_asks_later_hears_it_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray alone would wait for ever. Who waits already, for longer, hears it too."""
    driver = start("time.sleep(600)")
    heard: list[str] = []

    def wait_longer() -> None:
        try:
            driver._call("nodes", limit_s=600)
        except ClusterLost as error:
            heard.append(str(error))

    waiting = threading.Thread(target=wait_longer)
    waiting.start()
    wait_for(lambda: bool(driver._waiting))
    monkeypatch.setattr(drivers, "SILENCE_S", 0.5)
    words = r"the Ray cluster is lost \(its head has answered nothing for 0.5 s\)"
    with pytest.raises(ClusterLost, match=words):
        driver.nodes()
    waiting.join(60)
    assert len(heard) == 1
    assert "has answered nothing for 0.5 s" in heard[0]
    assert driver.is_lost
    wait_for(lambda: not is_running(driver.pid))
    # No call waits again, however long it may take.
    monkeypatch.setattr(drivers, "SILENCE_S", 600.0)
    begin = time.monotonic()
    with pytest.raises(ClusterLost, match=words):
        driver.ask(1, "where", wait_s=600)
    assert time.monotonic() - begin < 60
    driver.remove_group(1)
    driver.kill(1)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            "sys.stderr.write('[2026 E 1 2] gcs.cc:9: Failed to connect to GCS within 5 s. Restart it.'); "
            "sys.stderr.flush(); os._exit(1)",
            "Failed to connect to GCS within 5 s",
        ),
        ("os._exit(3)", "the process that was connected to it ended with 3"),
    ],
    ids=["its words", "silently"],
)
def test_a_process_that_ray_ends_is_a_cluster_lost_with_rays_reason(start: Start, says: str, words: str) -> None:
    driver = start(says)
    with pytest.raises(ClusterLost, match=rf"the Ray cluster is lost \(.*{words}\)"):
        driver.nodes()
    with pytest.raises(ClusterLost, match=words):
        driver.resources()


def test_a_client_that_is_told_that_its_server_is_gone_ends(start: Start) -> None:
    """Ray's client raises, where it ends the process of a driver."""
    driver = start("disconnected")
    with pytest.raises(ClusterLost, match="name 'disconnected' is not defined"):
        driver.nodes()
    wait_for(lambda: not psutil.pid_exists(driver.pid) or not is_running(driver.pid))
