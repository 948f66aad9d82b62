"""From what happened under load to the metric table, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_inferperf.errors import InvalidRun, SettingsError, choices
from pytest_inferperf.measure.load.clock import ClockLimits, client_bound
from pytest_inferperf.measure.load.generator import LoadRun
from pytest_inferperf.measure.load.records import MEASURED, Sample, latencies_ms
from pytest_inferperf.measure.load.skew import out_of_step
from pytest_inferperf.measure.load.turns import turn_figures
from pytest_inferperf.model.metrics import METRICS, SLO_METRICS, STATISTICS, Slo, base_name, goodput
from pytest_inferperf.model.results import Round

__all__ = ["check_load", "check_slo", "summarise_load"]

_LATE_FLOOR_S = 0.005
"""Sends this late at the end of a run of any length are no backlog."""


def check_slo(slo: Mapping[str, float]) -> None:
    """Raise `SettingsError` for an SLO on something that is not the latency of a request, or not above 0."""
    for name, limit in slo.items():
        if name not in SLO_METRICS:
            raise SettingsError(f"SLO {name!r} is unknown. {choices(name, SLO_METRICS, what='SLOs')}")
        if not limit > 0:
            raise SettingsError(f"SLO {name} {limit:g} ms: must be above 0.")


def check_load(
    run: LoadRun,
    *,
    max_failed_share: float = 0.0,
    min_held_share: float = 0.99,
    max_cached_share: float = 0.01,
    isl: int | None = None,
    limits: ClockLimits | None = None,
) -> str:
    """Say why a run must not be judged; "" where it can be.

    `max_failed_share` is the largest share of measured requests that may fail, `min_held_share` the smallest share of
    the concurrency, or of the request rate, that must have been held, `max_cached_share` the largest share of prompt tokens from a cache. With `isl`, the server must
    have counted exactly that many prompt tokens for every request, where it counts them.
    """
    import numpy as np

    columns = run.records.columns()
    measured = columns["kind"] == MEASURED
    total, good = int(measured.sum()), int((measured & columns["ok"]).sum())
    failed = total - good
    if run.interrupted:
        return f"interrupted after {total} of {run.plan.num_requests} measured requests"
    if not good:
        return f"no request had success: {failures_text(run)}"
    if failed > max_failed_share * total:
        allowed = f"{100 * max_failed_share:g} %" if max_failed_share else "none"
        return f"{failed} of {total} requests failed, where {allowed} may: {failures_text(run)}"
    prompts = columns["prompt_tokens"][measured & columns["ok"]]
    counted = prompts[prompts >= 0]
    if isl is not None and (counted != isl).any():
        return (
            f"the server counted {int(counted.min())} to {int(counted.max())} prompt tokens for a request where {isl} "
            "were sent: the prompts were changed on the way"
        )
    asked = columns["asked_prompt"][measured & columns["ok"]]
    changed = np.flatnonzero((asked >= 0) & (prompts >= 0) & (asked != prompts))
    if len(changed):
        first = changed[0]
        return (
            f"the server counted {prompts[first]} prompt tokens for a request where {asked[first]} were sent, and so for "
            f"{len(changed)} of {len(prompts)} requests: the prompts were changed on the way"
        )
    if run.cached_tokens > max_cached_share * int(counted.sum()):
        return (
            f"{run.cached_tokens} of {int(counted.sum())} prompt tokens came from the server's prefix cache; switch it "
            "off, or send other prompts (another seed)"
        )
    ttft_ms = 1000 * float((columns["first"] - columns["intended"])[measured & columns["ok"]].mean())
    for number, clock in enumerate(run.clocks or (run.clock,), 1):
        cause = client_bound(clock, ttft_ms=ttft_ms, limits=limits or ClockLimits())
        if cause:
            return cause if len(run.clocks) < 2 else f"process {number} of {len(run.clocks)}{_on(run, number)}: {cause}"
    skewed = out_of_step(
        run.hosts,
        window_s=run.stop - run.start,
        ttft_ms=ttft_ms,
        open_loop=run.plan.arrivals is not None,
        limits=limits or ClockLimits(),
    )
    if skewed:
        return skewed
    asked = run.plan.concurrency
    if asked and run.held < min_held_share * asked:
        return (
            f"{run.held:.2f} requests were in flight in the mean, where {asked} were asked for and "
            f"{min_held_share * asked:g} are the least: figures at this concurrency were not measured"
        )
    if asked and run.held_measured is not None and run.held_measured < min_held_share * asked:
        return (
            f"from the first measured request on, {run.held_measured:.2f} requests were in flight in the mean, where {asked} were "
            f"asked for and {min_held_share * asked:g} are the least: a process began later than the others, whose latencies "
            "are those of a smaller load. Measure for longer, or on machines with less to do"
        )
    if run.plan.arrivals is not None:
        return _rate_not_held(run.plan.arrivals.rate, columns, measured, min_held_share)
    return ""


def _on(run: LoadRun, number: int) -> str:
    """Say on which host a process was, counted from 1."""
    names = [host.host for host in run.hosts for _ in range(host.processes)]
    return f" on {names[number - 1]}" if names else ""


def _rate_not_held(rate: float, columns: Mapping[str, Any], measured: Any, min_held_share: float) -> str:
    """Say that requests waited for the client, ever longer: then fewer went out per second than were due."""
    import numpy as np

    sent = measured & (columns["sent"] > 0)
    order = np.argsort(columns["intended"][sent])
    due, late = columns["intended"][sent][order], (columns["sent"] - columns["intended"])[sent][order]
    span, last = float(due[-1] - due[0]), float(late[-max(1, len(late) // 10) :].mean())
    if last <= (1 - min_held_share) * span + _LATE_FLOOR_S:
        return ""
    return (
        f"the last requests went out {1000 * last:.0f} ms after they were due, in a run of {span:.2f} s: "
        f"{rate * span / (span + last):.4g} requests per second were sent where {rate:g} were asked for. The client had a "
        "backlog: lower the rate, or raise its limit of open files"
    )


def failures_text(run: LoadRun) -> str:
    """List the causes of failed requests, the most frequent first, each with an example."""
    causes = sorted(run.failures.items(), key=lambda item: -item[1].count)
    return (
        "; ".join(f"{failure.count} x {cause} ({failure.example})" for cause, failure in causes) or "no request ended"
    )


def summarise_load(
    run: LoadRun,
    *,
    isl: int,
    slo: Mapping[str, float] | None = None,
    slos: Sequence[Slo] = (),
    devices: int | None = None,
    check: bool = True,
) -> Round:
    """Compute every metric of a run; formulas and sources stand in `model.metrics`.

    Latencies are of measured requests, from when they were due; rates are of the window. `isl` counts the input where
    the server sends no usage. `devices` is the number of GPUs behind the endpoint; None leaves out what is per GPU.
    `slo` gives a figure called `goodput`, and each of `slos` one that is called by its limits too; none of a TPOT that no
    request has.
    Raises `InvalidRun` where `check_load`, with its defaults, finds a reason; `check=False` is for those who have
    judged the run themselves.
    """
    if check:
        cause = check_load(run)
        if cause:
            raise InvalidRun(cause)
    import numpy as np

    columns = run.records.columns()
    measured = columns["kind"] == MEASURED
    rows = {name: column[measured & columns["ok"]] for name, column in columns.items()}
    duration_s = run.stop - run.start
    many = rows["tokens"] > rows["first_tokens"]
    samples = latencies_ms(rows)
    tpot_ms = samples["tpot_ms"]
    input_tokens = np.where(rows["asked_prompt"] < 0, isl, rows["asked_prompt"])
    input_tokens = np.where(rows["prompt_tokens"] < 0, input_tokens, rows["prompt_tokens"])
    # A run that was interrupted in its warm-up has no window, and no request in it.
    requests_per_s = run.window_requests / duration_s if duration_s > 0 else 0.0
    output_per_s = run.window_tokens / duration_s if duration_s > 0 else 0.0
    metrics = {
        "output_throughput": output_per_s,
        "total_throughput": output_per_s + requests_per_s * float(input_tokens.mean()) if len(input_tokens) else 0.0,
        "request_throughput": requests_per_s,
    }
    if devices is not None:
        metrics["output_throughput_per_gpu"] = output_per_s / devices
    speeds = 1000 / tpot_ms[tpot_ms > 0]
    if len(speeds):
        metrics["output_throughput_per_user"] = float(speeds.mean())

    def share_met(limits: Mapping[str, float]) -> float:
        met = np.ones(len(rows["tokens"]), dtype=bool)
        for name, limit in limits.items():
            if name == "tpot_ms":
                # A request without a second chunk has no TPOT to miss.
                met[np.flatnonzero(many)[tpot_ms > limit]] = False
            else:
                met &= samples[name] <= limit
        return float(met.mean()) if len(met) else 0.0

    named = {goodput(dict(limits)).name: dict(limits) for limits in slos}
    if slo:
        check_slo(slo)
        named["goodput"] = dict(slo)
    for name, limits in named.items():
        # A TPOT that no request has is met by none, and missed by none.
        if "tpot_ms" not in limits or many.any() or not len(many):
            metrics[name] = requests_per_s * share_met(limits)
    for name, values in samples.items():
        if len(values):
            metrics[f"{name}.mean"] = float(values.mean())
            metrics |= {f"{name}.{item}": float(np.percentile(values, float(item[1:]))) for item in STATISTICS[1:]}
    for name, sample in (("itl_ms", run.itl_ms), ("chunk_gap_ms", run.chunk_gap_ms)):
        metrics |= _statistics(name, sample)
    assert all(base_name(name) in METRICS for name in metrics)
    total = int(measured.sum())
    everything = {name: column[measured] for name, column in columns.items()}
    return Round(
        duration_s=duration_s,
        num_requests=total,
        num_failed_requests=total - len(rows["tokens"]),
        input_tokens=int(input_tokens.sum()),
        output_tokens=int(rows["tokens"].sum()),
        metrics=metrics,
        turns=turn_figures(everything, _prompt_tokens(everything)),
    )


def _prompt_tokens(rows: Mapping[str, Any]) -> Any:
    """Return the length of each prompt: as the server counts it, else as it was sent, else NaN."""
    import numpy as np

    asked, counted = rows["asked_prompt"], rows["prompt_tokens"]
    return np.where(counted >= 0, counted, np.where(asked >= 0, asked, np.nan))


def _statistics(name: str, sample: Sample) -> dict[str, float]:
    if not len(sample):
        return {}
    found = sample.percentiles(*(float(item[1:]) for item in STATISTICS[1:]))
    return {f"{name}.mean": sample.mean} | {
        f"{name}.{item}": value for item, value in zip(STATISTICS[1:], found, strict=True)
    }
