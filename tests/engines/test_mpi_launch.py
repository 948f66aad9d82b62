"""What is known of an MPI launch, what is refused in one, and whose ranks they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines import mpi_launch
from pytest_inferperf.engines.backends import BACKENDS
from pytest_inferperf.engines.devices import gpus_to_lease, lease_devices
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.mpi_launch import (
    MpiLaunch,
    Ranks,
    find_launch,
    launch_problem,
    launched_processes,
    nodes_of,
    outer_environment,
)
from pytest_inferperf.engines.needs import implied_need
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from tests.engines.tensorrt_llm.conftest import STAND_IN, spec_of, write_checkpoint
from tests.multi_node.leader import Leader

PROXY = {"TLLM_SPAWN_PROXY_PROCESS": "1", "tllm_mpi_size": "16"}
REQUEST = GenerationRequest(prompt=(10, 11, 12), max_tokens=2, ignore_eos=True)
TWO_NODES = MpiLaunch(ranks=16, nodes=2, job="4711")
GPUS = tuple(Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0, uuid=f"GPU-{index}") for index in range(8))


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launch and no job around the tests, and ranks that nobody has."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMI", "MPI_", "TLLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(Ranks, "_holder", None)
    monkeypatch.setattr(Ranks, "_lost", "")


def process(proc: Path, pid: int, parent: int, **environment: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (srun (x) y) S {parent} {pid} {pid} 0")
    (folder / "environ").write_bytes(b"\0".join(f"{name}={value}".encode() for name, value in environment.items()))


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        ({"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2"}, TWO_NODES),
        # A step may have fewer nodes than its job.
        ({"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "9", "SLURM_STEP_NUM_NODES": "2"}, TWO_NODES),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, MpiLaunch(ranks=16, nodes=2)),
        ({"MPI_LOCALNRANKS": "4"}, MpiLaunch(ranks=16, nodes=4)),
        # And a job more than its ranks use.
        (
            {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "16"},
            MpiLaunch(ranks=16, nodes=1, job="4711"),
        ),
        ({}, MpiLaunch(ranks=16)),
    ],
)
def test_a_launch_is_told_by_the_environment(outer: dict[str, str], expected: MpiLaunch) -> None:
    assert find_launch(PROXY, outer) == expected
    assert find_launch({}, outer) is None


@pytest.mark.parametrize("size", ["many", "0", ""])
def test_a_launch_that_does_not_say_its_size_has_one_rank(size: str) -> None:
    """So an engine of several is refused."""
    assert find_launch({**PROXY, "tllm_mpi_size": size}, {}) == MpiLaunch(ranks=1, nodes=1)


def test_the_user_can_say_how_many_ranks_a_node_has() -> None:
    assert find_launch({**PROXY, "MPI_LOCALNRANKS": "8"}, {"PMIX_NAMESPACE": "x"}) == MpiLaunch(ranks=16, nodes=2)


def test_variables_that_the_launcher_hides_are_read_from_it(tmp_path: Path) -> None:
    process(tmp_path, os.getpid(), 50)
    process(tmp_path, 50, 40, PATH="/bin")
    process(tmp_path, 40, 30, SLURM_JOB_ID="4711", SLURM_STEP_NUM_NODES="2")
    process(tmp_path, 30, 1, SLURM_JOB_ID="1")
    assert outer_environment(proc=tmp_path) == {"SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_NODES": "2"}
    assert outer_environment(proc=tmp_path / "nowhere") == {}


def test_ranks_are_ours_and_other_jobs_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    process(tmp_path, os.getpid(), 40)
    process(tmp_path, 40, 1, **job)
    process(tmp_path, 41, 1, **job, SLURM_PROCID="1")
    process(tmp_path, 42, 1, SLURM_JOB_ID="4711", SLURM_STEP_ID="1")
    process(tmp_path, 43, 1, SLURM_JOB_ID="4712", SLURM_STEP_ID="0")
    process(tmp_path, 44, 1)
    assert launched_processes(proc=tmp_path) == frozenset()
    for name, value in PROXY.items():
        monkeypatch.setenv(name, value)
    assert launched_processes(proc=tmp_path) == {40, 41}


@pytest.mark.parametrize(("launch", "nodes"), [(None, 1), (TWO_NODES, 2)])
def test_nodes_of_an_engine(launch: MpiLaunch | None, nodes: int) -> None:
    assert nodes_of(spec_of(tp=8, pp=2), launch) == nodes


@pytest.mark.parametrize(
    ("spec", "launch", "outer", "message"),
    [
        (spec_of(tp=16), TWO_NODES, {}, ""),
        (spec_of(tp=8), None, {}, ""),
        (spec_of(tp=8), None, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"}, ""),
        (spec_of(), None, {"SLURM_STEP_NUM_TASKS": "16"}, ""),
        (
            spec_of(tp=16),
            None,
            {"SLURM_STEP_NUM_TASKS": "16"},
            "MPI started 16 copies of pytest, and each would start an engine of its own. Let the launcher start it once:\n"
            "  srun --ntasks=16 --mpi=pmix trtllm-llmapi-launch pytest …",
        ),
        (
            spec_of(tp=16, orchestrator="ray"),
            None,
            {"OMPI_COMM_WORLD_SIZE": "16"},
            "MPI started 16 copies of pytest, and each would start an engine of its own. Start one: with "
            "orchestrator='ray', Ray starts the ranks.",
        ),
        (
            spec_of(tp=8),
            TWO_NODES,
            {},
            "tp=8 x pp=1 is an engine of 8 ranks, and trtllm-llmapi-launch was started with 16. Start it as\n"
            "  srun --nodes=1 --ntasks=8 --ntasks-per-node=8 --mpi=pmix trtllm-llmapi-launch pytest …\n"
            "or choose the tests of 16 ranks with -m or -k.",
        ),
        (
            spec_of(),
            MpiLaunch(ranks=2),
            {},
            "tp=1 x pp=1 is an engine of 1 rank, and trtllm-llmapi-launch was started with 2. Start it as\n"
            "  srun --ntasks=1 --mpi=pmix trtllm-llmapi-launch pytest …\nor choose the tests of 2 ranks with -m or -k.",
        ),
        (
            spec_of(tp=16, orchestrator="ray"),
            TWO_NODES,
            {},
            "orchestrator='ray' has Ray start the ranks of an engine, and trtllm-llmapi-launch has started 16 already. "
            "Leave the option out, or start pytest without trtllm-llmapi-launch, on a node of the Ray cluster.",
        ),
        # A guess would be judged by the baseline of another number of nodes.
        (
            spec_of(tp=16),
            MpiLaunch(ranks=16),
            {},
            "trtllm-llmapi-launch was started with 16 ranks, and neither Slurm nor MPI says on how many nodes: figures of "
            "one would be judged by baselines of another number. Say how many ranks each node has: export "
            "MPI_LOCALNRANKS=N",
        ),
    ],
)
def test_problems(spec: EngineSpec, launch: MpiLaunch | None, outer: dict[str, str], message: str) -> None:
    assert launch_problem(spec, launch, outer=outer) == message


def test_a_key_that_no_child_gets_is_refused_and_not_waited_for() -> None:
    launch = find_launch({**PROXY, "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY_FD": "7"}, {})
    assert "hands the key of its ranks over in an open file" in launch_problem(spec_of(tp=16), launch)


def test_each_node_has_its_share_of_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = spec_of(tp=6, pp=2)
    monkeypatch.setattr(mpi_launch, "outer_environment", lambda: {"SLURM_STEP_NUM_NODES": "2"})
    assert implied_need(spec).count == 12  # type: ignore[union-attr]
    for name, value in PROXY.items():
        monkeypatch.setenv(name, value)
    need = implied_need(spec)
    assert need is not None
    assert need.count == 6
    assert gpus_to_lease(spec, GPUS) == need
    assert gpus_to_lease(spec_of(tp=8, orchestrator="ray"), GPUS) is None
    # The ranks take the first cards, held by others or not: so others are waited for, and no other cards are taken.
    lease = lease_devices(need, GPUS, holder="us", timeout_s=1, folder=tmp_path)
    assert lease.uuids == tuple(f"GPU-{index}" for index in range(6))
    lease.release()


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leader]:
    """A launch of 16 ranks on two nodes, with this process on its first."""
    leader = Leader("c0ffee")
    for name, value in {
        **PROXY,
        "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR": leader.address,
        "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY": "c0ffee",
        "SLURM_JOB_ID": "4711",
        "MPI_LOCALNRANKS": "8",
    }.items():
        monkeypatch.setenv(name, value)
    yield leader
    leader.close()


def open_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> EngineProcess:
    for folder in (STAND_IN, STAND_IN / "light"):
        monkeypatch.syspath_prepend(folder)
    return EngineProcess(
        spec_of(tp=8, pp=2),
        class_path=BACKENDS["tensorrt_llm"].class_path,
        checkpoint=write_checkpoint(tmp_path / "model"),
        **{"log_dir": tmp_path / "logs", "load_timeout_s": 60, "call_timeout_s": 60, **changes},
    )


def test_ranks_serve_one_launch_of_an_engine_after_another(
    leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(tmp_path, monkeypatch)
    assert engine.info.hardware.words == "16 x NVIDIA B200 on 2 nodes"
    with pytest.raises(EngineError, match=r"cannot be started beside engine m BF16: the ranks of trtllm-llmapi-launch"):
        open_engine(tmp_path, monkeypatch)
    engine.relaunch()
    assert len(engine.generate([REQUEST], concurrency=1)) == 1
    engine.close()
    assert (leader.served, leader.stuck) == (2, False)


def test_an_engine_that_never_started_leaves_the_ranks_to_others(
    leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((EngineError, OSError)):
        open_engine(tmp_path, monkeypatch, log_dir=tmp_path / "file" / "logs")
    first = open_engine(tmp_path, monkeypatch)
    first.close()
    second = open_engine(tmp_path, monkeypatch)
    # Closed again, it lets go of nothing that it does not hold.
    first.close()
    with pytest.raises(EngineError, match="cannot be started beside engine m BF16"):
        open_engine(tmp_path, monkeypatch)
    second.close()
    assert leader.served == 2


def test_ranks_that_were_not_let_go_serve_no_other_engine(
    leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "dies")
    engine = open_engine(tmp_path, monkeypatch)
    with pytest.raises(EngineError, match="ended with exit status 9"):
        engine.generate([REQUEST], concurrency=1)
    engine.close()
    with pytest.raises(EngineError, match=r"engine m BF16 ended without letting its trtllm-llmapi-launch ranks go"):
        open_engine(tmp_path, monkeypatch)
    assert leader.served == 1
