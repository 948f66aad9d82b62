"""The context of a run: versions, commit, machine. Recorded and shown; never part of a baseline's identity."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pytest_inferperf import __version__

__all__ = ["collect_context"]

_PACKAGES = ("torch", "transformers", "nvidia-modelopt", "tensorrt-llm", "lm-eval", "pytest", "numpy")


def collect_context(root: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Collect what may explain a change: package versions, git commit, operating system.

    `root` is the folder whose git commit is recorded. Nothing secret is read: no environment values, no user, no
    host name.
    """
    found = {
        "pytest-inferperf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git_commit(root)
    if commit:
        found["git_commit"] = commit
    return found | dict(extra or {})


def _git_commit(root: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        # Not a repository, no git, or a slow disk: the context goes without a commit.
        return ""
