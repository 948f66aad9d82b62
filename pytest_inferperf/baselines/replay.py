"""Results of an earlier run in the place of engines: which of them stands for a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord
from pytest_inferperf.errors import ResultFileError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import CaseResult

__all__ = ["Replay", "edited"]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A result file whose cases stand in for engines."""

    label: str
    """The path of the file as it was given."""

    file: ResultFile

    def result(self, case: Case, *, nodeid: str) -> CaseResult:
        """Return what was found for a case; of two tests of it, what `nodeid` found.

        Raises `ResultFileError` where the file has no result of the case, or two and neither is `nodeid`'s.
        """
        identity = case.identity()
        same = [item for item in self.file.records if item.result.case.identity() == identity]
        own = [item for item in same if item.nodeid == nodeid] or same
        if len(own) == 1:
            return own[0].result
        words = ", ".join(f"{name}={value}" for name, value in identity.items())
        if own:
            raise ResultFileError(
                f"--inferperf-replay: {self.label} has {len(own)} results of this case ({words}), by other tests: "
                f"{', '.join(item.nodeid for item in own)}. Run with the same rootdir as then, so that their names agree."
            )
        raise ResultFileError(
            f"--inferperf-replay: {self.label} has no result of this case ({words}). {_nearest(self.file.records, case)}"
        )


_EDITABLE: Mapping[str, Sequence[str]] = {
    "engine": ("calib_size", "qat_steps", "qat_learning_rate", "hardware"),
    "workload": ("rounds", "warmup_rounds"),
    "task": ("group_by",),
}
"""What a mark says beside the identity that changes what is measured. Places are left out: each machine has its own."""


def edited(then: Case, now: Case) -> Iterator[str]:
    """Yield a note for all that the mark of a replayed case says otherwise today: no figure of then knows of it."""
    before, after = then.to_json(), now.to_json()
    for part, names in _EDITABLE.items():
        old, new = before[part] or {}, after[part] or {}
        rows = [(name, old.get(name), new.get(name)) for name in names]
        options = old.get("engine_options", {}), new.get("engine_options", {})
        rows += [
            (f"engine_options.{name}", *(item.get(name, "not given") for item in options))
            for name in sorted({*options[0], *options[1]})
        ]
        for name, was, is_now in rows:
            if was != is_now:
                yield f"replayed: measured with {name} {was}, and the mark says {is_now} today"


def _nearest(records: Sequence[ResultRecord], case: Case) -> str:
    """Say which result comes closest, and in what it differs."""
    wanted = case.identity()

    def differences(record: ResultRecord) -> list[str]:
        found = record.result.case.identity()
        names = [*wanted, *(name for name in found if name not in wanted)]
        return [f"{name}={found.get(name)}" for name in names if found.get(name) != wanted.get(name)]

    if not records:
        return "It holds no results at all."
    nearest = min(records, key=lambda record: len(differences(record)))
    return f"The nearest is that of {nearest.nodeid}: {', '.join(differences(nearest))}."
