"""`inferperf selftest` of sweeps, of error rates and of answers under load: each is proven, or said not to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from tests.test_selftest import make_project, selftest

pytestmark = pytest.mark.newest

GATES = """\
import pytest
from pytest_inferperf import sweep

pytestmark = pytest.mark.inferperf(model="tiny-llama", quant="NVFP4", isl=16, osl=8, rounds=3)


@pytest.mark.inferperf(sweep(concurrency=[1, 2]))
@pytest.mark.throughput_floor("output_throughput_per_user", output_agreement=0.9)
@pytest.mark.error_rate_ceiling(0.1)
@pytest.mark.frontier_floor("output_throughput", over="output_throughput_per_user", tolerance=0.2)
def test_sweep(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(concurrency=4)
@pytest.mark.throughput_floor("output_agreement")
@pytest.mark.error_rate_ceiling(0.25)
def test_honest(inferperf):
    inferperf.measure()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    make_project(tmp_path, GATES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_point_and_every_kind_is_proven(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = selftest("--keep", "kept")
    assert status == 0, capsys.readouterr().out
    rows = ("output_throughput_per_user", "output_agreement", "error_rate")
    assert [(gate["gate"], gate["clean"], gate["found"]) for gate in report["gates"]] == [
        *((f"{load} {row}", "PASS", "FAIL") for load in ("c1", "c2") for row in rows),
        ("output_throughput over output_throughput_per_user", "PASS", "FAIL"),
        ("output_agreement", "PASS", "FAIL"),
        ("error_rate", "PASS", "FAIL"),
    ]
    kinds = {gate["gate"].split()[-1]: gate["injected"].partition(":")[0] for gate in report["gates"]}
    assert kinds == {
        "output_throughput_per_user": "slowdown",
        "output_agreement": "agreement",
        "error_rate": "errors",
    }
    # A run with errors, or with wrong answers, is INVALID to all other gates: each kind has a run of its own.
    assert {path.stem for path in (project / "kept").glob("injected*.json")} == {
        "injected",
        "injected-errors",
        "injected-agreement",
    }
    found = {record.nodeid: record for record in read_result_file(project / "kept" / "injected-errors.json").records}
    (honest,) = [record for nodeid, record in found.items() if "test_honest" in nodeid]
    assert honest.result.performance is not None
    assert 0.25 * 12 < honest.result.performance.num_failed_requests < 12


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            '"output_agreement")',
            "output_agreement=0.2)",
            "the run is invalid: the answers under load begin as those at",
        ),
        # Half of the requests are the reference's, which is left as it is.
        (
            "ceiling(0.25)",
            'ceiling(0.9)\n@pytest.mark.speedup_floor(over="BF16", ratio=0.5)',
            "55 requests would have to",
        ),
    ],
)
def test_what_cannot_be_proven_is_not(project: Path, old: str, new: str, why: str) -> None:
    (project / "test_gates.py").write_text(GATES.replace(old, new))
    status, report = selftest("-k", "honest")
    assert status == 1
    (problem,) = [gate["problem"] for gate in report["gates"] if gate["problem"]]
    assert problem.startswith(why)


def test_a_point_that_fails_already_is_named(project: Path) -> None:
    (project / "test_gates.py").write_text(GATES.replace("output_agreement=0.9", "request_throughput=8"))
    status, report = selftest("-k", "sweep")
    assert status == 1
    problems = {gate["gate"]: gate["problem"] for gate in report["gates"] if gate["problem"]}
    assert list(problems) == ["c1 request_throughput"]
    assert problems["c1 request_throughput"].startswith("does not pass as it is: ")
