"""A machine of files: /proc and /sys as the kernel writes them, in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ME = 100
"""The process that measures."""


class Machine:
    """Two CPUs, a cgroup without a limit, and processes as a test wants them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cpus({0: (0, 0), 1: (0, 0), 2: (0, 0)})
        self.file("proc/loadavg", "0.90 0.54 0.54 2/99 1106\n")
        self.process(ME, "pytest", parent=1)

    def file(self, path: str, text: str) -> None:
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text)

    def cpus(self, times: Mapping[int, tuple[int, int]], *, steal: int = 0) -> None:
        """Write /proc/stat: (busy, idle) ticks of each CPU, a third of `busy` in the system."""
        lines = ["cpu  1486233 0 116445 964620 9044 0 1668 5953 0 0"]
        for number, (busy, idle) in times.items():
            # iowait, irq and softirq at 0; guest time is part of user time and must not count twice.
            lines.append(f"cpu{number} {busy - busy // 3} 0 {busy // 3} {idle} 0 0 0 {steal} {busy // 2} 0")
        lines += ["intr 7031005 0 0", "ctxt 12", "btime 1", "processes 9", "procs_running 1", "procs_blocked 0"]
        self.file("proc/stat", "\n".join(lines) + "\n")

    def process(
        self,
        pid: int,
        name: str,
        *,
        parent: int,
        session: int = 1,
        own: int = 0,
        children: int = 0,
        start: int = 500,
        cpu: int = 0,
    ) -> None:
        """Write /proc/PID/stat; times in ticks."""
        head = f"{pid} ({name}) S {parent} {pid} {session} 0 -1 4194304 103 0 0 0"
        times = f"{own - own // 2} {own // 2} {children - children // 2} {children // 2}"
        # vsize to exit_signal, then the CPU.
        rest = f"20 0 1 0 {start} 3133440 384 18446744073709551615 1 1 1 1 1 0 0 0 0 0 0 0 17 {cpu} 0 0 0 0 0 1 1 1 1 1 1 1 0"
        self.file(f"proc/{pid}/stat", f"{head} {times} {rest}\n")

    def ended(self, pid: int) -> None:
        (self.root / f"proc/{pid}/stat").unlink()
        (self.root / f"proc/{pid}").rmdir()
