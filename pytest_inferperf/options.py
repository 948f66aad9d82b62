"""The options, ini settings and marks of the plugin, as `--help` and `--markers` show them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_inferperf.model.limits import LIMITS

__all__ = ["MARKS", "MARK_NAMES", "add_options"]

MARKS = (
    "inferperf(*, model, served_model_name, quant, recipe, kv_cache_dtype, tp, pp, ep, backend, calib_dataset, "
    "calib_size, qat_dataset, qat_steps, qat_learning_rate, serve, url, api_key_env, hardware, engine_options, isl, osl, concurrency, request_rate, arrival, burstiness, shared_prefix, endpoint, dataset, turns, think_time, trace, trace_speed, num_requests, rounds, warmup_rounds, seed, sessions, hosts, share_node, task, "
    "num_fewshot, limit, group_by, early_stop, replicas): the engine, and the workload or the task, that the test measures. Lists "
    "are cross products.",
    "throughput_floor(*metrics, tolerance=None, **limits): fail when a metric that is better when higher falls below "
    "its baseline or limit.",
    "latency_ceiling(*metrics, tolerance=None, **limits): fail when a metric that is better when lower rises above its "
    "baseline or limit.",
    "goodput_floor(*, ttft_ms=None, tpot_ms=None, e2e_latency_ms=None, min=None, tolerance=None): fail when the requests "
    "per second that met every one of these limits fall below their baseline or min.",
    "frontier_floor(metric, *, over, tolerance=None): fail when a point of a sweep's frontier, of metric traded against "
    "over, is no longer on offer.",
    "error_rate_ceiling(share): fail when more than this share of the requests failed; up to it, failed requests do not "
    "make the run INVALID.",
    "speedup_floor(*metrics, over, ratio=1.0, tolerance=None, reload=False): fail when the engine is less than ratio "
    "times as good as the engine that over names, the two measured interleaved.",
    "accuracy_loss_ceiling(*, reference, points=None, percent=None, unparseable_points=None, metric=None): fail when "
    "the task is answered worse than by the stored reference.",
    "accuracy_floor(*, points, metric=None): fail when the score of the task is below a limit in points.",
    "requires_gpu(*, sm=0, count=1, memory_gib=0.0): skip where the machine lacks such GPUs.",
)
"""A line per mark, with its full signature."""

MARK_NAMES = tuple(line.partition("(")[0] for line in MARKS)


def add_options(parser: pytest.Parser) -> None:
    """Declare every option and ini setting."""
    group = parser.getgroup("inferperf", "accuracy and performance of LLM inference")

    def option(name: str, **attributes: Any) -> None:
        group.addoption(f"--inferperf-{name}", dest=f"inferperf_{name.replace('-', '_')}", default=None, **attributes)

    option(
        "backend",
        metavar="NAME",
        help="Engine backend: auto, transformers, tensorrt_llm, openai, or one a plugin brings",
    )
    option("baselines", metavar="DIR", help="Folder of the baseline files")
    option(
        "cache-dir",
        metavar="DIR",
        help="Folder of built checkpoints, or address where machines share them, such as s3://bucket/checkpoints",
    )
    option("json", metavar="PATH", help="Write every result and verdict to this file")
    option(
        "results",
        metavar="DIR",
        help="Keep the result file of every run in this folder, or at this address, such as s3://bucket/results",
    )
    option("html", metavar="PATH", help="Write an HTML report, one file that needs no network, to this file")
    option(
        "update",
        choices=("new", "tighten", "all"),
        help="Record baselines: what is missing (new), what got better (tighten), or everything (all).\n"
        "A run that records is judged by the baselines it found.",
    )
    option("update-in-ci", action="store_true", help="Let --inferperf-update record where CI is set")
    option("reason", metavar="TEXT", help="Why a baseline changes; stored with it")
    option("accept-regression", action="store_true", help="Let --inferperf-update=all loosen beyond tolerance")
    option(
        "against",
        metavar="SPEC_OR_RESULT",
        help="Compare with another engine (KEYWORD=VALUE[,KEYWORD=VALUE...]) or with a result file, not with baselines",
    )
    option(
        "audit",
        action="store_true",
        help="Repeat prompts after each measurement: answers that come from a cache are INVALID",
    )
    option(
        "replay",
        metavar="RESULTS",
        help="Build no engine: judge the results in this file by today's marks, settings and baselines",
    )
    option(
        "ray",
        metavar="ADDRESS",
        help="Run engines on a Ray cluster: auto, local (one that is started here and ended with the run), or "
        "ray://HOST:PORT",
    )
    option("require-gpu", action="store_true", help="Fail, instead of skip, where requires_gpu is not met")
    option(
        "set",
        action="append",
        metavar="KEYWORD=VALUE",
        help="Override a keyword of every inferperf mark (repeatable), such as rounds=3 or engine_options.NAME=VALUE",
    )
    option(
        "plan",
        action="store_true",
        help="Run nothing: say what would be built and loaded, what each gate can find, and how long it takes",
    )
    option(
        "past",
        metavar="PATH",
        help="Result file, or folder of them, that a plan takes expected times from, and an HTML report its trends",
    )
    option("power", metavar="SHARE", help="Probability with which a plan wants losses to be found, such as 0.9")
    option("cases", metavar="PATH", help="Write every collected case to this file; goes with --collect-only")
    option(
        "inject",
        action="append",
        metavar="KIND:SIZE",
        help="Make the engine worse on purpose, to see gates fail (repeatable), such as latency:20ms; kinds: slowdown, "
        "latency, accuracy, errors, agreement, memory, noise",
    )
    parser.addini("inferperf_backend", "Engine backend", default="auto")
    parser.addini("inferperf_baselines", "Folder of the baseline files, relative to the rootdir", default="baselines")
    parser.addini(
        "inferperf_cache_dir",
        "Folder of built checkpoints, relative to the rootdir, or address where machines share them",
        default="",
    )
    parser.addini(
        "inferperf_results",
        "Folder, relative to the rootdir, or address that keeps the result file of every run",
        default="",
    )
    parser.addini("inferperf_require_gpu", "Fail where requires_gpu is not met", type="bool", default=False)
    parser.addini("inferperf_task_paths", "Folders with lm-eval task files", type="paths", default=[])
    parser.addini("inferperf_tolerance", "Default relative performance tolerance", type="float", default=0.05)
    parser.addini("inferperf_alpha", "One-sided error of each gate, over all of its looks", type="float", default=0.05)
    for limit in LIMITS:
        parser.addini(limit.ini, limit.help, type="float", default=limit.default)
    parser.addini("inferperf_on_inconclusive", "What an INCONCLUSIVE verdict does: fail or warn", default="fail")
    parser.addini(
        "inferperf_fail_on_improvement", "Fail where a gain beyond the tolerance is proven", type="bool", default=False
    )
    parser.addini(
        "inferperf_order",
        "Which engine is dealt first on Ray with -n: the longest by past results (longest), or as xdist does (suite)",
        default="longest",
    )
    parser.addini("inferperf_past", "Past results for plans, relative to the rootdir", default="")
    parser.addini(
        "inferperf_power", "Probability with which a plan wants losses to be found", type="float", default=0.9
    )
    parser.addini(
        "inferperf_gpu_hour_price", "What one GPU costs for one hour, in any currency", type="float", default=0.0
    )
    parser.addini(
        "inferperf_gpu_timeout", "Seconds an engine may wait for GPUs that others hold", type="float", default=7200.0
    )
    parser.addini("inferperf_load_timeout", "Seconds an engine may take to load", type="float", default=3600.0)
    parser.addini("inferperf_call_timeout", "Seconds one call of an engine may take", type="float", default=1800.0)
