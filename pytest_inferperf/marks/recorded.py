"""Workloads from files in the `inferperf` mark: the file is found, read and counted at collection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import MarkError, SettingsError
from pytest_inferperf.marks.origin import Origin, existing
from pytest_inferperf.model.workload import Workload

__all__ = ["check_only_file", "with_dataset"]


def check_only_file(values: Mapping[str, Any]) -> None:
    """Refuse what only synthetic prompts have. Raises `MarkError`."""
    for name in ("isl", "shared_prefix"):
        if values.get(name):
            raise MarkError(
                f"inferperf: {name}={values[name]!r} and dataset={values['dataset']!r}: prompts are drawn, or those of "
                "the file. Keep one."
            )


def with_dataset(values: Mapping[str, Any], origin: Origin) -> Workload:
    """Make the workload of a file, known by its content. Raises `MarkError` for a file that is none or too short."""
    from pytest_inferperf.measure.recorded.datasets import read_dataset

    name = str(values["dataset"])
    path = workload_file("dataset", name, origin)
    try:
        dataset = read_dataset(path)
    except SettingsError as error:
        problem = f"inferperf: dataset={name!r}: {error}"
    else:
        problem = ""
    if problem:
        raise MarkError(problem)
    workload = Workload(**{**values, "dataset": dataset.label, "dataset_path": str(path)})
    usable = len(dataset.usable(needs_length=not workload.osl))
    if not usable:
        raise MarkError(
            f"inferperf: dataset={name!r}: none of its {len(dataset.records)} records says how long the output is, by "
            '"output_tokens" or by an answer. Give osl=, in tokens.'
        )
    _check_enough(workload, name, usable)
    return workload


def workload_file(keyword: str, name: str, origin: Origin) -> Path:
    """Find a file by its path relative to the test file; it must lie within the rootdir. Raises `MarkError`."""
    path = existing(name, origin.folder)
    if path is None or not path.is_file():
        near = sorted(item.name for item in (origin.folder / name).parent.glob("*.json*"))
        valid = f" Files there: {', '.join(near)}." if near else ""
        raise MarkError(f"inferperf: {keyword}={name!r}: no such file, relative to {origin.folder}.{valid}")
    if origin.root is not None and not path.is_relative_to(origin.root):
        raise MarkError(
            f"inferperf: {keyword}={name!r}: {path} lies outside of the rootdir {origin.root}; a suite brings its own "
            "files. Copy it to the tests."
        )
    return path


def _check_enough(workload: Workload, name: str, usable: int) -> None:
    rounds, count = workload.warmup_rounds + workload.rounds, workload.requests_per_round
    if rounds * count <= usable:
        return
    fits = usable // rounds
    advice = f"{'num_requests' if fits >= workload.concurrency else 'concurrency'}={fits} would do" if fits else ""
    less = f"{advice}, or fewer rounds=" if advice else f"Give at most {usable} rounds= and warmup_rounds= together"
    raise MarkError(
        f"inferperf: dataset={name!r} has {usable} usable records, and {rounds} rounds ({workload.warmup_rounds} of "
        f"warm-up) of {count} requests, none of them twice, need {rounds * count}. {less}, or a longer file."
    )
