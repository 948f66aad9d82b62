"""Test modules of a project that have `inferperf` marks, known without importing one."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["has_cases", "modules"]


def modules(root: Path, *, names: Sequence[str], not_into: Sequence[str]) -> Iterator[Path]:
    """Yield the files below `root` that pytest takes for test modules, sorted, outside of virtual environments."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not any(fnmatch(name, pattern) for pattern in not_into) and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            if any(fnmatch(name, pattern) for pattern in names):
                yield here / name


def has_cases(path: Path) -> bool:
    """Whether a module names `pytest.mark.inferperf` in its code, not in a text; what cannot be read does not."""
    try:
        source = path.read_bytes()
        if b"inferperf" not in source:
            return False
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    return any(
        isinstance(node, ast.Attribute) and node.attr == "inferperf" and _is_mark(node.value) for node in ast.walk(tree)
    )


def _is_mark(node: ast.expr) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "mark") or (
        isinstance(node, ast.Name) and node.id == "mark"
    )
