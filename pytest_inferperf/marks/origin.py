"""Where marks stand: what relative paths are relative to, and what the command line overrides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.errors import MarkError
from pytest_inferperf.model.case import Scalar

__all__ = ["Origin", "existing"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where marks stand: what relative paths are relative to, and what the command line overrides."""

    folder: Path
    """The folder of the test file."""

    root: Path | None = None
    """pytest's rootdir, which files of workloads lie within; None where nothing is confined."""

    overrides: tuple[tuple[str, Scalar], ...] = ()
    """`--inferperf-set` pairs; a dotted `engine_options.NAME` sets one option."""

    backends: tuple[str, ...] = ()
    """Valid backend names; empty when a third-party hook may accept any."""

    default_backend: str = "auto"


def existing(name: str, folder: Path) -> Path | None:
    """Return what is there under a name, resolved; None where nothing is. Raises `MarkError` for what is no path."""
    try:
        path = (folder / Path(name).expanduser()).resolve()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        # Too long, a NUL in it, or the home of nobody.
        raise MarkError(f"inferperf: {name[:80]!r} cannot be a path: {error}") from None
