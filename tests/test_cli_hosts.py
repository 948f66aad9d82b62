"""`inferperf measure` from several hosts: what it asks for, and what it says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.cli import main
from pytest_inferperf.cluster import load_hosts
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.machines import Machines

Capture = pytest.CaptureFixture[str]
FILES = Path(__file__).parent / "plugin" / "datasets"
SIZES = ("--model", "simulated", "--isl", "8", "--osl", "4", "--compare", "0")


def measure(url: str, *arguments: str) -> int:
    return main(["measure", "--url", url, *SIZES, *arguments])


def test_the_hosts_and_their_clocks_are_said(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def hosts(_connect: object, **options: Any) -> Machines:
        asked.append(options)
        return Machines(tmp_path, wanted=options["wanted"])

    monkeypatch.setattr(load_hosts, "ClusterLoadHosts", hosts)
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=100, itl_ms=20)) as server:
        options = ("--concurrency", "4", "--num-requests", "32", "--ray", "auto", "--hosts", "2", "--json", str(path))
        measure(server.url, *options)
    assert asked == [{"wanted": 2, "timeout_s": 600.0}]
    assert re.search(
        r"^sent by    machine 0 \(1 process\), machine 1 \(1 process\); clocks put together within \d+\.\d{3} ms, drift "
        r"\d+\.\d{3} ms at most$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    found = json.loads(path.read_text())
    assert [host["host"] for host in found["hosts"]] == ["machine 0", "machine 1"]
    assert {"processes", "offset_s", "bound_ms", "drift_ms"} < found["hosts"][1].keys()
    assert len(found["clock"]["processes"]) == 2


@pytest.mark.parametrize(
    ("keywords", "most", "why"),
    [
        ({"dataset": "prompts.jsonl", "concurrency": 2}, 2, "2 are in flight"),
        ({"dataset": "prompts.jsonl", "request_rate": 5.0, "num_requests": 3}, 3, "a round has 3"),
        ({"trace": "mooncake.jsonl"}, 12, "a round has 12"),
        ({"isl": 8, "osl": 4}, 1, "1 are in flight"),
    ],
)
def test_hosts_in_a_mark_have_something_to_send(keywords: dict[str, Any], most: int, why: str) -> None:
    from pytest_inferperf.errors import MarkError
    from pytest_inferperf.marks.origin import Origin
    from pytest_inferperf.marks.workloads import make_workload

    origin = Origin(folder=FILES)
    once: dict[str, Any] = {**keywords, "rounds": 1, "warmup_rounds": 0}
    assert make_workload({**once, "hosts": most}, origin).hosts == most
    with pytest.raises(MarkError) as caught:
        make_workload({**once, "hosts": most + 1}, origin)
    assert str(caught.value) == (
        f"inferperf: hosts={most + 1}: each host needs a request to send, and {why}. hosts={most} would do."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hosts", "2"), "--hosts 2: they are nodes of a Ray cluster; say which: --ray=auto."),
        (("--hosts", "0", "--ray", "auto"), "--hosts 0: must be at least 1."),
        (
            ("--ray", "there"),
            "--ray=there: write auto (the cluster of this machine, or of RAY_ADDRESS), local (one that",
        ),
    ],
)
def test_what_cannot_be(capsys: Capture, options: tuple[str, ...], message: str) -> None:
    assert measure("http://127.0.0.1:1", "--concurrency", "2", *options) == 2
    assert message in capsys.readouterr().err


def test_no_cluster_is_no_measurement(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pytest_inferperf.cluster import connection
    from pytest_inferperf.errors import HardwareError

    def connect(address: str) -> None:
        raise HardwareError(f"--inferperf-ray={address}: no Ray cluster there (nobody). Start one (ray start --head).")

    monkeypatch.setattr(connection, "connect", connect)
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=5, itl_ms=1)) as server:
        assert measure(server.url, "--concurrency", "2", "--ray", "auto", "--hosts", "1", "--json", str(path)) == 1
    assert (
        capsys.readouterr().err == "INVALID: --ray=auto: no Ray cluster there (nobody). Start one (ray start --head).\n"
    )
    assert json.loads(path.read_text())["metrics"] == {}
