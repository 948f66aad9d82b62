"""Verdicts and provenance as JUnit properties, through `item.user_properties` (which xdist and xunit2 keep)."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_inferperf.model.metrics import per_megawatt
from pytest_inferperf.model.results import CaseResult
from pytest_inferperf.model.verdicts import GateVerdict, worst

__all__ = ["junit_properties"]


def junit_properties(result: CaseResult, verdicts: Sequence[GateVerdict]) -> list[tuple[str, object]]:
    """Return (name, value) pairs: identity, every metric, every limit and verdict, provenance, context."""
    found: list[tuple[str, object]] = [
        (f"inferperf.case.{name}", value) for name, value in result.case.identity().items()
    ]
    if result.performance is not None:
        names = {name for session in result.performance.sessions for item in session.rounds for name in item.metrics}
        found += [(f"inferperf.metric.{name}", result.performance.median(name)) for name in sorted(names)]
        energy_j = result.performance.median("energy_per_token_j")
        if energy_j is not None:
            found.append(("inferperf.tokens_per_s_per_megawatt", per_megawatt(energy_j)))
        found.append(("inferperf.metric.num_failed_requests", result.performance.num_failed_requests))
        found.append(("inferperf.sessions", len(result.performance.sessions)))
    for point in result.frontier.points if result.frontier is not None else ():
        load, measured = point.workload.load_name, point.performance
        names = {name for session in measured.sessions for item in session.rounds for name in item.metrics}
        found += [(f"inferperf.metric.{load}.{name}", measured.median(name)) for name in sorted(names)]
    if result.accuracy is not None:
        accuracy = result.accuracy
        found += [(f"inferperf.metric.{name}", value) for name, value in sorted(accuracy.scores.items())]
        found.append(("inferperf.questions", len(accuracy.outcomes)))
        found.append(("inferperf.questions_planned", accuracy.planned))
        found.append(("inferperf.documents_digest", accuracy.documents_digest))
        if accuracy.unparseable is not None:
            found.append(("inferperf.metric.unparseable", sum(accuracy.unparseable)))
    for compared in result.comparisons:
        label = compared.reference.label
        if compared.blocks:
            found.append((f"inferperf.blocks.{label}", len(compared.blocks)))
            found.append((f"inferperf.reloaded.{label}", compared.reference.reload))
        if compared.accuracy is not None:
            found.append((f"inferperf.reference_score.{label}", compared.accuracy.score))
    seen: set[str] = set()
    for item in verdicts:
        # A metric may have a limit from the baseline and an absolute one.
        name = f"{item.gate}.{item.source or 'other'}" if item.gate in seen else item.gate
        seen.add(item.gate)
        found.append((f"inferperf.verdict.{name}", item.status.value))
        if item.limit is not None:
            found.append((f"inferperf.limit.{name}", item.limit))
        if item.source:
            found.append((f"inferperf.limit_source.{name}", item.source))
        figures = ("ratio", "ratio_lower", "ratio_upper", "fallen")
        found += [(f"inferperf.{key}.{name}", item.details[key]) for key in figures if key in item.details]
    if verdicts:
        found.append(("inferperf.verdict", worst(verdicts).value))
    if result.engine is not None:
        engine = result.engine
        found += [
            ("inferperf.engine.backend", engine.backend),
            ("inferperf.engine.hardware", engine.hardware.label),
            ("inferperf.engine.checkpoint_hash", engine.checkpoint_hash),
            ("inferperf.engine.compute_dtype", engine.compute_dtype),
            ("inferperf.engine.quant_algo", engine.quant_algo or "none"),
            ("inferperf.engine.kv_cache_quant_algo", engine.kv_cache_quant_algo or "none"),
            ("inferperf.engine.simulated", engine.simulated),
        ]
    found += [(f"inferperf.note.{number}", note) for number, note in enumerate(result.notes, 1)]
    found += [(f"inferperf.context.{name}", value) for name, value in sorted(result.context.items())]
    return found
