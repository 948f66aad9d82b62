"""The real engine and the reference model on a cluster of this machine: answers, verdicts and who gave them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultRecord, read_result_file

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

pytestmark = pytest.mark.inferperf(model={model!r}, limit=240)
TASKS = {tasks!r}


@pytest.mark.inferperf(task=TASKS + "/embedded_transform.yaml", replicas=1)
@pytest.mark.accuracy_floor(points=55.0)
def test_one(inferperf):
    inferperf.evaluate()


@pytest.mark.inferperf(task=TASKS + "/embedded_facts.yaml", replicas=2)
# Decided at the first look.
@pytest.mark.accuracy_floor(points=99.0)
def test_two(inferperf):
    inferperf.evaluate()


@pytest.mark.inferperf(task=TASKS + "/embedded_stories.yaml", replicas=3)
def test_three(inferperf):
    inferperf.evaluate()
"""


def run(folder: Path, name: str, *arguments: str) -> dict[str, ResultRecord]:
    """Run the suite; a cluster lets nobody answer before all have joined."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "RAY_ADDRESS", "PYTEST_XDIST_WORKER")}
    plugins = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-p", "ray_together")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, f"--inferperf-json={folder / name}", *arguments],
        cwd=folder,
        env=kept | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "benchmarks")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    return {record.nodeid.partition("[")[0]: record for record in read_result_file(folder / name).records}


def test_answers_and_verdicts_of_the_real_engine_are_those_of_a_plain_run_however_many_answer(tmp_path: Path) -> None:
    embedded = ROOT / "suites" / "embedded"
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(SUITE.format(model=str(embedded / "model"), tasks=str(embedded / "tasks")))
    plain = run(tmp_path, "plain.json")
    cluster = run(tmp_path, "cluster.json", "--inferperf-ray=local")
    assert list(cluster) == list(plain)
    for name, record in plain.items():
        one, other = record.result.accuracy, cluster[name].result.accuracy
        assert one is not None
        assert other is not None
        assert (other.documents_digest, other.asked) == (one.documents_digest, one.asked)
        # Right or wrong; and bits per byte, which another processor may sum up otherwise in another batch.
        assert other.outcomes == pytest.approx(one.outcomes, rel=1e-4)
        assert cluster[name].verdicts == record.verdicts
        assert cluster[name].status is record.status
    notes = {name.rpartition("_")[2]: record.result.notes for name, record in cluster.items()}
    assert notes["one"] == ()
    # Each of them did answer: a machine of two cores has room for three that are asked for.
    assert [note.partition(":")[0] for note in notes["two"]] == ["requests answered by 2 of 2 replicas"]
    assert [note.partition(":")[0] for note in notes["three"]] == ["requests answered by 3 of 3 replicas"]
