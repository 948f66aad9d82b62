"""What a self-test found: what every gate said without and with a regression, and what it can be relied on to detect."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pytest_inferperf.gates.reliance import Reliance
from pytest_inferperf.report.lines import plural

__all__ = ["GateProof", "SelfTestReport", "report_json", "report_lines"]


@dataclass(frozen=True, kw_only=True)
class GateProof:
    """One gate: what it said without and with a regression, and what it can be relied on to detect."""

    nodeid: str
    gate: str
    clean: str
    """The verdict without a regression."""

    injected: str = ""
    """What was injected for it; "" where it did not come to that."""

    found: str = ""
    """The verdict with the regression, or `not judged`."""

    problem: str = ""
    """Why it is not proven; "" when it is."""

    unit: str = ""
    """Of what follows: `%` or `points`."""

    reliance: Reliance | None = None
    """None for a plain limit, which has no statistics."""

    distance: float | None = None
    """How far the limit is away, for a plain limit, in the unit."""


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """Everything a self-test found."""

    proofs: tuple[GateProof, ...]
    skipped: Mapping[str, str]
    """Nodeid to reason: nothing is known of their gates."""

    problems: tuple[str, ...]
    """Tests that could not even be judged."""

    @property
    def proven(self) -> bool:
        """Whether there are gates, and every one of them passed without a regression and failed with one."""
        return bool(self.proofs) and not self.problems and all(not item.problem for item in self.proofs)

    @property
    def unreliable(self) -> tuple[GateProof, ...]:
        """The gates that cannot be relied on to detect a loss as large as their own tolerance."""
        return tuple(item for item in self.proofs if item.reliance is not None and not item.reliance.detects_its_own)


def report_lines(report: SelfTestReport) -> list[str]:
    """Return the report: a heading per test, a line per gate and one below it on what it detects, and the counts."""
    lines: list[str] = []
    width = max((len(item.gate) for item in report.proofs), default=0)
    for nodeid, proofs in groupby(report.proofs, lambda item: item.nodeid):
        lines.append(nodeid)
        for item in proofs:
            verdicts = f"{item.clean} clean" + (f", {item.found} with {item.injected}" if item.injected else "")
            lines.append(f"  {'ok' if not item.problem else 'BAD':<3}  {item.gate:<{width}}  {verdicts}")
            lines += [f"{'':<7}{text}" for text in (item.problem, detects(item)) if text]
    lines += [f"skipped: {nodeid}: {reason}" for nodeid, reason in report.skipped.items()]
    lines += [f"BAD: {problem}" for problem in report.problems]
    proven = sum(not item.problem for item in report.proofs)
    counts = f"{proven} of {plural(len(report.proofs), 'gate')} pass clean and fail with a regression"
    if report.unreliable:
        counts += f"; {len(report.unreliable)} cannot be relied on to detect a loss as large as their tolerance"
    return [*lines, "", counts]


def detects(proof: GateProof) -> str:
    """Say what a gate can be relied on to detect; "" where it did not come to that."""
    found, unit = proof.reliance, proof.unit
    if found is None:
        return f"a plain limit, {proof.distance:.3g} {unit} away" if proof.distance is not None else ""
    if found.least is None:
        return (
            f"nobody knows what it detects: uncalibrated, {plural(found.more or 0, f'more {found.counted}')} would tell"
        )
    # Rounded up: what is named here is detected.
    least = f"{math.ceil(1e4 * found.least - 1e-9) / 100:g}"
    own = f"{100 * found.own:g} {unit}"
    if found.detects_its_own:
        return f"detects its own tolerance of {own}"
    if found.more is not None:
        more = f"{plural(found.more, f'more {found.counted}')} would do"
    else:
        more = "larger rounds (num_requests) might do" if found.counted == "block" else "nothing would do"
    return f"cannot detect its own tolerance of {own}: relies on {least} or more; {more}"


def report_json(report: SelfTestReport) -> dict[str, Any]:
    """Return the report as plain data; shares are in the gate's unit."""
    gates = []
    for item in report.proofs:
        found = item.reliance
        gates.append(
            {
                **{name: value for name, value in dataclasses.asdict(item).items() if name != "reliance"},
                "proven": not item.problem,
                "tolerance": 100 * found.own if found is not None else None,
                "detectable": 100 * found.least if found is not None and found.least is not None else None,
                "detects_its_tolerance": found.detects_its_own if found is not None else None,
                "more_needed": found.more if found is not None else None,
                "counted": found.counted if found is not None else None,
            }
        )
    return {
        "schema_version": 1,
        "proven": report.proven,
        "gates": gates,
        "skipped": dict(report.skipped),
        "problems": list(report.problems),
    }
