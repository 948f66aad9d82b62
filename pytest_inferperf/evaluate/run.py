"""Runs an lm-eval task on an engine and keeps what it said about every document.

Which number stands for a document:

- A metric that is the mean of a value per document (accuracy, exact match): that value.
- Any other (perplexity, bits per byte, Brier score): lm-eval's own aggregation, of that document alone. For a
  perplexity over a corpus this is the perplexity of the one document, so that two engines can be compared document by
  document. The corpus score weights documents by their length, so it is not the mean of the outcomes.
- A metric that only a whole corpus has (F1, Matthews correlation) is refused.

A task with several filters reports every metric once per filter. The first filter of the task counts, alone; the keys
of `AccuracyResult.scores` are lm-eval's own and name the filter: `exact_match,strict-match`.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import InferperfError, InvalidRun, TaskError, choices
from pytest_inferperf.evaluate.interim import Asking, Documents, Interim, Sample, Stopped, half
from pytest_inferperf.evaluate.isolation import FEWSHOT_SEED, isolated
from pytest_inferperf.evaluate.tasks import FoundTask, find_task
from pytest_inferperf.evaluate.texts import texts_of
from pytest_inferperf.model.case import Task
from pytest_inferperf.model.results import AccuracyResult

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine

__all__ = ["evaluate", "evaluate_lm"]

# lm-eval aggregations (by function name) that are undefined or meaningless for one document.
_CORPUS_ONLY = frozenset({"f1_score", "matthews_corrcoef", "weighted_f1_score"})

LOGPROB_DOCUMENTS = 256
"""Documents, from the first asked on, whose choices' log-probabilities are kept: 2 KB for four choices."""


def evaluate(
    engine: Engine,
    task: Task,
    *,
    metric: str | None = None,
    concurrency: int = 64,
    search_paths: Sequence[Path] = (),
    progress: Callable[[str], None] | None = None,
    asking: Asking | None = None,
) -> AccuracyResult:
    """Run `task` on `engine`; `metric` is the one that counts, by default the first one the task lists.

    `task.limit` keeps the first documents; in a group of tasks, the first of each, as in lm-eval. `asking` may end the
    evaluation before every document is asked: `AccuracyResult.asked` then says which were.

    Raises `TaskError` for a task or a metric that does not exist or cannot run, `InvalidRun` when a prompt does not fit
    or a score is not a number, `MissingExtra` without lm-eval; whatever the engine raises passes through.
    """
    with isolated():
        from pytest_inferperf.evaluate.lm import EngineLM

        lm = EngineLM(engine, concurrency=concurrency, progress=progress)
        return evaluate_lm(lm, task, metric=metric, search_paths=search_paths, asking=asking)


def evaluate_lm(
    lm: Any,
    task: Task,
    *,
    metric: str | None = None,
    search_paths: Sequence[Path] = (),
    asking: Asking | None = None,
) -> AccuracyResult:
    """Run `task` on any lm-eval model, as `evaluate` does on an engine: this is how two of them are compared.

    Only an `EngineLM` asks in parts.
    """
    if task.limit is not None and task.limit < 1:
        raise TaskError(f"task {task.name!r}: limit={task.limit} leaves no document. Give 1 or more, or leave it out.")
    with isolated():
        found = find_task(task, search_paths=search_paths)
        chosen = _choose_metric(found, metric)
        for leaf in found.tasks.values():
            _set_fewshot(leaf, task, found)
        documents = Documents(found, group_by=task.group_by)
        collect = partial(_collect, found, task, chosen, documents, asking)
        interim = Interim(found, documents, asking, collect, chosen) if asking is not None else None
        lm.in_parts = interim
        started = time.perf_counter()
        try:
            results = _run(lm, found, task)
        except Stopped as stopped:
            return replace(stopped.result, sequential=True, duration_s=time.perf_counter() - started)
        duration_s = time.perf_counter() - started
        samples = {name: _first_filter(results["samples"][name]) for name in found.tasks}
        result = collect(samples, results["groups" if found.is_group else "results"][found.name])
        return replace(
            result,
            sequential=interim is not None and interim.looked,
            repeat=interim.repeat if interim is not None else None,
            duration_s=duration_s,
        )


def _choose_metric(found: FoundTask, metric: str | None) -> str:
    """Pick the metric that counts. A group offers only what it aggregates over all of its tasks."""
    if found.is_group:
        group = found.groups.get(found.name)
        known = [item.metric for item in (group.aggregate_metric_list or ())] if group is not None else []
        if not known:
            names = list(found.tasks)
            raise TaskError(
                f"the group {found.name!r} ({found.source}) has no score of its own: it lists no "
                "aggregate_metric_list. Give one of its tasks to a test: "
                f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}."
            )
    else:
        (leaf,) = found.tasks.values()
        known = list(leaf.aggregation())
    if metric is not None and metric not in known:
        raise TaskError(
            f"the task {found.name!r} ({found.source}) has no metric {metric!r}. "
            f"{choices(metric, known, what='Its metrics')}"
        )
    chosen = metric or known[0]
    for name, leaf in found.tasks.items():
        if getattr(leaf.aggregation().get(chosen), "__name__", "") in _CORPUS_ONLY:
            raise TaskError(
                f"the metric {chosen!r} of the task {name!r} has a value only for all documents together, so two "
                f"engines cannot be compared question by question. Choose another metric of {', '.join(known)}."
            )
    return chosen


def _set_fewshot(leaf: Any, task: Task, found: FoundTask) -> None:
    declared = leaf.get_config("num_fewshot")
    if task.num_fewshot is None:
        if declared is None:
            leaf.set_config(key="num_fewshot", value=0)
    elif declared == 0 and task.num_fewshot != 0:
        # lm-eval ignores the request here, and says so in a log line only.
        raise TaskError(
            f"the task {leaf.task_name!r} ({found.source}) fixes num_fewshot: 0, so num_fewshot={task.num_fewshot} "
            "cannot be honoured. Leave num_fewshot out of the mark, or remove the line from the task."
        )
    else:
        leaf.set_config(key="num_fewshot", value=task.num_fewshot)
    leaf.set_fewshot_seed(seed=FEWSHOT_SEED)


def _run(lm: Any, found: FoundTask, task: Task) -> Mapping[str, Any]:
    # `evaluate` and not `simple_evaluate`: the latter also calls git, collects the environment in subprocesses and
    # asks the hub about the model.
    from lm_eval import evaluator

    try:
        results: Mapping[str, Any] = evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": dict(found.tasks), "groups": dict(found.groups)},
            limit=task.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    except Exception as error:
        known = (getattr(lm, "engine_failure", None), getattr(lm.in_parts, "failure", None))
        if isinstance(error, InferperfError | Stopped) or any(error is item for item in known):
            raise
        raise TaskError(
            f"the task {found.name!r} ({found.source}) failed in its own code: {type(error).__name__}: {error}. "
            "Correct the templates, filters or functions of the task."
        ) from error
    return results


def _collect(
    found: FoundTask,
    task: Task,
    metric: str,
    documents: Documents,
    asking: Asking | None,
    samples: Mapping[str, Sequence[Sample]],
    table: Mapping[str, Any],
) -> AccuracyResult:
    """Turn the samples of some or all documents, and the table lm-eval's aggregation gives for them, into a result."""
    outcomes: list[float] = []
    unparseable: list[bool] = []
    answered: dict[int, Sample] = {}
    filters: set[str] = set()
    parsed = True
    for name, leaf in found.tasks.items():
        mine = samples[name]
        filters.add(mine[0]["filter"])
        outcomes += [_own_value(sample, leaf, metric) for sample in mine]
        invalid = _unparseable(mine, leaf)
        parsed = parsed and invalid is not None
        unparseable += invalid or []
        answered |= {documents.numbers[name, int(sample["doc_id"])]: sample for sample in mine}
    planned = len(documents.rows)
    scores = {
        key: float(value)
        for key, value in table.items()
        if "," in key and "_stderr," not in key and isinstance(value, numbers.Real) and math.isfinite(value)
    }
    score = _score(table, metric, filters, found)
    if not math.isfinite(score) or not all(map(math.isfinite, outcomes)):
        count = sum(not math.isfinite(value) for value in outcomes)
        raise InvalidRun(
            f"{metric} of the task {found.name!r} is {score}, and not a finite number for {count} of "
            f"{len(outcomes)} documents. The engine computes NaN or infinity, or the task divides by zero: "
            "check the checkpoint's data types and the task's documents."
        )
    return AccuracyResult(
        task=task.name,
        metric=metric,
        higher_is_better=_higher_is_better(found, metric),
        score=score,
        outcomes=tuple(outcomes),
        documents_digest=documents.digest,
        asked=None if len(answered) == planned else tuple(number in answered for number in range(planned)),
        task_sizes=None
        if _weighs_by_size(found, metric, filters)
        else tuple(len(samples[name]) for name in found.tasks),
        groups=documents.groups,
        logprobs=_logprobs(found, answered, asking.order(planned, documents.groups) if asking else range(planned)),
        unparseable=tuple(unparseable) if parsed else None,
        scores=scores,
        texts=texts_of(found, documents, answered, metric=metric),
    )


def _logprobs(
    found: FoundTask, answered: Mapping[int, Sample], order: Sequence[int]
) -> dict[int, tuple[float, ...]] | None:
    """Return how probable the engine finds each choice of the first documents asked; None where there are no choices.

    Normalized over the choices, so that what float16 keeps of it is exact where it matters.
    """
    for leaf in found.tasks.values():
        # acc_mutual_info doubles the requests: those without the question are no choices.
        if leaf.OUTPUT_TYPE != "multiple_choice" or "acc_mutual_info" in leaf.aggregation():
            return None
    kept: dict[int, tuple[float, ...]] = {}
    for number in order[:LOGPROB_DOCUMENTS]:
        if number in answered:
            values = [float(item[0][0]) for item in answered[number]["resps"]]
            top = max(values)
            total = top + math.log(math.fsum(math.exp(value - top) for value in values))
            # Rounded, so that a result read back from a file is judged like the one in memory.
            kept[number] = tuple(half(max(value - total, -65504.0)) for value in values)
    return kept


def _first_filter(samples: Sequence[Sample]) -> list[Sample]:
    """Keep the samples of the task's first filter, in document order."""
    first = samples[0]["filter"]
    return sorted((item for item in samples if item["filter"] == first), key=lambda item: int(item["doc_id"]))


def _own_value(sample: Sample, leaf: Any, metric: str) -> float:
    """Compute the metric of one document alone."""
    where = f"document {sample['doc_id']} of {leaf.task_name}"
    if metric not in sample["metrics"]:
        raise TaskError(
            f"{where} has no {metric!r}. {choices(metric, sample['metrics'], what='Metrics of the document')}"
        )
    aggregate = leaf.aggregation().get(metric)
    try:
        return float(aggregate([sample[metric]]) if aggregate else sample[metric])
    except (ArithmeticError, TypeError, ValueError, IndexError) as error:
        raise TaskError(
            f"{where}: {metric!r} has no value for one document alone ({type(error).__name__}: {error}). "
            "Choose another metric of the task, or remove the document if it is empty."
        ) from error


def _unparseable(samples: Sequence[Sample], leaf: Any) -> list[bool] | None:
    """Say per document whether a filter found no answer in the output and put its fallback; None where none can.

    The filters run again here, one by one, because a later one may turn a fallback into something else.
    """
    stages = [make() for make in leaf._filters[0].filters]
    if leaf.OUTPUT_TYPE != "generate_until" or not any(hasattr(stage, "fallback") for stage in stages):
        return None
    answers = [sample["resps"][0] for sample in samples]
    documents = [sample["doc"] for sample in samples]
    lost = [False] * len(samples)
    for stage in stages:
        answers = list(stage.apply(answers, documents))
        if hasattr(stage, "fallback"):
            lost = [
                was or all(item == stage.fallback for item in found) for was, found in zip(lost, answers, strict=True)
            ]
    return lost


def _score(table: Mapping[str, Any], metric: str, filters: set[str], found: FoundTask) -> float:
    if len(filters) > 1:
        raise TaskError(
            f"the tasks of the group {found.name!r} begin with different filters ({', '.join(sorted(filters))}), "
            f"so their answers cannot be put together. Give one of them to a test: {', '.join(found.tasks)}."
        )
    key = f"{metric},{min(filters)}"
    if key not in table:
        known = [item for item in table if "," in item and "_stderr," not in item]
        raise TaskError(
            f"lm-eval reports no {key!r} for {found.name!r} ({found.source}). {choices(key, known, what='It reports')}"
        )
    return float(table[key])


def _weighs_by_size(found: FoundTask, metric: str, filters: set[str]) -> bool:
    """Whether a task of a group counts by its documents, as it does in what is no group."""
    if not found.is_group:
        return True
    # The last of two rows on one metric and filter is the one that the table keeps; one without filters is for all.
    rows = [
        item
        for item in found.groups[found.name].aggregate_metric_list
        if item.metric == metric and (item.filter_list is None or min(filters) in item.filter_list)
    ]
    return bool(rows[-1].weight_by_size)


def _higher_is_better(found: FoundTask, metric: str) -> bool:
    # Asked of the tasks themselves: for a group of groups, lm-eval leaves it out of its results.
    directions = {leaf.higher_is_better().get(metric) for leaf in found.tasks.values()}
    if directions not in ({True}, {False}):
        raise TaskError(
            f"the task {found.name!r} ({found.source}) does not say whether a larger {metric!r} is better. "
            "Add higher_is_better: true or false to the metric in the task's metric_list."
        )
    return bool(directions.pop())
