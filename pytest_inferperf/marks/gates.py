"""Gate marks become gates here, or a clear `MarkError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import MarkError, article, choices
from pytest_inferperf.marks.arguments import keywords_of, number
from pytest_inferperf.marks.engines import engine_like
from pytest_inferperf.marks.keywords import KEYWORDS, check_value
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    FrontierFloor,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.metrics import METRICS, SLO_METRICS, STATISTICS, MetricRef, base_name, goodput, parse_metric
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QAT, check_quant, split_precision

if TYPE_CHECKING:
    import pytest

__all__ = ["FRONTIER_KEYWORDS", "GATES", "GOODPUT_KEYWORDS", "NO_BLOCKS", "SPEEDUP_KEYWORDS", "parse_gates"]

GATES = (
    "throughput_floor",
    "latency_ceiling",
    "goodput_floor",
    "frontier_floor",
    "error_rate_ceiling",
    "speedup_floor",
    "accuracy_loss_ceiling",
    "accuracy_floor",
)
"""The marks that are gates."""


def parse_gates(marks: Sequence[pytest.Mark], case: Case, origin: Origin) -> tuple[Gate, ...]:
    """Turn gate marks, outermost first, into gates. The innermost mark wins where two name the same gate.

    Raises `MarkError` for anything wrong in a mark, and for a gate that the case cannot feed.
    """
    gates: dict[tuple[object, ...], Gate] = {}
    for mark in marks:
        parsed: Iterable[Gate]
        if mark.name in (*_OF_A_WORKLOAD, "speedup_floor", "frontier_floor"):
            if case.workload is None:
                raise MarkError(
                    f"{mark.name}: needs a workload to measure; give the inferperf mark isl= and osl=, in tokens."
                )
            if mark.name == "speedup_floor":
                if case.workload.swept:
                    raise MarkError(f"{mark.name}: {NO_BLOCKS}")
                parsed = _speedup_gates(mark, case.engine, origin)
            elif mark.name == "frontier_floor":
                parsed = [_frontier_floor(mark, case)]
            else:
                parsed = _OF_A_WORKLOAD[mark.name](mark)
        else:
            if case.task is None:
                raise MarkError(f"{mark.name}: needs a task to evaluate; give the inferperf mark task=.")
            parsed = (_accuracy_loss(mark) if mark.name == "accuracy_loss_ceiling" else _accuracy_floor(mark),)
        for gate in parsed:
            absolute = isinstance(gate, PerformanceGate) and gate.limit is not None
            in_points = isinstance(gate, AccuracyLossCeiling) and gate.points is not None
            gates[type(gate), gate.name, absolute, in_points] = gate
    metrics = {gate.metric for gate in gates.values() if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)}
    if len(metrics) > 1:
        named = ", ".join(sorted(str(item) for item in metrics))
        raise MarkError(f"accuracy gates of one test judge one metric, not {named}. Write two tests.")
    return tuple(gates.values())


_DIRECTION = {True: "throughput_floor", False: "latency_ceiling"}


def _performance_gates(mark: pytest.Mark) -> list[PerformanceGate]:
    higher = mark.name == "throughput_floor"
    keywords = dict(mark.kwargs)
    tolerance = _tolerance(mark, keywords.pop("tolerance", None))
    if tolerance is not None and not mark.args and keywords:
        raise MarkError(
            f"{mark.name}: tolerance={tolerance!r} widens a baseline, and absolute limits have none. "
            "Name a metric whose limit is in the baseline file, or leave tolerance out."
        )
    gates = []
    for name in mark.args:
        if not isinstance(name, str):
            raise MarkError(
                f"{mark.name}: {name!r} is {article(type(name).__name__)}; a positional argument names a metric whose "
                f"limit is in the baseline file. An absolute limit is a keyword: {mark.name}(metric=value)."
            )
        gates.append(PerformanceGate(metric=_metric(mark.name, name, higher), tolerance=tolerance))
    for name, value in keywords.items():
        limit = number(mark, name, value)
        metric = _metric(mark.name, _dotted(name), higher, keywords=("tolerance",))
        if limit <= 0:
            raise MarkError(f"{mark.name}: {name}={value!r} must be above 0: a limit of 0 cannot be judged.")
        gates.append(PerformanceGate(metric=metric, limit=limit))
    if not gates:
        raise MarkError(f"{mark.name}: names no metric. {choices('', _gateable(higher), what=_metrics_with(higher))}")
    return gates


def _tolerance(mark: pytest.Mark, value: object) -> float | None:
    if value is None:
        return None
    tolerance = number(mark, "tolerance", value)
    if not 0 < tolerance < 1:
        raise MarkError(f"{mark.name}: tolerance={tolerance!r} must lie between 0 and 1; 0.05 is 5 %.")
    return tolerance


SPEEDUP_KEYWORDS = ("over", "ratio", "tolerance", "reload")


def _speedup_gates(mark: pytest.Mark, engine: EngineSpec, origin: Origin) -> list[SpeedupFloor]:
    for name in mark.kwargs:
        if name not in SPEEDUP_KEYWORDS:
            raise MarkError(
                f"{mark.name}: unknown keyword {name!r}.\n{choices(name, SPEEDUP_KEYWORDS, what='Keywords')}"
            )
    if "over" not in mark.kwargs:
        raise MarkError(f'{mark.name}: over is missing; name the engine to compare with, such as over="BF16".')
    ratio = number(mark, "ratio", mark.kwargs.get("ratio", 1.0))
    if ratio <= 0:
        raise MarkError(f"{mark.name}: ratio={ratio:g} must be above 0; 1.5 is one and a half times as good.")
    tolerance = _tolerance(mark, mark.kwargs.get("tolerance"))
    reload = mark.kwargs.get("reload", False)
    if not isinstance(reload, bool):
        raise MarkError(f"{mark.name}: reload={reload!r} is {article(type(reload).__name__)}; it takes True or False.")
    label, spec = _reference_engine(mark, mark.kwargs["over"], engine, origin)
    if replace(spec, served_model_name=engine.served_model_name) == engine:
        raise MarkError(
            f"{mark.name}: over={mark.kwargs['over']!r} is the engine of the case itself: both would regress together, "
            "so the gate could not fail. Name another engine, or write another test for this case."
        )
    reference = ReferenceEngine(label=label, spec=spec, reload=reload)
    return [
        SpeedupFloor(metric=_any_metric(mark, name), reference=reference, ratio=ratio, tolerance=tolerance)
        for name in mark.args or ("output_throughput",)
    ]


FRONTIER_KEYWORDS = ("over", "tolerance")


def _frontier_floor(mark: pytest.Mark, case: Case) -> FrontierFloor:
    example = 'frontier_floor("output_throughput_per_gpu", over="output_throughput_per_user")'
    if len(mark.args) != 1 or "over" not in mark.kwargs:
        raise MarkError(
            f"{mark.name}: takes one metric, and over= the one that it is traded against, such as {example}."
        )
    for name in mark.kwargs:
        if name not in FRONTIER_KEYWORDS:
            raise MarkError(
                f"{mark.name}: unknown keyword {name!r}.\n{choices(name, FRONTIER_KEYWORDS, what='Keywords')}"
            )
    if case.workload is None or not case.workload.swept:
        raise MarkError(
            f"{mark.name}: needs several loads in one test; give the inferperf mark a sweep, such as "
            "sweep(concurrency=[1, 8, 64])."
        )
    metric, over = _any_metric(mark, mark.args[0]), _any_metric(mark, mark.kwargs["over"])
    if metric == over:
        raise MarkError(f"{mark.name}: {metric.name!r} is traded against itself; name another metric in over=.")
    for ref in (metric, over):
        if ref.metric.may_be_zero:
            raise MarkError(f"{mark.name}: {ref.name!r} may be 0, from which no loss is counted; use goodput_floor.")
    return FrontierFloor(
        metric=metric,
        over=over,
        tolerance=_tolerance(mark, mark.kwargs.get("tolerance")),
        points=len(case.workload.sweep),
    )


def _any_metric(mark: pytest.Mark, name: object) -> MetricRef:
    if not isinstance(name, str):
        raise MarkError(
            f"{mark.name}: {name!r} is {article(type(name).__name__)}; a positional argument names a metric."
        )
    if base_name(name) not in METRICS:
        valid = [*_gateable(True), *_gateable(False)]
        raise MarkError(f"{mark.name}: unknown metric {name!r}.\n{choices(name, valid, what='Metrics')}")
    try:
        return parse_metric(name)
    except MarkError as error:
        message = f"{mark.name}: {error}"
    raise MarkError(message)


def _reference_engine(mark: pytest.Mark, over: object, engine: EngineSpec, origin: Origin) -> tuple[str, EngineSpec]:
    """Return what reports call the reference engine, and the engine."""
    if isinstance(over, str) and over:
        quant, kv_cache, recipe = _precision(mark, "over", over)
        label, changes = over, {"quant": quant, "kv_cache_dtype": kv_cache}
        if QAT in (recipe, engine.recipe):
            changes["recipe"] = recipe
    elif isinstance(over, Mapping) and over:
        valid = [name for name, row in KEYWORDS.items() if row.target == "engine"]
        for name in over:
            if name not in valid:
                raise MarkError(
                    f"{mark.name}: over has an unknown engine keyword {name!r}.\n{choices(name, valid, what='Keywords')}"
                )
        label, changes = _spelled(over), dict(over)
    else:
        raise MarkError(
            f'{mark.name}: over={over!r}; it takes a precision, such as over="BF16", or engine keywords that replace the '
            'case\'s, such as over={"engine_options": {"use_cache": False}}.'
        )
    try:
        for name, value in over.items() if isinstance(over, Mapping) else ():
            check_value(name, value)
        return label, engine_like(engine, changes, origin)
    except MarkError as error:
        message = str(error).removeprefix("inferperf: ").replace(", or a list of them", "")
    raise MarkError(f"{mark.name}: over={over!r}: {message}")


def _spelled(keywords: Mapping[str, Any]) -> str:
    """Spell engine keywords as `--inferperf-against` takes them: `quant=FP8,engine_options.use_cache=false`."""
    pairs = []
    for name, value in keywords.items():
        options = value.items() if name == "engine_options" and isinstance(value, Mapping) else None
        pairs += [(f"{name}.{key}", item) for key, item in options] if options is not None else [(name, value)]
    return ",".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}" for name, value in pairs
    )


def _precision(mark: pytest.Mark, keyword: str, name: str) -> tuple[str, str, str]:
    """Split `NVFP4+qat+kv_fp8` into quantization, KV cache type and recipe.

    Raises `MarkError` for one that does not exist.
    """
    quant, kv_cache, recipe = split_precision(name)
    if wrong := check_quant(quant):
        raise MarkError(f"{mark.name}: unknown {keyword} {name!r}.\n{wrong}")
    if kv_cache not in KV_CACHE_DTYPES:
        raise MarkError(
            f"{mark.name}: unknown {keyword} {name!r}.\n{choices(kv_cache, KV_CACHE_DTYPES, what='KV cache types')}"
        )
    return quant, kv_cache, recipe


def _dotted(name: str) -> str:
    """Let a keyword spell `ttft_ms.p99` as `ttft_ms_p99`."""
    base, _, statistic = name.rpartition("_")
    return f"{base}.{statistic}" if base in METRICS and statistic in STATISTICS else name


def _gateable(higher: bool) -> list[str]:
    return [
        f"{row.name}.p99" if row.has_statistics else row.name
        for row in METRICS.values()
        if row.higher_is_better is higher
    ]


def _metrics_with(higher: bool) -> str:
    return "Metrics with a floor" if higher else "Metrics with a ceiling"


def _metric(mark: str, name: str, higher: bool, keywords: Sequence[str] = ()) -> MetricRef:
    if base_name(name) not in METRICS:
        kind = "metric or keyword" if keywords else "metric"
        valid = [*_gateable(higher), *keywords]
        raise MarkError(f"{mark}: unknown {kind} {name!r}.\n{choices(name, valid, what=_metrics_with(higher))}")
    if name == "goodput":
        raise MarkError(
            f"{mark}: 'goodput' is counted under an SLO; use goodput_floor(ttft_ms=500, tpot_ms=50), with limits of your own."
        )
    try:
        found = parse_metric(name)
    except MarkError as error:
        raise MarkError(f"{mark}: {error}") from None
    if found.metric.higher_is_better is not higher:
        better = "higher" if found.metric.higher_is_better else "lower"
        raise MarkError(f"{mark}: {name!r} is better when {better}; use {_DIRECTION[found.metric.higher_is_better]}.")
    return found


NO_BLOCKS = "two engines are compared at one load, and the case is a sweep. Give the mark a list, such as concurrency=[1, 8, 64]."
"""What a sweep is told that would be measured beside another engine."""

GOODPUT_KEYWORDS = (*SLO_METRICS, "min", "tolerance")


def _goodput_gates(mark: pytest.Mark) -> list[PerformanceGate]:
    values = {name: value for name, value in keywords_of(mark, GOODPUT_KEYWORDS).items() if value is not None}
    tolerance = _tolerance(mark, values.pop("tolerance", None))
    limit = values.pop("min", None)
    if limit is not None:
        limit = number(mark, "min", limit)
        if limit <= 0:
            raise MarkError(f"{mark.name}: min={limit:g} must be above 0: a limit of 0 cannot be judged.")
        if tolerance is not None:
            raise MarkError(f"{mark.name}: tolerance={tolerance!r} widens a baseline, and min={limit:g} needs none.")
    limits = {name: number(mark, name, value) for name, value in values.items()}
    try:
        metric = goodput(limits)
    except MarkError as error:
        message = f"{mark.name}: {error}"
    else:
        return [PerformanceGate(metric=metric, limit=limit, tolerance=tolerance)]
    raise MarkError(message)


def _error_rate(mark: pytest.Mark) -> list[ErrorRateCeiling]:
    if len(mark.args) != 1 or mark.kwargs:
        raise MarkError(f"{mark.name}: takes one share of requests that may fail, such as {mark.name}(0.01).")
    share = number(mark, "share", mark.args[0])
    if not 0 <= share < 1:
        raise MarkError(f"{mark.name}: {share:g} must be from 0 to below 1; 0.01 is 1 % of the requests.")
    return [ErrorRateCeiling(share=share)]


_OF_A_WORKLOAD: Mapping[str, Callable[[pytest.Mark], Sequence[Gate]]] = {
    "throughput_floor": _performance_gates,
    "latency_ceiling": _performance_gates,
    "goodput_floor": _goodput_gates,
    "error_rate_ceiling": _error_rate,
}


def _share(mark: pytest.Mark, values: dict[str, Any], name: str) -> float | None:
    if values.get(name) is None:
        return None
    value = number(mark, name, values[name])
    if not 0 < value < 100:
        raise MarkError(
            f"{mark.name}: {name}={values[name]!r} must lie between 0 and 100; 1.0 is one percentage point."
        )
    return value


def _accuracy_loss(mark: pytest.Mark) -> AccuracyLossCeiling:
    values = keywords_of(mark, [item.name for item in fields(AccuracyLossCeiling)])
    reference = values.get("reference")
    if not isinstance(reference, str) or not reference:
        raise MarkError(f'{mark.name}: reference={reference!r}; name the stored precision: reference="BF16".')
    _precision(mark, "reference", reference)
    points, percent = _share(mark, values, "points"), _share(mark, values, "percent")
    if (points is None) == (percent is None):
        raise MarkError(
            f"{mark.name}: give points= (percentage points, for scores between 0 and 1) or percent= (of the reference "
            "score, for perplexities), not both and not neither."
        )
    return AccuracyLossCeiling(
        reference=reference,
        points=points,
        percent=percent,
        unparseable_points=_share(mark, values, "unparseable_points"),
        metric=_metric_name(mark, values),
    )


def _accuracy_floor(mark: pytest.Mark) -> AccuracyFloor:
    values = keywords_of(mark, [item.name for item in fields(AccuracyFloor)])
    points = _share(mark, values, "points")
    if points is None:
        raise MarkError(f"{mark.name}: points is missing; give the smallest score in percentage points: points=61.5.")
    return AccuracyFloor(points=points, metric=_metric_name(mark, values))


def _metric_name(mark: pytest.Mark, values: dict[str, Any]) -> str | None:
    metric = values.get("metric")
    if metric is not None and (not isinstance(metric, str) or not metric):
        raise MarkError(
            f'{mark.name}: metric={metric!r}; it takes the name of an lm-eval metric: metric="exact_match".'
        )
    return metric
