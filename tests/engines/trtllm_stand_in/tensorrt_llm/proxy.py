"""How an engine finds the ranks of `trtllm-llmapi-launch`: by environment variables, through the leader that waits there."""

from __future__ import annotations

import os
import socket

_ADDRESS, _KEY = "TLLM_SPAWN_PROXY_PROCESS_IPC_ADDR", "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY"
_SIZE = "tllm_mpi_size"


def launched() -> bool:
    return os.environ.get("TLLM_SPAWN_PROXY_PROCESS") == "1"


def spawning_fails() -> bool:
    """Whether MPI takes itself for a task of Slurm's, which starts no processes."""
    return "OMPI_COMM_WORLD_RANK" not in os.environ and any(
        name in os.environ for name in ("SLURM_JOB_ID", "PMIX_RANK")
    )


class RanksClient:
    """The ranks at work for one engine. Who leaves without `shutdown` leaves them waiting for ever."""

    def __init__(self, world: int) -> None:
        size = int(os.environ.get(_SIZE) or 1)
        if size != world:
            raise ValueError(f"External MPI session has {size} workers but the model needs world_size={world}.")
        host, _, port = os.environ[_ADDRESS].removeprefix("tcp://").partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._say(f"start {os.environ[_KEY]}")

    def _say(self, words: str) -> None:
        self._socket.sendall(f"{words}\n".encode())
        answer = self._socket.recv(64)
        if answer != b"ok\n":
            raise RuntimeError(f"the leader answered {answer!r}")

    def shutdown(self) -> None:
        self._say("done")
        self._socket.close()
