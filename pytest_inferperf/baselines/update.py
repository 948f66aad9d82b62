"""Updating baselines: make the plan, then write every touched file once, under a lock."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from pytest_inferperf.baselines.ledger import Ledger
from pytest_inferperf.baselines.losses import Doubt, Outdone, no_doubt, not_outdone
from pytest_inferperf.baselines.origin import Origin
from pytest_inferperf.baselines.planner import Planner
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import read_bytes
from pytest_inferperf.baselines.update_plan import DEFAULT_TOLERANCE, Mode, UpdatePlan
from pytest_inferperf.baselines.write import locked, remove_file, remove_leftovers, write_atomic
from pytest_inferperf.errors import UpdateRefused

__all__ = ["apply_update", "plan_update", "update"]


def plan_update(
    root: Path,
    records: Sequence[ResultRecord],
    *,
    mode: Mode,
    reason: str,
    accept_regression: bool,
    now: str,
    tolerance: float = DEFAULT_TOLERANCE,
    doubt: Doubt = no_doubt,
    outdone: Outdone = not_outdone,
    least_sessions: int = 1,
    origin: Origin | None = None,
) -> UpdatePlan:
    """Decide what the records change in the baselines below `root`. Writes nothing.

    `new` records what is missing; `tighten` replaces a value where the measured one is better, and `doubt`, which is
    asked about performance, has no doubt that it is; `all` replaces every
    value, for which it needs a reason, and a value that is worse beyond the tolerance, also over several updates, only
    with `accept_regression`. `outdone`, which is asked about the answers of a finer and a coarser precision, keeps the
    finer from being recorded with worse ones. A case that asks for no number of sessions needs `least_sessions`.
    The tolerance of a metric is the smallest of `tolerance`, that of its entry, and those of the gates on it.
    Of a test that was run again, the last attempt counts. A baseline file that cannot be read is a refusal, and does
    not keep the others from being updated.
    """
    ledger = Ledger(
        root,
        mode=mode,
        reason=reason.strip(),
        accept_regression=accept_regression,
        now=now,
        tolerance=tolerance,
        doubt=doubt,
        outdone=outdone,
        least_sessions=least_sessions,
        origin=origin,
    )
    planner = Planner(ledger)
    if mode == "all" and not ledger.reason:
        ledger.refusals.append('mode "all" may loosen baselines and needs a reason: add --reason "…"')
    else:
        for record in planner.usable(records):
            planner.add(record)
    return planner.plan()


def apply_update(plan: UpdatePlan) -> list[Path]:
    """Write the planned files and return their paths.

    Raises `UpdateRefused`, before anything is written, when a file is no longer what it was when the plan was made.
    """
    if not plan.files:
        return []
    with locked(plan.root):
        return _write(plan)


def update(
    root: Path,
    records: Sequence[ResultRecord],
    *,
    mode: Mode,
    reason: str,
    accept_regression: bool,
    now: str,
    tolerance: float = DEFAULT_TOLERANCE,
    doubt: Doubt = no_doubt,
    outdone: Outdone = not_outdone,
    least_sessions: int = 1,
    origin: Origin | None = None,
) -> tuple[UpdatePlan, list[Path]]:
    """Plan and apply under one lock, so that of two updates at the same time neither is refused nor lost.

    With nothing to write, neither the folder nor a lock appears.
    """
    make_plan = functools.partial(
        plan_update,
        root,
        records,
        mode=mode,
        reason=reason,
        accept_regression=accept_regression,
        now=now,
        tolerance=tolerance,
        doubt=doubt,
        outdone=outdone,
        least_sessions=least_sessions,
        origin=origin,
    )
    plan = make_plan()
    if not plan.files:
        return plan, []
    with locked(root):
        # Again: another update may have written since.
        plan = make_plan()
        return plan, _write(plan)


def _write(plan: UpdatePlan) -> list[Path]:
    for file in plan.files:
        if read_bytes(file.path, file.shown) != file.before:
            raise UpdateRefused(
                f"{file.shown}: changed since the update was planned; nothing was written. Run the update again."
            )
    for file in plan.files:
        remove_leftovers(file.path)
        if file.after is None:
            remove_file(file.path, shown=file.shown)
        else:
            write_atomic(file.path, file.after, shown=file.shown)
    return [file.path for file in plan.files]
