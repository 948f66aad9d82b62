"""What an engine's process is told of the task that pytest is."""

from __future__ import annotations

from pytest_inferperf.engines.environment import without_task

TASK = {"PATH": "/bin", "SLURM_JOB_ID": "4711", "PMIX_RANK": "0", "PMI_RANK": "0", "NCCL_DEBUG": "INFO"}


def test_a_task_of_slurm_is_none_to_its_engine() -> None:
    assert without_task(TASK) == {"PATH": "/bin", "NCCL_DEBUG": "INFO"}


def test_what_mpirun_started_can_start_more() -> None:
    started = {**TASK, "OMPI_COMM_WORLD_RANK": "0"}
    assert without_task(started) == started
