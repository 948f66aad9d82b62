"""Who changes a baseline, and which results it comes from."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.errors import ResultFileError

__all__ = ["Origin", "find_author", "results_digest"]

_GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an update keeps beside the reason and the date."""

    author: str = ""
    """`Name <address>`, as git knows the person who updates; "" where nothing says so."""

    results: str = ""
    """The result file that the values were read from: `sha256:` and its digest, and its name; "" for a live run."""


def find_author(folder: Path) -> str:
    """Return who updates: `GIT_AUTHOR_*` of the environment, else git's configuration in `folder`, else the CI's user."""
    name = os.environ.get("GIT_AUTHOR_NAME") or _configured(folder, "user.name")
    address = os.environ.get("GIT_AUTHOR_EMAIL") or _configured(folder, "user.email")
    if name or address:
        return f"{name} <{address}>".strip() if address else name
    return os.environ.get("GITHUB_ACTOR") or os.environ.get("GITLAB_USER_LOGIN") or ""


def results_digest(path: Path) -> str:
    """Identify a result file by its content and its name. Raises `ResultFileError` where it cannot be read."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise ResultFileError(f"{path}: cannot be read: {problem.strerror or problem}.") from None
    # The name alone: the folder says something about a machine, and nothing about the results.
    return f"sha256:{digest} {path.name}"


def _configured(folder: Path, key: str) -> str:
    while not folder.is_dir():
        folder = folder.parent
    try:
        return subprocess.run(
            ["git", "config", "--get", key],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        # No git, or it is not configured: an update goes without an author rather than not at all.
        return ""
