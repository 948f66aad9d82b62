"""The example batch script, as far as it goes without a cluster: real pytest, under stand-ins of Slurm and the launcher."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multi_node.conftest import EXAMPLES, SUITE, Cluster
from tests.multi_node.slurm import directives, split_options

SCRIPT = "docs/examples/multi-node.sbatch"
GB200 = ("--nodes=4", "--ntasks-per-node=4", "--gpus-per-node=4", "--segment=4")


@pytest.mark.parametrize("name", ["multi-node.sbatch", "rank0.sh"])
def test_the_scripts_are_sound(name: str) -> None:
    subprocess.run(["bash", "-n", EXAMPLES / name], check=True)
    found = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", EXAMPLES / name], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_a_rank_for_each_gpu_of_two_nodes() -> None:
    asked = directives(EXAMPLES / "multi-node.sbatch")
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "8", "8")
    assert {"exclusive", "no-requeue"} <= asked.keys()


def test_an_option_that_slurm_lacks_is_found(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --gpu-per-node=8\n")
    with pytest.raises(SystemExit, match="unrecognized option '--gpu-per-node=8'"):
        directives(script)
    with pytest.raises(SystemExit, match="unrecognized option '--nodes'"):
        split_options("srun", ["--nodes", "2"])


def test_a_job_on_two_nodes_fails_for_its_regression(cluster: Cluster) -> None:
    """Though this launcher splits its command at blanks, and loses the exit status."""
    cluster.suite(SUITE + SUITE.replace("0.001", "1e9").replace("test_serving", "test_regression"))
    done = cluster.run("sbatch", SCRIPT, "suite", "-k", "serving or regression", LAUNCHER_RELEASE="early")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    # Two sessions of each test: the ranks served one engine after the other, and were let go by all.
    assert re.search(r"leader: [34] engines, stuck: False", done.stderr)
    assert [item["status"] for item in cluster.results] == ["PASS", "FAIL"]
    hardware = {"name": "NVIDIA B200", "count": 16, "kind": "gpu", "nodes": 2}
    assert [item["result"]["engine"]["hardware"] for item in cluster.results] == [hardware, hardware]


def test_a_job_on_a_quarter_of_a_rack_passes(cluster: Cluster) -> None:
    """The command line in the script's head: four nodes of four GPUs."""
    done = cluster.run("sbatch", *GB200, SCRIPT, "suite", TRTLLM_STAND_IN_GPUS="4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    (result,) = cluster.results
    assert result["result"]["engine"]["hardware"]["nodes"] == 4
    assert " ".join(GB200) in (EXAMPLES / "multi-node.sbatch").read_text()


def test_a_job_whose_pytest_never_ended_fails(cluster: Cluster) -> None:
    """Out of memory, say: the kernel ends the script that would have written the status down."""
    folder = cluster.path / "bin"
    folder.mkdir()
    (folder / "pytest").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (folder / "pytest").chmod(0o755)
    done = cluster.run("sbatch", SCRIPT, "suite", PATH=f"{folder}:{cluster.environment['PATH']}")
    assert done.returncode == 70, done.stdout + done.stderr
    assert "pytest did not end: no " in done.stderr


def test_what_a_job_needs_is_asked_for(cluster: Cluster) -> None:
    assert "the suite to run" in cluster.run("sbatch", SCRIPT).stderr
    del cluster.environment["IMAGE"]
    done = cluster.run("sbatch", SCRIPT, "suite")
    assert done.returncode != 0
    assert "IMAGE: a container with TensorRT-LLM" in done.stderr
