"""The commands of the load generator: `inferperf measure`, and `inferperf simulate-server` to try it on."""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.hiding import Hide, hide_in, hider
from pytest_inferperf.model.metrics import METRICS, STATISTICS
from pytest_inferperf.report.lines import number, plural
from pytest_inferperf.report.progress import ProgressLine

if TYPE_CHECKING:
    from pytest_inferperf.engines.openai.endpoint import Endpoint
    from pytest_inferperf.measure.load.clock import ClockReport
    from pytest_inferperf.measure.load.generator import LoadRun

__all__ = ["add_clock_options", "add_load_commands", "check_clock_command"]

_EXIT_CODES = """\
exit status:
  0  measured
  1  INVALID: no figure can be trusted; the cause is named
  2  bad usage
"""
_REQUESTS_PER_STREAM = 4
_REQUESTS_OF_OPEN_LOOP = 100


def add_load_commands(commands: Any) -> None:
    """Add both commands to the subparsers of `inferperf`."""
    measure = commands.add_parser(
        "measure",
        help="Send load to an OpenAI-compatible server and measure it; exits 1 when the run is INVALID",
        description="Send load to an OpenAI-compatible server and measure it.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = measure.add_argument
    add("--url", required=True, help="Where the server is, such as http://127.0.0.1:8000")
    add("--model", required=True, help="Name of the model, as the server knows it")
    add("--chat", action="store_true", help="Use /chat/completions with prompts of words, not token ids")
    add("--isl", type=int, required=True, metavar="TOKENS", help="Input tokens of each request")
    add("--osl", type=int, required=True, metavar="TOKENS", help="Output tokens of each request, exact")
    loop = measure.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=int, metavar="N", help="Closed loop: requests in flight")
    loop.add_argument("--request-rate", type=float, metavar="R", help="Open loop: requests per second")
    add("--arrival", default="poisson", help="Open loop: poisson, constant or gamma (default: poisson)")
    add("--burstiness", type=float, default=1.0, help="Shape of gamma arrivals; below 1 comes in bursts (default: 1)")
    add(
        "--num-requests",
        type=int,
        metavar="N",
        help=f"Requests measured (default: {_REQUESTS_PER_STREAM} times the concurrency, or {_REQUESTS_OF_OPEN_LOOP})",
    )
    add("--slo", default="", metavar="METRIC=MS,…", help="Count goodput: ttft_ms, tpot_ms, e2e_latency_ms")
    add("--seed", type=int, help="Seed of prompts and arrivals (default: a new one, which is shown)")
    add("--vocab-size", type=int, default=32000, metavar="N", help="Token ids are drawn below this (default: 32000)")
    add("--timeout", type=float, default=600.0, metavar="S", help="For each request, seconds (default: 600)")
    add("--retries", type=int, default=0, metavar="N", help="Send a request that got 429 or 503 again (default: 0)")
    add("--allow-failed", type=float, default=0.0, metavar="SHARE", help="Share of requests that may fail (default: 0)")
    add("--processes", type=int, metavar="N", help="Processes that send (default: one, and more where that is too few)")
    add("--api-key-env", default="", metavar="NAME", help="Environment variable that holds the API key")
    add("--ca-file", default="", metavar="PEM", help="Certificates to trust besides the system's")
    add("--json", type=Path, metavar="PATH", help="Write figures, exclusions and the clock's error")
    add("--records", type=Path, metavar="PATH", help="Write every request: a line of *.jsonl, or a row of *.parquet")
    measure.set_defaults(run=_measure)

    from pytest_inferperf.simulate.behaviour import Behaviour

    simulate = commands.add_parser(
        "simulate-server",
        help="Serve an OpenAI-compatible API with known times and faults, until Ctrl-C",
        description="Serve an OpenAI-compatible API with known times and faults, until Ctrl-C. Prints one line of JSON "
        "when it is ready; GET /stats tells how true its times are.",
    )
    simulate.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1)")
    simulate.add_argument("--port", type=int, default=0, help="Port to listen on; 0 takes a free one (default: 0)")
    for item in fields(Behaviour):
        kind = type(item.default)
        option: dict[str, Any] = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        default = "" if kind is bool else f" (default: {item.default})"
        simulate.add_argument(
            f"--{item.name.replace('_', '-')}", default=item.default, help=f"{item.metadata['help']}{default}", **option
        )
    simulate.set_defaults(run=_simulate)


def add_clock_options(selftest: argparse.ArgumentParser) -> None:
    """Add the options of `inferperf selftest --clock`."""
    selftest.add_argument(
        "--clock",
        action="store_true",
        help="Measure the load generator's own error on this machine, against a server of known truth, instead",
    )
    selftest.add_argument(
        "--streams", metavar="N,…", help="With --clock: concurrencies to measure (default: 1,32,256,1024)"
    )


def check_clock_command(arguments: argparse.Namespace) -> int:
    """Run `inferperf selftest --clock`; return its exit status."""
    from pytest_inferperf.measure.load.trust import STREAMS, check_clock
    from pytest_inferperf.report.clock import CLOCK_HEAD, clock_json, clock_row, clock_summary

    if arguments.pytest_arguments:
        raise SettingsError(f"--clock runs no test, so it takes no {arguments.pytest_arguments[0]!r}.")
    if arguments.strict or arguments.keep is not None:
        raise SettingsError("--strict and --keep go with the self-test of gates, not with --clock.")
    streams: Sequence[int] = STREAMS
    if arguments.streams is not None:
        try:
            streams = [int(part) for part in arguments.streams.split(",")]
        except ValueError:
            raise SettingsError(
                f"--streams {arguments.streams!r}: write numbers with commas, such as 1,32,256."
            ) from None
    path: Path | None = arguments.json
    if path is not None and not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: no such folder.")
    print(CLOCK_HEAD, flush=True)
    points = []
    try:
        for point in check_clock(streams):
            print(clock_row(point), flush=True)
            points.append(point)
    except KeyboardInterrupt:
        print("inferperf: stopped", file=sys.stderr)
        return 130
    print("\n".join(["", *clock_summary(points)]))
    document = clock_json(points)
    if path is not None:
        _save(path, document, hide=hider())
    return 0 if document["trusted"] else 1


def _simulate(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.polling import raise_file_limit
    from pytest_inferperf.simulate.behaviour import Behaviour
    from pytest_inferperf.simulate.server import SimulatedServer

    behaviour = Behaviour(**{item.name: getattr(arguments, item.name) for item in fields(Behaviour)})
    raise_file_limit()
    server = SimulatedServer(behaviour, host=arguments.host, port=arguments.port)
    before = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    print(json.dumps({"url": server.url, "port": server.port, "model": behaviour.model}), flush=True)
    # Streams come and go without cycles; a collection would only stop the clock.
    gc.disable()
    try:
        server.serve()
    finally:
        gc.enable()
        for number_, handler in before.items():
            signal.signal(number_, handler)
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from pytest_inferperf.engines.openai.endpoint import Endpoint
    from pytest_inferperf.measure.load.arrivals import Arrivals
    from pytest_inferperf.measure.load.plan import LoadPlan
    from pytest_inferperf.measure.load.prompts import SyntheticBodies
    from pytest_inferperf.measure.load.record_file import check_records_path, write_records
    from pytest_inferperf.measure.load.spread import spread_load
    from pytest_inferperf.measure.load.summary import check_load, check_slo, summarise_load

    seed: int = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    arrivals = None
    if arguments.request_rate is not None:
        arrivals = Arrivals(
            rate=arguments.request_rate, kind=arguments.arrival, burstiness=arguments.burstiness, seed=seed
        )
    elif arguments.arrival != "poisson" or arguments.burstiness != 1.0:
        raise SettingsError("--arrival and --burstiness go with --request-rate, not with --concurrency.")
    concurrency = arguments.concurrency or 0
    requests = arguments.num_requests
    if requests is None:
        requests = _REQUESTS_PER_STREAM * concurrency or _REQUESTS_OF_OPEN_LOOP
    plan = LoadPlan(
        num_requests=requests,
        osl=arguments.osl,
        concurrency=concurrency,
        arrivals=arrivals,
        timeout_s=arguments.timeout,
        retries=arguments.retries,
    )
    if not 0 <= arguments.allow_failed < 1:
        raise SettingsError(f"--allow-failed {arguments.allow_failed:g}: must be from 0 to below 1.")
    slo = _parse_slo(arguments.slo)
    check_slo(slo)
    endpoint = Endpoint.parse(
        arguments.url,
        model=arguments.model,
        chat=arguments.chat,
        api_key_env=arguments.api_key_env,
        ca_file=arguments.ca_file,
    )
    bodies = SyntheticBodies(endpoint, isl=arguments.isl, osl=arguments.osl, seed=seed, vocab_size=arguments.vocab_size)
    path: Path | None = arguments.json
    if path is not None and not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: no such folder.")
    records: Path | None = arguments.records
    if records is not None:
        check_records_path(records)
    settings = _settings(arguments, plan.num_requests, seed)
    line = ProgressLine(sys.stderr, is_terminal=sys.stderr.isatty(), width=shutil.get_terminal_size().columns, lead="")

    def show(state: Callable[[], str]) -> None:
        if line.is_due():
            line(state())

    try:
        run = spread_load(endpoint, plan, lambda _: bodies, processes=arguments.processes, live=show)
    except EngineError as error:
        print(f"INVALID: {error}", file=sys.stderr)
        _write(path, endpoint, settings, invalid=str(error))
        return 1
    finally:
        line.clear()
    if records is not None:
        # Of an INVALID run too: they may show why.
        write_records(records, run.records)
    invalid = check_load(run, max_failed_share=arguments.allow_failed, isl=None if arguments.chat else arguments.isl)
    metrics = dict(summarise_load(run, isl=arguments.isl, slo=slo, check=False).metrics)
    head = [f"{endpoint.shown}  {endpoint.model}", "  ".join(f"{name} {value}" for name, value in settings.items()), ""]
    figures = _figure_lines(metrics, slo) if not invalid or run.interrupted else []
    if invalid and figures:
        head.append("So far, not to be judged:")
    print("\n".join([*head, *figures, *_run_lines(run)]))
    if invalid:
        print(f"INVALID: {invalid}", file=sys.stderr)
    _write(path, endpoint, settings, invalid=invalid, metrics=metrics, run=run)
    return 1 if invalid else 0


def _settings(arguments: argparse.Namespace, requests: int, seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"isl": arguments.isl, "osl": arguments.osl}
    if arguments.request_rate is None:
        settings["concurrency"] = arguments.concurrency
    else:
        settings |= {"request_rate": arguments.request_rate, "arrival": arguments.arrival}
        if arguments.arrival == "gamma":
            settings["burstiness"] = arguments.burstiness
    return settings | {"num_requests": requests, "seed": seed}


def _parse_slo(text: str) -> dict[str, float]:
    """Read `ttft_ms=500,tpot_ms=50`."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise SettingsError(f"--slo {part!r}: write METRIC=MILLISECONDS, such as ttft_ms=500,tpot_ms=50.")
    return found


def _figure_lines(metrics: dict[str, float], slo: dict[str, float]) -> list[str]:
    latencies = [name for name, row in METRICS.items() if row.has_statistics and f"{name}.mean" in metrics]
    if metrics.get("chunk_gap_ms.mean") == metrics.get("itl_ms.mean"):
        # Every chunk was one token: the same figures under another name.
        latencies = [name for name in latencies if name != "chunk_gap_ms"]
    rows: list[tuple[str, ...]] = [("", *STATISTICS, "")]
    rows += [
        (name, *(number(metrics[f"{name}.{item}"]) for item in STATISTICS), METRICS[name].unit) for name in latencies
    ]
    lines = _aligned(rows)
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in slo.items())
    rates = [
        (name, number(metrics[name]), row.unit + (f"  ({limits})" if name == "goodput" else ""))
        for name, row in METRICS.items()
        if name in metrics
    ]
    return [*lines, "", *_aligned(rates), ""]


def _run_lines(run: LoadRun) -> list[str]:
    """Say what stands behind the figures: what was left out, what was held, how good the clock was."""
    asked = f" of {run.plan.concurrency}" if run.plan.concurrency else ""
    lines = [
        f"excluded   {plural(run.warmup, 'warm-up request')} before, {run.fillers} after the measured ones "
        f"({run.cut} cut off at the end)",
        f"in flight  {run.held:.2f}{asked} in the mean over {run.stop - run.start:.2f} s",
        f"clock      {_clock_text(run.clock, run.clocks)}",
    ]
    if run.count_sources:
        sources = ", ".join(sorted(run.count_sources))
        lines.append(f"tokens     counted by {sources}")
    for count, what in ((run.retries, "retries (in the latencies)"), (run.reconnects, "connections opened again")):
        if count:
            lines.append(f"also       {count} {what}")
    for cause, failure in sorted(run.failures.items(), key=lambda item: -item[1].count):
        lines.append(f"failed     {failure.count} x {cause}: {failure.example}")
    return lines


def _clock_text(clock: ClockReport, each: Sequence[ClockReport]) -> str:
    parts = []
    if clock.wait is not None:
        kernel = clock.wait_source == "kernel"
        what = "arrivals timed by the kernel, seen" if kernel else "arrivals timed up to"
        parts.append(f"{what} {clock.wait.mean_ms:.3f} ms late (p99 {clock.wait.p99_ms:.3f})")
    if clock.lateness is not None:
        parts.append(f"sends {clock.lateness.mean_ms:.3f} ms late (p99 {clock.lateness.p99_ms:.3f})")
    if clock.lag is not None:
        parts.append(f"woke {clock.lag.mean_ms:.3f} ms late (p99 {clock.lag.p99_ms:.3f})")
    cores = f"{clock.cpu_share:.3f} CPU cores used"
    if len(each) > 1:
        cores += f" by {len(each)} processes, {max(item.cpu_share for item in each):.3f} by one at most"
    return "; ".join([*parts, cores])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _write(
    path: Path | None,
    endpoint: Endpoint,
    settings: dict[str, Any],
    *,
    invalid: str,
    metrics: dict[str, float] | None = None,
    run: LoadRun | None = None,
) -> None:
    """Write the file of `--json`: figures only where the run is valid."""
    if path is None:
        return
    document: dict[str, Any] = {"endpoint": endpoint.shown, "model": endpoint.model, **settings, "invalid": invalid}
    document["metrics"] = metrics if not invalid else {}
    if run is not None:
        if run.interrupted:
            document["metrics_so_far"] = metrics
        document["window"] = {"duration_s": run.stop - run.start, "requests": run.window_requests, "held": run.held}
        document["excluded"] = {"warmup": run.warmup, "fillers": run.fillers, "cut": run.cut}
        document["failures"] = {cause: asdict(failure) for cause, failure in run.failures.items()}
        document["retries"], document["reconnects"] = run.retries, run.reconnects
        document["tokens_counted_by"] = run.count_sources
        document["cached_tokens"] = run.cached_tokens
        document["clock"] = asdict(run.clock) | {"processes": [asdict(clock) for clock in run.clocks]}
    _save(path, document, hide=hider(also=[endpoint.api_key_env]))


def _save(path: Path, document: dict[str, Any], *, hide: Hide) -> None:
    try:
        path.write_text(json.dumps(hide_in(document, hide), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}.") from None
