"""The MPI launch that pytest is run by: `srun … trtllm-llmapi-launch pytest …`, or none.

TensorRT-LLM's launcher runs its command on rank 0 alone; all ranks wait to work for the engine that the command opens,
which finds them by environment variables. It takes those of Slurm and MPI out of the command's environment, so that MPI
does not begin twice: they are read where the launcher still has them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

__all__ = [
    "LAUNCHER",
    "MpiLaunch",
    "Ranks",
    "copies_in",
    "find_launch",
    "launch_problem",
    "launched_processes",
    "nodes_in",
    "nodes_of",
    "outer_environment",
]

LAUNCHER = "trtllm-llmapi-launch"
CLOSE_S = 120.0
"""Time an engine has to let its ranks go. Without it those of a launch would wait for it for ever, and serve no other."""

_PROXY = "TLLM_SPAWN_PROXY_PROCESS"
_RANKS = "tllm_mpi_size"
_KEY_BY_DESCRIPTOR = "TLLM_SPAWN_PROXY_PROCESS_IPC_HMAC_KEY_FD"

_SAYS = "MPI_LOCALNRANKS"
_PER_NODE = (_SAYS, "OMPI_COMM_WORLD_LOCAL_SIZE")
"""How many ranks this machine has: what MPICH and Intel MPI say, and Open MPI."""

_OUTER = ("SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE")
"""Variables that a job has, and the launcher's command has not."""

_MARK = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE")
"""What all ranks of one launch have in common, and no other process has."""

_ANCESTORS = 16
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class MpiLaunch:
    """A running launch, as the process on its rank 0 sees it."""

    ranks: int
    """MPI tasks over all nodes, one for each GPU."""

    nodes: int = 0
    """Machines they run on; 0 where neither Slurm nor MPI says, which no engine is started with."""

    job: str = ""
    """Slurm's number of the job; "" outside of Slurm."""

    key_by_descriptor: bool = False
    """Whether the ranks' key was left in an open file, which no child of pytest has."""


def find_launch(
    environment: Mapping[str, str] | None = None, outer: Mapping[str, str] | None = None
) -> MpiLaunch | None:
    """Return the launch this process belongs to; None where the launcher did not start it."""
    inner = os.environ if environment is None else environment
    if inner.get(_PROXY) != "1":
        return None
    size = inner.get(_RANKS, "")
    ranks = int(size) if size.isdecimal() and int(size) else 1
    around = outer_environment() if outer is None else outer
    return MpiLaunch(
        ranks=ranks,
        nodes=_nodes({**inner, **around}, ranks),
        job=around.get("SLURM_JOB_ID", ""),
        key_by_descriptor=_KEY_BY_DESCRIPTOR in inner,
    )


def outer_environment(*, proc: Path = PROC) -> Mapping[str, str]:
    """Return the environment of the job: this process's own, or that of the nearest process above that still has it."""
    if any(name in os.environ for name in _OUTER):
        return os.environ
    pid = os.getpid()
    for _ in range(_ANCESTORS):
        pid = _parent(proc, pid)
        found = _environment_of(proc, pid) if pid > 1 else {}
        if any(name in found for name in _OUTER):
            return found
    return {}


def launched_processes(*, proc: Path = PROC) -> frozenset[int]:
    """Return the processes of this machine that belong to our launch: its ranks compute for us, and are no children of ours."""
    if find_launch(outer={}) is None:
        return frozenset()
    around = outer_environment(proc=proc)
    mark = {name: around[name] for name in _MARK if name in around}
    if not mark:
        return frozenset()
    found = set()
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            theirs = _environment_of(proc, int(folder.name))
            if theirs and all(theirs.get(name) == value for name, value in mark.items()):
                found.add(int(folder.name))
    return frozenset(found)


def launch_problem(spec: EngineSpec, launch: MpiLaunch | None, *, outer: Mapping[str, str] | None = None) -> str:
    """Say why an engine of TensorRT-LLM cannot run as pytest was started, and what to type; "" where it can."""
    ranks = spec.world_size
    size = f"tp={spec.tp} x pp={spec.pp}"
    by_ray = dict(spec.engine_options).get("orchestrator") == "ray"
    if launch is None:
        copies = copies_in(os.environ if outer is None else outer)
        if copies < 2 or ranks < 2:
            return ""
        return (
            f"MPI started {copies} copies of pytest, and each would start an engine of its own. "
            + ("Start one" if by_ray else f"Let the launcher start it once:\n  {_command(ranks, 0)}")
            + (": with orchestrator='ray', Ray starts the ranks." if by_ray else "")
        )
    if by_ray:
        return (
            f"orchestrator='ray' has Ray start the ranks of an engine, and {LAUNCHER} has started {launch.ranks} already. "
            f"Leave the option out, or start pytest without {LAUNCHER}, on a node of the Ray cluster."
        )
    if spec.serve:
        return (
            f"serve={spec.serve!r} would start a server inside of {LAUNCHER}. Let it start the server itself, and measure "
            f"that from anywhere: {LAUNCHER} trtllm-serve …, and url=http://HOST:PORT here, without {LAUNCHER}."
        )
    if launch.key_by_descriptor:
        return (
            f"{LAUNCHER} of this TensorRT-LLM hands the key of its ranks over in an open file ({_KEY_BY_DESCRIPTOR}), "
            "which an engine in a process of its own never gets: it would wait for ever. Take another release; this was "
            "taken back soon after it came."
        )
    if launch.ranks != ranks:
        per_node = launch.ranks // launch.nodes if launch.nodes else 0
        return (
            f"{size} is an engine of {ranks} rank{'s' if ranks > 1 else ''}, and {LAUNCHER} was started with "
            f"{launch.ranks}. Start it as\n  {_command(ranks, per_node)}\n"
            f"or choose the tests of {launch.ranks} ranks with -m or -k."
        )
    if not launch.nodes:
        return (
            f"{LAUNCHER} was started with {launch.ranks} ranks, and neither Slurm nor MPI says on how many nodes: figures of "
            f"one would be judged by baselines of another number. Say how many ranks each node has: export {_SAYS}=N"
        )
    return ""


def nodes_of(spec: EngineSpec, launch: MpiLaunch | None) -> int:
    """Return on how many machines an engine runs; 1 without a launch, or in one that says nothing."""
    return 1 if launch is None or launch.ranks != spec.world_size else max(1, launch.nodes)


class Ranks:
    """The ranks of the launch in the hands of one engine: they serve one at a time, and only when the last let them go."""

    _holder: Ranks | None = None
    _lost = ""
    what: str

    def __init__(self, what: str) -> None:
        """Take the ranks for an engine. Raises `EngineError` where another has them, or never gave them back."""
        if Ranks._lost:
            raise EngineError(
                f"{what} cannot be started: {Ranks._lost} ended without letting its {LAUNCHER} ranks go, and they serve "
                "no other engine. Start the job again, without the test that did it to measure the rest."
            )
        if Ranks._holder is not None:
            raise EngineError(
                f"{what} cannot be started beside {Ranks._holder.what}: the ranks of {LAUNCHER} serve one engine at a time. "
                "Compare with a result file instead: --inferperf-against=RESULTS.json"
            )
        self.what = what
        Ranks._holder = self

    def give_back(self, *, clean: bool) -> None:
        """End the hold, once. `clean` says that the engine itself let the ranks go, or never began with them."""
        if Ranks._holder is self:
            Ranks._lost = "" if clean else self.what
            Ranks._holder = None


def _command(ranks: int, per_node: int) -> str:
    if not per_node:
        return f"srun --ntasks={ranks} --mpi=pmix {LAUNCHER} pytest …"
    nodes = -(-ranks // per_node)
    return (
        f"srun --nodes={nodes} --ntasks={ranks} --ntasks-per-node={-(-ranks // nodes)} --mpi=pmix {LAUNCHER} pytest …"
    )


def copies_in(environment: Mapping[str, str]) -> int:
    """Return how many processes MPI started beside this one, with it: 1 where it started none."""
    # SLURM_NTASKS is set in a batch script as well, which runs once.
    found = [environment.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return max([int(value) for value in found if value.isdecimal()], default=1)


def nodes_in(environment: Mapping[str, str]) -> int:
    """Return on how many machines Slurm runs the step, or the job; 0 where it does not say."""
    return _number(environment, "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")


def _nodes(environment: Mapping[str, str], ranks: int) -> int:
    """Return on how many machines the ranks are; 0 where nobody says. A job may have more than its ranks use."""
    if step := _number(environment, "SLURM_STEP_NUM_NODES"):
        return step
    if ranks == 1:
        return 1
    local = _number(environment, *_PER_NODE)
    return -(-ranks // local) if local else nodes_in(environment)


def _number(environment: Mapping[str, str], *names: str) -> int:
    for name in names:
        value = environment.get(name, "")
        if value.isdecimal() and int(value):
            return int(value)
    return 0


def _environment_of(proc: Path, pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty for another user's."""
    try:
        data = (proc / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in data.decode("utf-8", "surrogateescape").split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def _parent(proc: Path, pid: int) -> int:
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # A program's name may hold spaces and brackets: what follows the last one is plain.
    return int(text.rpartition(")")[2].split()[1])
