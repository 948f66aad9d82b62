"""How an update is asked for, and what comes of it: changes, refusals, and what there was nothing to record of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_inferperf.baselines.changes import Change
from pytest_inferperf.baselines.entries import Provenance
from pytest_inferperf.baselines.losses import Doubt, Outdone, no_doubt, not_outdone
from pytest_inferperf.baselines.origin import Origin
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.update_plan import Mode

__all__ = ["ACCEPT", "REPEAT", "REPLACE", "Ledger"]

ACCEPT = "To accept: add --accept-regression (in pytest: --inferperf-accept-regression)"
REPLACE = 'To replace it: --mode all --reason "…" (in pytest: --inferperf-update=all --inferperf-reason="…")'
REPEAT = "Repeat the run"


class Ledger:
    """Kept while records are taken into files."""

    def __init__(
        self,
        root: Path,
        *,
        mode: Mode,
        reason: str,
        accept_regression: bool,
        now: str,
        tolerance: float,
        doubt: Doubt = no_doubt,
        outdone: Outdone = not_outdone,
        least_sessions: int = 1,
        origin: Origin | None = None,
    ) -> None:
        self.root = root
        self.doubt = doubt
        self.outdone = outdone
        self.least_sessions = least_sessions
        self._origin = origin or Origin()
        self.tolerance = tolerance
        self.mode = mode
        self.reason = reason
        self.accept_regression = accept_regression
        self.now = now
        self.changes: list[Change] = []
        self.refusals: list[str] = []
        self.skipped: list[str] = []

    def refuse(self, who: str, headline: str, *details: str, action: str) -> None:
        """Refuse what was asked for: who or what, why, details, and what to type."""
        self.refusals.append("\n".join([f"{who}: {headline}", *(f"  {line}" for line in (*details, action))]))

    def wanted(self, changes: Sequence[Change]) -> list[Change]:
        """Return the changes that the mode is about."""
        if self.mode == "new":
            return [item for item in changes if item.old is None]
        if self.mode == "tighten":
            self.skipped += [
                f"{item.path}: {item.key}: {item.what} has no baseline to tighten"
                for item in changes
                if item.old is None
            ]
            return [item for item in changes if item.better]
        return list(changes)

    def provenance(self, record: ResultRecord, kept: str = "") -> Provenance:
        """Return where values come from that are recorded now; `kept` is the reason of others that stay beside them."""
        reason = self.reason
        if kept and reason not in kept.split("; "):
            reason = f"{kept}; {reason}" if reason else kept
        elif kept:
            reason = kept
        return Provenance(
            kind="measured",
            reason=reason,
            recorded=self.now,
            author=self._origin.author,
            commit=record.result.context.get("git_commit", ""),
            results=self._origin.results,
        )
