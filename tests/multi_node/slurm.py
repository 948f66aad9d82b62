"""Options of sbatch and srun, as their manual pages have them, and of pyxis: those that a script of ours may use."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

COMMON = {
    **{"account": True, "constraint": True, "cpus-per-task": True, "exclusive": False, "export": True},
    **{"gpus-per-node": True, "gpus-per-task": True, "gres": True, "job-name": True, "mem": True, "nodelist": True},
    **{"nodes": True, "ntasks": True, "ntasks-per-node": True, "output": True, "error": True, "partition": True},
    **{"time": True, "kill-on-bad-exit": False, "label": False, "chdir": True, "requeue": False, "no-requeue": False},
}
"""Option to whether it takes a value."""

OPTIONS = {
    "sbatch": {
        **{name: takes for name, takes in COMMON.items() if name not in ("kill-on-bad-exit", "label")},
        **{"array": True, "dependency": True, "segment": True, "signal": True, "wait": False, "parsable": False},
    },
    "srun": {
        **{name: takes for name, takes in COMMON.items() if "requeue" not in name},
        **{"mpi": True, "overlap": False, "unbuffered": False, "segment": True, "wait": True},
        # pyxis
        **{"container-image": True, "container-mounts": True, "container-workdir": True, "container-name": True},
        **{"container-mount-home": False, "no-container-mount-home": False, "container-env": True},
    },
}


def split_options(program: str, arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split a command line of sbatch or srun into options and the rest. Exits for an option that the program lacks."""
    found: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("--"):
            return found, list(arguments[index:])
        name, equals, value = argument.removeprefix("--").partition("=")
        takes = OPTIONS[program].get(name)
        if takes is None or (takes and not (equals and value)) or (not takes and equals):
            raise SystemExit(f"{program}: error: unrecognized option '{argument}'")
        found[name] = value
    return found, []


def directives(script: Path) -> dict[str, str]:
    """Return the options in the head of a batch script, as sbatch reads them: up to the first command."""
    arguments: list[str] = []
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.startswith("#SBATCH "):
            arguments += shlex.split(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    options, rest = split_options("sbatch", arguments)
    assert not rest, rest
    return options


def node_list(nodes: int) -> str:
    return ",".join(f"node{index}" for index in range(nodes))
