"""A plan as text: one block per engine with its tests, one line per gate, and what it all comes to."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight, GateForecast, Plan, ReferencePlan
from pytest_inferperf.report.lines import plural

__all__ = ["duration", "plan_lines"]

_LABEL = {
    Foresight.ABLE: "ok",
    Foresight.WEAK: "weak",
    Foresight.UNCALIBRATED: "plain",
    Foresight.UNKNOWN: "?",
    Foresight.MISSING: "MISSING",
    Foresight.UNABLE: "ERROR",
}
_COUNTED = {
    Foresight.MISSING: ("has no baseline", "have no baseline"),
    Foresight.UNABLE: ("cannot decide at its tolerance", "cannot decide at their tolerance"),
    Foresight.UNCALIBRATED: ("is uncalibrated", "are uncalibrated"),
    Foresight.WEAK: (
        "finds its tolerance with less than {power:.3g} % power",
        "find their tolerance with less than {power:.3g} % power",
    ),
    Foresight.UNKNOWN: ("is known only in the run", "are known only in the run"),
}
"""What the last lines count, worst first, for one gate and for more."""


def duration(seconds: float) -> str:
    """Say how long something takes, as precisely as a guess deserves: `8 s`, `84 s`, `6 min`, `2 h 10 min`."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def plan_lines(plan: Plan) -> list[str]:
    """Lay a plan out: engines in the order in which they are opened, their tests, and a line for each gate."""
    if not plan.engines:
        return ["nothing to plan: no test with an inferperf mark was collected"]
    gates = [gate for engine in plan.engines for case in engine.cases for gate in case.gates]
    widths = [
        max((len(text) for text in texts), default=0)
        for texts in (
            [_LABEL[gate.state] for gate in gates],
            [gate.gate for gate in gates],
            [gate.aim for gate in gates],
        )
    ]
    lines = [f"against {plan.against}", ""] if plan.against else []
    for engine in plan.engines:
        lines += [*_engine_lines(engine, widths, timed=bool(plan.past)), ""]
    return lines + _totals(plan, gates)


def _engine_lines(engine: EnginePlan, widths: list[int], *, timed: bool) -> Iterator[str]:
    yield f"engine {engine.name}"
    if engine.problem:
        yield from _labelled("ERROR", engine.problem)
    if engine.checkpoint:
        yield from _labelled("checkpoint", engine.checkpoint)
    yield from _labelled("GPUs", engine.gpus)
    if not engine.is_opened:
        yield from _labelled("load", "not opened: no test runs on this machine")
    elif timed:
        yield from _labelled("load", _about(engine.load_s))
    for reference in engine.references:
        yield from _labelled("reference", "\n".join(_reference_lines(reference, timed=timed)))
    for case in engine.cases:
        yield f"  {case.nodeid}  {_case_words(case, timed=timed)}".rstrip()
        for gate in case.gates:
            cells = (_LABEL[gate.state], gate.gate, gate.aim)
            row = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            first, *rest = gate.text.splitlines() or [""]
            yield f"    {row}  {first}".rstrip()
            yield from (f"      {line}" for line in rest)


def _reference_lines(reference: ReferencePlan, *, timed: bool) -> Iterator[str]:
    """Name an engine that others are compared with, and say what it takes to have it."""
    called = f", called {reference.label}" if reference.label != reference.name.partition(" ")[0] else ""
    under = f", under {reference.python}" if reference.python else ""
    held = "loaded in turns with it, never both at once" if reference.reload else "loaded beside it, both held at once"
    yield f"{reference.name}{called}{under}; {held}"
    if reference.problem:
        yield from (f"ERROR {line}" for line in reference.problem.splitlines())
    if reference.checkpoint:
        yield f"checkpoint {reference.checkpoint}"
    if timed:
        yield f"load {_about(reference.load_s)}"


def _labelled(label: str, text: str) -> Iterator[str]:
    first, *rest = text.splitlines()
    yield f"  {label:<10}  {first}"
    yield from (f"  {'':<10}  {line}" for line in rest)


def _case_words(case: CasePlan, *, timed: bool) -> str:
    if case.skipped:
        return f"does not run here: {case.skipped}"
    if not case.is_case:
        return "(asserts of its own, no gates)"
    words = [_about(case.duration_s)] if timed else []
    if case.sessions > 1:
        words.append(f"{case.sessions} sessions or more")
    if case.longest_s is not None and duration(case.longest_s) != duration(case.duration_s or 0.0):
        words.append(f"{duration(case.longest_s)} if every look is needed")
    return ", ".join(words if case.gates else [*words, "no gates"])


def _about(seconds: float | None) -> str:
    return "no past result" if seconds is None else f"about {duration(seconds)}"


def _totals(plan: Plan, gates: list[GateForecast]) -> list[str]:
    opened = [engine for engine in plan.engines if engine.is_opened]
    cases = [case for engine in plan.engines for case in engine.cases if case.is_case]
    running = [case for case in cases if not case.skipped]
    times = [engine.load_s for engine in opened] + [case.duration_s for case in running]
    known = [seconds for seconds in times if seconds is not None]
    unknown = len(times) - len(known)
    total = "time unknown, no past result" if not known else f"about {duration(sum(known))}"
    if known and unknown:
        total = f"at least {duration(sum(known))} ({unknown} of {len(times)} loads and cases without a past result)"
    references = {(item.name, item.label, item.reload) for engine in plan.engines for item in engine.references}
    counts = [(len(cases), "case"), (len(plan.engines), "engine"), (len(gates), "gate")]
    if references:
        counts.insert(2, (len(references), "reference engine"))
    by = f", by {plan.past}" if known else " (--inferperf-past=RESULTS.json names one)" if not plan.past else ""
    lines = [f"{', '.join(plural(*item) for item in counts)}: {total}{by}"]
    if len(running) < len(cases):
        lines.append(f"{plural(len(cases) - len(running), 'case')} of them cannot run on this machine")
    broken = sum(bool(engine.problem) for engine in plan.engines)
    broken += len({item.label for engine in plan.engines for item in engine.references if item.problem})
    if broken:
        lines.append(f"{plural(broken, 'engine')} cannot be opened")
    for state, words in _COUNTED.items():
        count = sum(gate.state is state for gate in gates)
        if count:
            lines.append(f"{plural(count, 'gate')} {words[count > 1].format(power=100 * plan.power)}")
    step = _next_step(plan)
    return [*lines, "", f"Next: {step}"] if step else lines


def _next_step(plan: Plan) -> str:
    """Return the first command that a gate of a test that runs asks for; "" for none."""
    for engine in plan.engines:
        for case in engine.cases:
            for gate in case.gates:
                if gate.next_step and not case.skipped:
                    return gate.next_step.replace("{nodeid}", shlex.quote(case.nodeid))
    return ""
