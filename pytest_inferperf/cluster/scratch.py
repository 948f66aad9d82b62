"""Ray's folder of a run: it goes with the run, and so does what writes into it, also where the run is killed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["ScratchFolder"]

_WATCH = """
read -r _
for pause in 3 2 4 8; do
    sleep "$pause"
    for process in /proc/[0-9]*; do
        if ls -l "$process/fd" 2>/dev/null | grep -qF "$1/"; then kill -9 "${process#/proc/}"; fi
    done
    rm -rf -- "$1"
    [ -e "$1" ] || exit 0
done
"""
"""Waits for the end of its input, which comes with the end of the run. Ray dies with it, but for two processes that look for
their cluster for a minute: what still has a file open in the folder is of this run.
"""


_REMOVAL_S = 20.0


class ScratchFolder:
    """A folder that is removed by `remove`, or by a process that sees the run end without it."""

    def __init__(self) -> None:
        # Ray puts sockets there, whose paths have to be short.
        self.path = Path(tempfile.mkdtemp(prefix="ifp-ray-"))
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def remove(self, *, ended: bool = True) -> None:
        """Remove it now, or, where Ray has not `ended` by itself, once what is left of it is. Never raises."""
        if not ended:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._watch.wait(_REMOVAL_S)
            return
        shutil.rmtree(self.path, ignore_errors=True)
        if self._watch.poll() is None:
            self._watch.kill()
            self._watch.communicate()
