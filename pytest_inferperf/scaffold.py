"""What `inferperf init` makes in a repository: a suite, a folder of baselines, settings and a CI job. It never overwrites."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import SettingsError

__all__ = ["CI", "DEFAULT_MODEL", "Made", "scaffold"]

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
"""What a suite measures where nobody says: small enough for a CPU."""

CI = {
    "github": (".github/workflows/inference.yml", "github.yml"),
    "gitlab": (".gitlab-ci.yml", "gitlab.yml"),
}
"""The file of each CI system, and the template of it."""

_SUITE = "suites/test_inference.py"
_SETTINGS = "pytest.ini"
_PYTEST_FILES = ("pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml")
_SECTION = re.compile(r"^\s*\[(pytest|tool:pytest|tool\.pytest(\.ini_options)?)\]", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One file that was asked for."""

    path: str
    """Relative to the repository."""

    made: bool
    note: str = ""
    """Why it was not made, and what to do by hand."""


def scaffold(folder: Path, *, model: str, ci: Sequence[str]) -> list[Made]:
    """Make what is missing below `folder`, and say of everything whether it was made.

    `model` is a hub id, or a folder relative to the working directory. Raises `SettingsError` where the folder cannot be
    written, or the model can be neither.
    """
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder}: is not a folder. Name the folder of your repository.")
    suite = _template("test_inference.py").replace("@MODEL@", _literal(_model(model, folder / _SUITE)))
    found = [
        _make(folder, _SUITE, suite),
        _make(folder, "baselines/README.md", _template("baselines.md")),
        _settings(folder),
    ]
    for name in ci:
        path, template = CI[name]
        found.append(_make(folder, path, _template(template), "copy what it lacks from the documentation (docs/ci.md)"))
    return found


def _make(folder: Path, name: str, text: str, by_hand: str = "") -> Made:
    path = folder / name
    if os.path.lexists(path):
        return Made(path=name, made=False, note=f"it exists{'; ' if by_hand else ''}{by_hand}")
    write_atomic(path, text, shown=str(path), error=SettingsError)
    return Made(path=name, made=True)


def _settings(folder: Path) -> Made:
    """Write the settings, unless another file holds pytest's: pytest reads one alone."""
    text = _template(_SETTINGS)
    for name in _PYTEST_FILES:
        path = folder / name
        if name.startswith(("pytest", ".pytest")) and path.exists():
            there = True
        else:
            there = path.is_file() and _SECTION.search(path.read_text("utf-8", errors="replace")) is not None
        if there:
            wanted = [line for line in text.splitlines() if line.startswith("inferperf_")]
            return Made(path=name, made=False, note=f"it holds pytest's settings; add: {', '.join(wanted)}")
    return _make(folder, _SETTINGS, text)


def _model(model: str, suite: Path) -> str:
    """Return what the mark says: a folder relative to the suite, or the id as it is."""
    if not model.strip():
        raise SettingsError("--model is empty. Name a hub id, such as org/name, or a folder in Hugging Face layout.")
    path = Path(model).expanduser()
    if path.is_dir():
        return Path(os.path.relpath(path, suite.parent)).as_posix()
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise SettingsError(f"--model {model!r}: no such folder, and no hub id, such as org/name.")
    return model


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _template(name: str) -> str:
    return resources.files("pytest_inferperf").joinpath("templates").joinpath(f"{name}.txt").read_text("utf-8")
