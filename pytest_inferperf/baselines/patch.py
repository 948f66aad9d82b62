"""A planned change as a patch that `git apply` takes, instead of writing it."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_inferperf.baselines.hunks import hunks
from pytest_inferperf.baselines.update_plan import PlannedFile, UpdatePlan
from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import SettingsError
from pytest_inferperf.hiding import finder

__all__ = ["patch_text", "write_patch"]

_FIGURE = re.compile(r"^[-+ ] *[-+.\deE\[\]]*,?\n", re.M)
"""A line of a patch with a number or a bracket, and no text."""

_NO_NEWLINE = "\\ No newline at end of file\n"


def write_patch(plan: UpdatePlan, path: Path) -> None:
    """Write what a plan would change as a patch; nothing where it changes nothing.

    Raises `SettingsError` for a file that cannot be written, and for a secret in what the patch would quote.
    """
    if not plan.files:
        return
    text = patch_text(plan.files, plan.root)
    find = finder()
    # Figures are most of a patch, and hold no text: a secret of digits is in one by chance alone.
    secret = find(_FIGURE.sub("", text))
    if secret:
        # Hidden, the patch would not apply: what it quotes is the file that it is made for.
        names = ", ".join(file.shown for file in plan.files if file.before and find(file.before.decode("utf-8")))
        raise SettingsError(
            f"{path}: not written: it would quote {names}, which {secret}. Revoke the secret and take it out of the file, "
            "then make the patch again."
        )
    write_atomic(path, text, shown=str(path), error=SettingsError)


def patch_text(files: Sequence[PlannedFile], root: Path) -> str:
    """Return the patch of all planned files, with paths as git names them: from the top of the repository of `root`.

    Outside a repository they are relative to the root's parent.
    """
    top = _top(root)
    return "".join(line for file in files for line in _lines(file, _name(file, top)))


def _lines(file: PlannedFile, name: str) -> Iterator[str]:
    before = "" if file.before is None else file.before.decode("utf-8")
    # Lines as git counts them: `str.splitlines` also ends one at U+2028, which a reason may hold.
    old, new = (io.StringIO(text, newline="\n").readlines() for text in (before, file.after or ""))
    yield f"diff --git {_quoted('a/' + name)} {_quoted('b/' + name)}\n"
    if file.before is None:
        yield "new file mode 100644\n"
    if file.after is None:
        yield "deleted file mode 100644\n"
    # A tab ends a name with spaces, as git itself writes it.
    tab = "\t" if " " in name else ""
    yield f"--- {'/dev/null' if file.before is None else _quoted('a/' + name) + tab}\n"
    yield f"+++ {'/dev/null' if file.after is None else _quoted('b/' + name) + tab}\n"
    for line in hunks(old, new):
        yield line
        if not line.endswith("\n"):
            yield f"\n{_NO_NEWLINE}"


def _top(root: Path) -> Path | None:
    folder = root.absolute()
    while not folder.is_dir():
        folder = folder.parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(done.stdout.decode("utf-8", "surrogateescape").rstrip("\n"))


def _name(file: PlannedFile, top: Path | None) -> str:
    if top is not None:
        path = file.path.parent.resolve() / file.path.name
        if path.is_relative_to(top.resolve()):
            return path.relative_to(top.resolve()).as_posix()
    return file.shown.lstrip("/")


def _quoted(name: str) -> str:
    """Quote a name as git does: in C's way where it holds anything but printable ASCII, a quote or a backslash."""
    plain = all(" " <= letter <= "~" and letter not in '"\\' for letter in name)
    if plain:
        return name
    letters = []
    for byte in name.encode("utf-8", "surrogateescape"):
        letter = chr(byte)
        letters.append(f"\\{letter}" if letter in '"\\' else letter if " " <= letter <= "~" else f"\\{byte:03o}")
    return f'"{"".join(letters)}"'
