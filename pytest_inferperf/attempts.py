"""Judges the run of a test in its session: what its gates say, whether that stands, and which failure it is."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_inferperf.errors import BaselineError
from pytest_inferperf.session import RECORD, state_of

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.model.verdicts import GateVerdict
    from pytest_inferperf.settings import Settings

__all__ = ["RUN", "forget_attempt", "is_a_regression", "judge_item", "not_a_regression", "waived_failure"]

RUN = pytest.StashKey["Inferperf"]()
_MESSAGE = pytest.StashKey[str]()


def judge_item(item: pytest.Item, run: Inferperf, *, invalid: str = "", body_failed: str = "") -> str:
    """Judge a run, keep its record, and return the failure message; "" when every gate lets it pass.

    `invalid` makes every gate INVALID; `body_failed` leaves the verdicts as they are and keeps the record from ever
    becoming a baseline.
    """
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.flips import with_flips
    from pytest_inferperf.gates.judge import failed_requests
    from pytest_inferperf.gates.performance import stale_verdict
    from pytest_inferperf.judging import judge_case
    from pytest_inferperf.model.injection import shown
    from pytest_inferperf.model.sharing import with_place
    from pytest_inferperf.model.verdicts import Status, worst
    from pytest_inferperf.report.junit import junit_properties
    from pytest_inferperf.report.lines import INJECTED, failure_message
    from pytest_inferperf.waiving import today, with_notes

    settings = state_of(item.config).settings
    placed = state_of(item.config).placement
    result = with_place(run.result, placed() if placed is not None else None)
    result = replace(result, invalid=invalid) if invalid else result
    gates = run.bound.gates
    failed = [failed_requests(gates, point.performance, point.comparisons) for point in result.points()]
    reason = result.invalid or next(filter(None, failed), "")
    if not run.measured and not gates and not reason:
        return ""
    broken = ""
    try:
        verdicts = judge_case(
            result,
            gates,
            root=settings.baselines,
            tolerance=settings.tolerance,
            alpha=settings.alpha,
            against=settings.against_run,
            nodeid=item.nodeid,
        )
        result = with_flips(result, gates, root=settings.baselines, against=settings.against_run, nodeid=item.nodeid)
    except BaselineError as error:
        # What was measured is kept; it can be judged again once the file is mended.
        verdicts, broken = (), f"INVALID: {reason}\n{error}" if reason else str(error)
    if not run.engine.can_relaunch:
        verdicts = tuple(map(_without_relaunch, verdicts))
    if settings.update is not None:
        # The command that a missing baseline asks for is the one that is running.
        verdicts = tuple(replace(verdict, next_step="") for verdict in verdicts)
    if settings.fail_on_improvement and settings.against is None:
        verdicts = tuple(map(stale_verdict, verdicts))
    verdicts = tuple(replace(verdict, notes=(*verdict.notes, *run.notes)) for verdict in verdicts)
    verdicts = with_notes(verdicts, item.nodeid, settings.waivers, today())
    status = worst(verdicts) if verdicts else None
    # A test that is run again reports its last attempt.
    item.user_properties[:] = [pair for pair in item.user_properties if not pair[0].startswith("inferperf.")]
    item.user_properties.extend(junit_properties(result, verdicts))
    item.stash[RECORD] = ResultRecord(
        nodeid=item.nodeid,
        result=replace(result, invalid=body_failed or reason),
        gates=gates,
        verdicts=verdicts,
        status=status,
    )
    injected = shown(settings.injections)
    note = f"\n  note: {INJECTED.format(injected)}" if injected else ""
    if broken or status is Status.PASS:
        return broken and broken + note
    if status is None:
        return f"INVALID: {reason}{note}" if reason else ""
    timed = (
        result.performance is not None
        or result.frontier is not None
        or any(compared.blocks for compared in result.comparisons)
    )
    simulated = result.engine is not None and result.engine.simulated and timed
    message = item.stash[_MESSAGE] = failure_message(
        verdicts, _rerun(item, settings), simulated=simulated, injected=injected
    )
    # What a body failed with, Ctrl-C above all, must not be replaced by a warning that -W error turns into an error.
    if status is Status.INCONCLUSIVE and settings.on_inconclusive == "warn" and not body_failed:
        try:
            warnings.warn(pytest.PytestWarning(state_of(item.config).hide(f"{item.nodeid}: {message}")), stacklevel=2)
        except pytest.PytestWarning:
            return message
        return ""
    return message


def _without_relaunch(verdict: GateVerdict) -> GateVerdict:
    """Say of a gate that waits for a further session why there is none."""
    if verdict.next_look is None:
        return verdict
    return replace(
        verdict,
        reason=f"{verdict.reason}; the engine cannot be launched again, so there is one session",
        next_step="implement relaunch() in the engine and set can_relaunch = True, or give the gate a wider tolerance",
    )


def forget_attempt(item: pytest.Item) -> str:
    """Make an item ready to run again, or say why it may not; "" for the first attempt too.

    A verdict stands: with a second chance, a regression of any size passes sooner or later. What was INVALID, or failed
    before a gate was judged, and what passed all gates, decided nothing by itself.
    """
    from pytest_inferperf.model.verdicts import Status

    record = item.stash.get(RECORD, None)
    if record is not None and any(
        verdict.status is Status.INCONCLUSIVE
        or (verdict.status is Status.FAIL and verdict.measured is not None and verdict.limit is not None)
        for verdict in record.verdicts
    ):
        alpha = state_of(item.config).settings.alpha
        first, _, rows = item.stash[_MESSAGE].partition("\n")
        return (
            f"{first}\nNot run again: the verdict of the first attempt stands. A rerun would re-roll it, and each further "
            f"look at a gate spends part of its alpha (inferperf_alpha = {alpha:g}), all of which its own looks spend.\n"
            f"{rows}"
        )
    if record is not None:
        del item.stash[RECORD]
    return ""


def waived_failure(item: pytest.Item, message: str) -> str:
    """Return the reason of an xfail where waivers cover every failing gate of an item; "" where they do not."""
    from pytest_inferperf.waiving import today, waived

    found = waived(item.stash[RECORD], state_of(item.config).settings.waivers, today())
    return f"{'; '.join(waiver.note for waiver in found)}: {message}" if found else ""


def _rerun(item: pytest.Item, settings: Settings) -> str:
    """Return what to type after `pytest` to run one test again with the same baselines."""
    option = item.config.getoption("inferperf_baselines")
    return shlex.quote(item.nodeid) + (f" --inferperf-baselines={shlex.quote(option)}" if option else "")


def is_a_regression(record: ResultRecord) -> bool:
    """Whether a record's failure is one that an xfail may expect: every failing gate measured a figure and a limit."""
    from pytest_inferperf.model.verdicts import PROVEN_GAIN, Status

    failing = [verdict for verdict in record.verdicts if verdict.status is not Status.PASS]
    return (
        bool(failing)
        and not record.result.invalid
        and not any(PROVEN_GAIN in verdict.details for verdict in failing)
        and all(
            verdict.status is not Status.INVALID and verdict.measured is not None and verdict.limit is not None
            for verdict in failing
        )
    )


def not_a_regression(message: str) -> BaseException:
    """Return a failure that no xfail may expect: the engine or its figures, not its speed, are what is wrong."""
    failure = pytest.fail.Exception(message, pytrace=False)
    failure.inferperf_not_a_regression = True  # type: ignore[attr-defined]
    return failure
