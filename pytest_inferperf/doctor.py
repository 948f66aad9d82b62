"""What this machine can run, what is missing, and what to do about each: a table of checks, each one line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from pytest_inferperf import __version__
from pytest_inferperf.baselines.check import Staleness, check_folder
from pytest_inferperf.baselines.store import baseline_files
from pytest_inferperf.engines.backends import has_nvidia_gpu
from pytest_inferperf.engines.checkpoint.cache import default_cache_dir
from pytest_inferperf.engines.hardware import cpu_hardware, find_gpus, gpu_words
from pytest_inferperf.engines.mpi_launch import (
    LAUNCHER,
    copies_in,
    find_launch,
    launch_problem,
    nodes_in,
    outer_environment,
)
from pytest_inferperf.engines.servers.presets import PRESETS
from pytest_inferperf.errors import InferperfError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import QUANTIZATIONS

__all__ = ["Diagnosis", "diagnose", "diagnosis_json"]

State = Literal["ok", "note", "missing"]

_OURS = "pytest-inferperf"

PLUGINS = {
    "pytest-benchmark": "shows rounds in its table",
    "pytest-xdist": "runs accuracy tests side by side",
    "pytest-rerunfailures": "runs again what decided nothing",
}

CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "BUILD_NUMBER", "TF_BUILD")
LEAST_DISK_GIB = 10.0
"""Room for one small checkpoint beside its source; a large model needs about three times its size."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One thing about the machine."""

    name: str
    state: State
    """`missing` is what a run cannot do without; a `note` is what it may want."""

    found: str
    next_step: str = ""
    """What to do; "" where there is nothing to do."""


def diagnose(root: Path) -> list[Diagnosis]:
    """Look at the machine, and at the project in `root`. Builds and loads nothing."""
    checks: tuple[Callable[[], list[Diagnosis]], ...] = (
        _versions,
        _engines,
        _extras,
        _gpu,
        _launch,
        _quantizations,
        _plugins,
        _disk,
        lambda: _git(root),
        _ci,
        lambda: _baselines(root),
    )
    return [item for check in checks for item in check()]


def diagnosis_json(found: list[Diagnosis]) -> dict[str, Any]:
    """Return the diagnosis as plain data."""
    return {"ok": all(item.state != "missing" for item in found), "checks": [asdict(item) for item in found]}


def _versions() -> list[Diagnosis]:
    python = Diagnosis(
        name="python", state="ok", found=f"{platform.python_version()} on {platform.platform(terse=True)}"
    )
    version = _version("pytest")
    pytest = (
        Diagnosis(name="pytest", state="ok", found=f"{version}, pytest-inferperf {__version__}")
        if version
        else Diagnosis(name="pytest", state="missing", found="not installed", next_step='pip install "pytest>=8.4"')
    )
    return [python, pytest]


def _engines() -> list[Diagnosis]:
    """Say what can run a model: in process, or a server that is installed."""
    ways = []
    if not _lacking("embedded"):
        ways.append("transformers in process")
    ways += [f'serve="{name}"' for name, preset in PRESETS.items() if _can_start(preset.program)]
    if ways:
        return [Diagnosis(name="engines", state="ok", found=", ".join(ways))]
    step = 'pip install "pytest-inferperf[embedded]", or measure a server that runs elsewhere: url="http://HOST:PORT"'
    return [Diagnosis(name="engines", state="missing", found="nothing here runs a model", next_step=step)]


def _can_start(program: tuple[str, ...]) -> bool:
    """Whether a server's program is installed: on the PATH, beside the interpreter, or as a module of it."""
    if "-m" in program:
        package = program[program.index("-m") + 1].partition(".")[0]
        return importlib.util.find_spec(package) is not None
    return shutil.which(program[0]) is not None or (Path(sys.executable).parent / program[0]).is_file()


def _extras() -> list[Diagnosis]:
    found = []
    extras = importlib.metadata.metadata(_OURS).get_all("Provides-Extra") or []
    for extra in sorted(set(extras) - {"dev"}):
        lacking = _lacking(extra)
        found.append(
            Diagnosis(
                name=f"extra {extra}",
                state="note" if lacking else "ok",
                found=f"without {', '.join(lacking)}" if lacking else "installed",
                next_step=f'pip install "pytest-inferperf[{extra}]"' if lacking else "",
            )
        )
    return found


def _gpu() -> list[Diagnosis]:
    gpus = find_gpus()
    if gpus:
        return [Diagnosis(name="GPU", state="ok", found=gpu_words(gpus))]
    cpu = cpu_hardware()
    on = f"none; engines run on {cpu.count} x {cpu.name}"
    if not has_nvidia_gpu():
        step = "add --inferperf-require-gpu where tests must not skip for want of one"
        return [Diagnosis(name="GPU", state="note", found=on, next_step=step)]
    if importlib.util.find_spec("pynvml") is None:
        return [
            Diagnosis(
                name="GPU",
                state="missing",
                found="a driver is here, but NVML cannot be asked: without nvidia-ml-py",
                next_step='pip install "nvidia-ml-py>=12"',
            )
        ]
    step = "look at nvidia-smi: the driver and its library may differ in version"
    return [Diagnosis(name="GPU", state="missing", found="a driver is here, but NVML names no GPU", next_step=step)]


def _launch() -> list[Diagnosis]:
    """Say what Slurm or MPI started this process as; nothing where neither did."""
    launch, around = find_launch(), outer_environment()
    job = f", Slurm job {around['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in around else ""
    if launch is not None:
        on = f"{launch.nodes} node{'s' if launch.nodes > 1 else ''}" if launch.nodes else "an unknown number of nodes"
        found = f"{launch.ranks} ranks of {LAUNCHER} on {on}{job}: tp x pp = {launch.ranks}"
        problem = launch_problem(EngineSpec(model="", served_model_name="any", tp=launch.ranks), launch)
        return [Diagnosis(name="launch", state="missing" if problem else "ok", found=found, next_step=problem)]
    copies, nodes = copies_in(around), nodes_in(around)
    if copies > 1:
        step = f"one engine on many GPUs: srun --mpi=pmix … {LAUNCHER} pytest …"
        return [
            Diagnosis(
                name="launch", state="note", found=f"one of {copies} copies that MPI started{job}", next_step=step
            )
        ]
    if job:
        step = f"for one engine on all of them: srun --mpi=pmix … {LAUNCHER} pytest …" if nodes > 1 else ""
        found = f"{nodes or 1} node{'s' if nodes > 1 else ''}{job}"
        return [Diagnosis(name="launch", state="note" if step else "ok", found=found, next_step=step)]
    return []


def _quantizations() -> list[Diagnosis]:
    best = max((gpu.sm for gpu in find_gpus()), default=0)
    rows = [row for row in QUANTIZATIONS.values() if row.quant_algo is not None]
    native = [row.name for row in rows if row.min_sm <= best]
    # A format that is only read runs where the hardware has it.
    others = [row.name for row in rows if row.min_sm > best and row.modelopt_config is not None]
    words = [f"native: {', '.join(native)}"] if native else []
    words += [f"simulated: {', '.join(others)}"] if others else []
    step = "their accuracy is real; measure their speed on hardware that has them" if others else ""
    return [Diagnosis(name="quantizations", state="note" if others else "ok", found="; ".join(words), next_step=step)]


def _plugins() -> list[Diagnosis]:
    found = []
    for name, use in PLUGINS.items():
        version = _version(name)
        found.append(
            Diagnosis(
                name=name,
                state="ok" if version else "note",
                found=f"{version}: {use}" if version else f"not installed; it {use}",
                next_step="" if version else f"pip install {name}",
            )
        )
    return found


def _disk() -> list[Diagnosis]:
    folder = default_cache_dir()
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 2**30
    writable = os.access(there, os.W_OK)
    name = "checkpoint cache"
    if not writable:
        step = "set INFERPERF_CACHE_DIR, or inferperf_cache_dir in the ini file"
        return [Diagnosis(name=name, state="missing", found=f"{folder} cannot be written", next_step=step)]
    if free < LEAST_DISK_GIB:
        step = f"free {LEAST_DISK_GIB:g} GiB, or set INFERPERF_CACHE_DIR to a larger disk"
        return [Diagnosis(name=name, state="missing", found=f"{folder}: {free:.1f} GiB free", next_step=step)]
    return [Diagnosis(name=name, state="ok", found=f"{folder}: {free:.0f} GiB free")]


def _git(root: Path) -> list[Diagnosis]:
    try:
        done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=root, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        step = "install git: baselines are reviewed in it, and results name the commit"
        return [Diagnosis(name="git", state="note", found="not found", next_step=step)]
    if done.returncode:
        step = "git init: baselines are reviewed in git, and results name the commit"
        return [Diagnosis(name="git", state="note", found="not a repository", next_step=step)]
    return [Diagnosis(name="git", state="ok", found="a repository")]


def _ci() -> list[Diagnosis]:
    # Names alone: values of the environment are nobody's business.
    names = [name for name in CI_VARIABLES if os.environ.get(name)]
    if not names:
        return [Diagnosis(name="CI", state="ok", found="not CI: --inferperf-update records")]
    step = "record from an artifact: inferperf baseline update RESULTS.json"
    return [Diagnosis(name="CI", state="note", found=f"{', '.join(names)} set: recording is off", next_step=step)]


def _baselines(root: Path) -> list[Diagnosis]:
    from datetime import datetime, timezone

    folder = root / "baselines"
    if not folder.is_dir():
        step = "inferperf init, or pytest --inferperf-update=new"
        return [Diagnosis(name="baselines", state="note", found="no folder baselines here", next_step=step)]
    try:
        findings, files = check_folder(folder, staleness=Staleness(now=datetime.now(timezone.utc)))
    except InferperfError as problem:
        return [Diagnosis(name="baselines", state="missing", found=str(problem), next_step="inferperf baseline check")]
    if findings:
        found = f"{len(findings)} of what is in {files} files is wrong"
        return [Diagnosis(name="baselines", state="missing", found=found, next_step="inferperf baseline check")]
    performance, accuracy = map(len, baseline_files(folder))
    step = "" if performance + accuracy else "pytest --inferperf-update=new records them"
    found = f"{performance} files of performance, {accuracy} of accuracy"
    return [Diagnosis(name="baselines", state="note" if step else "ok", found=found, next_step=step)]


def _lacking(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed, as the package itself declares them."""
    declared = map(Requirement, importlib.metadata.requires(_OURS) or ())
    wanted = [item for item in declared if item.marker is not None and not item.marker.evaluate({"extra": ""})]
    own = [item for item in wanted if item.marker is not None and item.marker.evaluate({"extra": extra})]
    return [item.name for item in own if not _version(item.name)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
