"""Asks the documents of a task part by part, scores what is answered so far, and ends when that is enough.

lm-eval builds the requests of all documents and hands them over at once. Building a part of them would draw other
few-shot examples, so all are built, and only the asking is done in parts. What is answered is scored as lm-eval scores
it: the task's own first filter, `process_results` and aggregation, on copies, so that an evaluation that is not ended
goes its normal road untouched. A task that cannot be scored in part is asked to its end, without looks.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

from pytest_inferperf.errors import TaskError, choices
from pytest_inferperf.evaluate.tasks import FoundTask
from pytest_inferperf.model.results import AccuracyResult, Repeat

__all__ = ["Asking", "Documents", "Interim", "Sample", "Stopped"]

T = TypeVar("T")
Sample = Mapping[str, Any]
Samples = Mapping[str, Sequence[Sample]]
"""By name of the task: one for each document, as the first filter of the task left it, in document order."""

SAME = 1e-3
"""Relative difference below which two values of a metric are no flip: baselines keep them as float16."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """In which order the documents are asked, and who looks at the answers in between."""

    order: Callable[[int, Sequence[int] | None], Sequence[int]]
    """Number of documents, and the group of each or None, to a permutation of them."""

    looks: Callable[[int], Sequence[int]]
    """Number of documents to the numbers answered at which somebody looks; they grow, and the last is all."""

    decided: Callable[[AccuracyResult], bool] | None = None
    """Whether the answers so far are enough; asked at every look but the last. None: all documents are asked at once."""

    repeat: bool = False
    """Whether the documents of the first look are asked twice, to see what the engine's own noise flips."""


class Stopped(Exception):
    """The answers so far are enough. Carries them out of lm-eval."""

    def __init__(self, result: AccuracyResult) -> None:
        super().__init__("the answers so far are enough")
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Document:
    """One question of a task, with the requests lm-eval built for it."""

    task: str
    doc_id: int
    instances: Sequence[Any]
    target: Any

    @property
    def arguments(self) -> list[tuple[Any, ...]]:
        """The arguments of each request."""
        return [item.args for item in self.instances]


class Documents:
    """All documents that an evaluation is about, asked or not. Readable once lm-eval has built the requests."""

    def __init__(self, found: FoundTask, *, group_by: str = "") -> None:
        self._found = found
        self._group_by = group_by

    @cached_property
    def rows(self) -> Sequence[Document]:
        """Every document: task by task, in document order."""
        rows = []
        for name, leaf in self._found.tasks.items():
            instances: dict[int, list[Any]] = defaultdict(list)
            for item in leaf.instances:
                instances[item.doc_id].append(item)
            for doc_id in sorted(instances):
                mine = sorted(instances[doc_id], key=lambda item: int(item.idx))
                rows.append(Document(task=name, doc_id=doc_id, instances=mine, target=leaf.doc_to_target(mine[0].doc)))
        return rows

    @cached_property
    def numbers(self) -> Mapping[tuple[str, int], int]:
        """Task and lm-eval's `doc_id` to the number of the document."""
        return {(row.task, row.doc_id): number for number, row in enumerate(self.rows)}

    @cached_property
    def owners(self) -> Mapping[int, int]:
        """The `id` of a request to the number of its document."""
        return {id(item): number for number, row in enumerate(self.rows) for item in row.instances}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what makes each document the same question: the texts sent for it, and its target."""
        digest = hashlib.sha256()
        for row in self.rows:
            texts = [[item for item in arguments if isinstance(item, str)] for arguments in row.arguments]
            whole = {"requests": texts, "target": row.target}
            text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
            digest.update(text.encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def groups(self) -> tuple[int, ...] | None:
        """The number of each document's group; None without `group_by`. Raises `TaskError` for an unknown field."""
        if not self._group_by:
            return None
        numbers: dict[tuple[str, str], int] = {}
        found = []
        for row in self.rows:
            document = row.instances[0].doc
            if self._group_by not in document:
                raise TaskError(
                    f"group_by={self._group_by!r}: document {row.doc_id} of {row.task} has no such field. "
                    f"{choices(self._group_by, list(document), what='Its fields')}"
                )
            value = json.dumps(document[self._group_by], sort_keys=True, default=str)
            found.append(numbers.setdefault((row.task, value), len(numbers)))
        return tuple(found)


class Interim:
    """Asks the requests of one evaluation in parts."""

    def __init__(
        self,
        found: FoundTask,
        documents: Documents,
        asking: Asking,
        score: Callable[[Samples, Mapping[str, Any]], AccuracyResult],
        metric: str,
    ) -> None:
        self._found = found
        self._documents = documents
        self._asking = asking
        self._score = score
        self._metric = metric
        self._scorable = True
        self.looked = False
        """Whether somebody has looked at a part of the answers."""

        self.repeat: Repeat | None = None
        self.failure: Exception | None = None
        """What came out of `Asking.decided`, so that a caller can tell it from an error of a task's code."""

    def __call__(self, requests: Sequence[Any], ask: Callable[[Sequence[int]], list[T]]) -> list[T]:
        """Ask all requests, given by their numbers to `ask`, and return the answers in order.

        Raises `Stopped` when the answers of a look are enough.
        """
        documents = self._documents
        groups = documents.groups
        if {id(item) for item in requests} != set(documents.owners):
            # Requests of another kind follow in a call of their own: no document is answered before the last.
            return ask(range(len(requests)))
        count = len(documents.rows)
        order = self._asking.order(count, groups)
        rank = {document: place for place, document in enumerate(order)}
        places = [rank[documents.owners[id(item)]] for item in requests]
        looks = [size for size in self._asking.looks(count) if size < count]
        answers: list[Any] = [None] * len(requests)
        for low, high in pairwise([0, *(looks if self._asking.decided is not None else ()), count]):
            part = [number for number, place in enumerate(places) if low <= place < high]
            for number, answer in zip(part, ask(part), strict=True):
                answers[number] = answer
            if high < count and self._scorable:
                self._look(requests, answers, order[:high])
        if self._asking.repeat and looks:
            self._repeat(requests, answers, order[: looks[0]], ask)
        return answers

    def _look(self, requests: Sequence[Any], answers: Sequence[Any], documents: Sequence[int]) -> None:
        if {self._documents.rows[number].task for number in documents} != set(self._found.tasks):
            return  # A group has no score without each of its tasks.
        found = self._try(requests, answers, documents)
        if found is None:
            return
        self.looked = True
        try:
            enough = self._asking.decided is not None and self._asking.decided(found)
        except Exception as error:
            self.failure = error
            raise
        if enough:
            raise Stopped(found)

    def _repeat(
        self,
        requests: Sequence[Any],
        answers: Sequence[Any],
        documents: Sequence[int],
        ask: Callable[[Sequence[int]], list[Any]],
    ) -> None:
        chosen = set(documents)
        numbers = [number for number, item in enumerate(requests) if self._documents.owners[id(item)] in chosen]
        first = self._try(requests, answers, documents)
        if first is None:
            return
        # Backwards, and without the other documents: no batch is one of the first time.
        numbers.reverse()
        again: list[Any] = list(answers)
        for number, answer in zip(numbers, ask(numbers), strict=True):
            again[number] = answer
        second = self._try(requests, again, documents)
        if second is not None:
            pairs = zip(first.outcomes, second.outcomes, strict=True)
            flips = sum(not math.isclose(old, new, rel_tol=SAME, abs_tol=SAME) for old, new in pairs)
            self.repeat = Repeat(questions=len(documents), flips=flips)

    def _try(self, requests: Sequence[Any], answers: Sequence[Any], documents: Sequence[int]) -> AccuracyResult | None:
        """Score some documents; None where the task cannot be scored without the others."""
        try:
            samples = self._samples(requests, answers, documents)
            return self._score(samples, partial_table(self._found, samples, self._metric))
        except Exception:
            # Whatever a task's own code raises on a part of its documents. The whole is scored by lm-eval, and an
            # error there is reported.
            self._scorable = False
            return None

    def _samples(
        self, requests: Sequence[Any], answers: Sequence[Any], documents: Sequence[int]
    ) -> dict[str, list[Sample]]:
        responses: dict[int, list[Any]] = defaultdict(list)
        for item, answer in zip(requests, answers, strict=True):
            responses[id(item)].append(answer)
        found: dict[str, list[Sample]] = {name: [] for name in self._found.tasks}
        rows = [self._documents.rows[number] for number in sorted(documents)]
        for name, leaf in self._found.tasks.items():
            mine = [row for row in rows if row.task == name]
            copies = [[_answered(item, responses[id(item)]) for item in row.instances] for row in mine]
            first = leaf._filters[0]
            if mine:
                first.apply([item for instances in copies for item in instances])
            for row, instances in zip(mine, copies, strict=True):
                filtered = [item.filtered_resps[first.name] for item in instances]
                document = instances[0].doc
                metrics = leaf.process_results(document, filtered)
                found[name].append(
                    {
                        "doc_id": row.doc_id,
                        "doc": document,
                        "target": row.target,
                        "arguments": row.arguments,
                        "resps": [item.resps for item in instances],
                        "filtered_resps": filtered,
                        "filter": first.name,
                        "metrics": list(metrics),
                        **metrics,
                    }
                )
        return found


def _answered(instance: Any, responses: list[Any]) -> Any:
    found = copy.copy(instance)
    found.resps, found.filtered_resps = responses, {}
    return found


def partial_table(found: FoundTask, samples: Samples, metric: str) -> Mapping[str, Any]:
    """Aggregate the metrics of some documents as lm-eval aggregates those of all: the row of the task, or the group's.

    Metrics other than `metric` that have no value for so few documents are left out.
    """
    rows: dict[str, Any] = {}
    for name, leaf in found.tasks.items():
        mine = samples[name]
        rows[name] = {"name": name, "alias": name, "sample_len": len(mine)}
        for key, aggregate in leaf.aggregation().items():
            values = [item[key] for item in mine if key in item]
            value = _aggregated(aggregate, values, required=key == metric)
            if value is not None:
                rows[name] |= {f"{key},{mine[0]['filter']}": value, f"{key}_stderr,{mine[0]['filter']}": "N/A"}
    if not found.is_group:
        return dict(rows[found.name])
    table: Mapping[str, Any] = found.groups[found.name].aggregate(rows)
    return table


def _aggregated(aggregate: Callable[[Iterable[Any]], Any], values: Sequence[Any], *, required: bool) -> Any:
    try:
        return aggregate(values)
    except Exception:
        if required:
            raise
        return None
