"""What else the CPUs did: from two looks at /proc and /sys. What this machine does not tell is left out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["MIN_TICKS", "CpuWatch"]

MIN_TICKS = 100
"""Fewer clock ticks than this (1 s of CPU time) make no share: its standard error could be above 5 %."""

_NAMED_SHARE = 0.05
"""The largest other process is named from this share on."""

_BUSY_CORES = 0.5
"""A clock says something only where the run keeps a CPU busy."""


@dataclass(frozen=True)
class _CpuTime:
    """Clock ticks of some CPUs since boot, as /proc/stat counts them (proc_stat(5))."""

    busy: int
    """user + nice + system: of processes. Interrupts are nobody's."""

    steal: int
    total: int


@dataclass(frozen=True)
class _Process:
    """One process, as /proc/PID/stat describes it (proc_pid_stat(5)); times in clock ticks."""

    name: str
    parent: int
    session: int
    start: int
    own: int
    children: int
    """Time of children that ended and were waited for."""

    cpu: int
    """Where it ran last."""


@dataclass(frozen=True)
class _Throttling:
    """CPU bandwidth control of one cgroup since it was made."""

    periods: int
    throttled: int
    throttled_s: float


class CpuWatch:
    """Compares the CPUs at the start and at the end of a measurement; `sample` reads clocks in between."""

    def __init__(self, *, root: Path, pid: int, cpus: Collection[int], also: Collection[int] = ()) -> None:
        """Look at the processes and the CPUs. Beside `pid` and what it starts, the processes `also` are ours."""
        self._root = root
        self._pids = frozenset({pid, *also})
        self._cpus = frozenset(cpus)
        # What others do while /proc is read, between the look at processes and the one at CPUs, is not counted.
        self._processes = _read_processes(root / "proc")
        self._after = self._processes
        self._throttling = _read_throttling(root)
        self._start_s = time.perf_counter()
        self._times = _read_cpus(root / "proc" / "stat", self._cpus)
        self._clocks: list[tuple[float, float]] = []
        folders = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in sorted(self._cpus)]
        highest = [(folder / "scaling_cur_freq", _read_number(folder / "cpuinfo_max_freq")) for folder in folders]
        self._frequencies = [(path, khz) for path, khz in highest if khz and _read_number(path)]

    @property
    def can_sample(self) -> bool:
        """Whether there is anything to read while the measurement runs."""
        return bool(self._frequencies)

    @property
    def known(self) -> frozenset[int]:
        """Every process that was there at the start or at the end."""
        return frozenset(self._processes) | frozenset(self._after)

    @property
    def ours(self) -> frozenset[int]:
        """Return pytest, the engine, and whatever they started, at the start or at the end."""
        return frozenset(_family(self._processes, self._pids) | _family(self._after, self._pids))

    def sample(self) -> None:
        """Read the clock of the fastest CPU: an idle one may be slow."""
        now = [(khz / highest, khz / 1000) for path, highest in self._frequencies if (khz := _read_number(path))]
        if now:
            self._clocks.append(max(now))

    def figures(self) -> dict[str, float]:
        """Look again, and return what happened since the start; names and units stand in docs/reference/files.md."""
        times = _read_cpus(self._root / "proc" / "stat", self._cpus)
        window_s = time.perf_counter() - self._start_s
        throttling = _read_throttling(self._root)
        self._after = _read_processes(self._root / "proc")
        found = {"window_s": window_s, "cpu.count": float(len(self._cpus))}
        load = _read_text(self._root / "proc" / "loadavg").split()
        if load:
            found["cpu.load_1m"] = float(load[0])
        found |= self._shares(times)
        found |= self._throttled(throttling)
        if self._clocks and found.get("cpu.own", 0.0) * len(self._cpus) >= _BUSY_CORES:
            found["cpu.clock"] = median(share for share, _ in self._clocks)
            found["cpu.clock_mhz"] = median(mhz for _, mhz in self._clocks)
        return found

    def _shares(self, times: dict[int, _CpuTime]) -> dict[str, float]:
        both = times.keys() & self._times.keys()
        busy, steal, total = (
            sum(max(0, getattr(times[cpu], name) - getattr(self._times[cpu], name)) for cpu in both)
            for name in ("busy", "steal", "total")
        )
        ours = _family(self._after, self._pids)
        if total < MIN_TICKS or not ours:
            return {}
        # A child that ended in between has left its time with the parent that waited for it; an orphan has not.
        family = _family(self._processes, self._pids)
        left = [pid for pid in family if pid in ours or self._processes[pid].parent in family]
        own = max(0, _ticks(self._after, ours) - _ticks(self._processes, left))
        others = max(0, busy - own)
        found = {"cpu.own": own / total, "cpu.others": others / total, "cpu.steal": steal / total}
        top = self._largest(ours)
        if top is not None and top[1] / total >= _NAMED_SHARE:
            found[f"cpu.others.{top[0]}"] = min(top[1], others) / total
        return found

    def _largest(self, ours: Collection[int]) -> tuple[str, int] | None:
        """Find the name, among the other processes on our CPUs, that took the most time: the one to stop."""
        took: Counter[str] = Counter()
        for pid, process in self._after.items():
            before = self._processes.get(pid)
            known = before is not None and before.start == process.start
            if pid not in ours and process.cpu in self._cpus:
                took[process.name] += process.own - (before.own if known and before is not None else 0)
        return took.most_common(1)[0] if took else None

    def _throttled(self, after: dict[Path, _Throttling]) -> dict[str, float]:
        """Share of the quota periods that were throttled: in our cgroup, or in one above it."""
        moved = [(self._throttling[path], now) for path, now in after.items() if path in self._throttling]
        if not moved:
            return {}
        periods = [(now.throttled - was.throttled, now.periods - was.periods) for was, now in moved]
        return {
            "cpu.throttled": max((throttled / count for throttled, count in periods if count > 0), default=0.0),
            "cpu.throttled_s": max(now.throttled_s - was.throttled_s for was, now in moved),
        }


def _read_text(path: Path) -> str:
    """Return the text of a file of the kernel; "" where there is none, or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_number(path: Path) -> float:
    text = _read_text(path).strip()
    return float(text) if text.isdecimal() else 0.0


def _read_cpus(path: Path, cpus: Collection[int]) -> dict[int, _CpuTime]:
    found = {}
    for line in _read_text(path).splitlines():
        name, _, values = line.partition(" ")
        if not name.startswith("cpu") or not name[3:].isdecimal() or int(name[3:]) not in cpus:
            continue
        # guest and guest_nice, the last two, are part of user and nice.
        user, nice, system, idle, iowait, irq, softirq, steal = ([int(item) for item in values.split()] + [0] * 8)[:8]
        busy = user + nice + system
        found[int(name[3:])] = _CpuTime(busy, steal, busy + idle + iowait + irq + softirq + steal)
    return found


def _read_processes(proc: Path) -> dict[int, _Process]:
    try:
        pids = [int(path.name) for path in proc.iterdir() if path.name.isdecimal()]
    except OSError:
        return {}
    found = {}
    for pid in pids:
        head, closing, rest = _read_text(proc / str(pid) / "stat").rpartition(")")
        values = rest.split()
        if closing and len(values) > 36:
            # Field n of proc_pid_stat(5) is values[n - 3].
            found[pid] = _Process(
                # A process may call itself anything.
                name="".join(letter if letter.isprintable() else "?" for letter in head.partition("(")[2]),
                parent=int(values[1]),
                session=int(values[3]),
                start=int(values[19]),
                own=int(values[11]) + int(values[12]),
                children=int(values[13]) + int(values[14]),
                cpu=int(values[36]),
            )
    return found


def _family(processes: dict[int, _Process], pids: Collection[int]) -> set[int]:
    """Return processes, their descendants, and whoever runs in a session that one of them leads.

    An engine's process leads a session of its own: what it starts stays ours when its parent ends.
    """
    children: dict[int, list[int]] = {}
    sessions: dict[int, list[int]] = {}
    for number, process in processes.items():
        children.setdefault(process.parent, []).append(number)
        sessions.setdefault(process.session, []).append(number)
    found: set[int] = set()
    waiting = [pid for pid in pids if pid in processes]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += children.get(number, [])
            waiting += sessions.get(number, [])
    return found


def _ticks(processes: dict[int, _Process], pids: Collection[int]) -> int:
    return sum(processes[pid].own + processes[pid].children for pid in pids)


def _read_throttling(root: Path) -> dict[Path, _Throttling]:
    """Read cpu.stat of our cgroup and of those above it, of version 1 or 2, wherever CPU time is limited."""
    return {path: stat for path in _cpu_stat_paths(root) if (stat := _parse_cpu_stat(_read_text(path))) is not None}


def _cpu_stat_paths(root: Path) -> Iterator[Path]:
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _read_text(root / "proc" / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in (mounts / controllers, mounts / "cpu") if controllers else (mounts, mounts / "unified"):
            # In a container the path may be the host's, while the mount begins at our own group.
            folder = base / group.strip("/")
            yield from (place / "cpu.stat" for place in (folder, *folder.parents) if place.is_relative_to(base))


def _parse_cpu_stat(text: str) -> _Throttling | None:
    pairs = (line.split() for line in text.splitlines())
    values = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
    if not values.keys() >= {"nr_periods", "nr_throttled"}:
        return None
    # Version 2 counts microseconds, version 1 nanoseconds.
    seconds = values.get("throttled_usec", 0) / 1e6 + values.get("throttled_time", 0) / 1e9
    return _Throttling(values["nr_periods"], values["nr_throttled"], seconds)
