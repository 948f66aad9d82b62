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

from pytest_inferperf.cli_measure import check_measure, measure_once
from pytest_inferperf.cli_workload import add_workload_options, settings_of, workload_of
from pytest_inferperf.errors import EngineError, HardwareError, InvalidRun, SettingsError
from pytest_inferperf.hiding import Hide, hide_in, hider
from pytest_inferperf.model.metrics import METRICS, STATISTICS
from pytest_inferperf.report.lines import number, plural
from pytest_inferperf.report.progress import ProgressLine
from pytest_inferperf.report.turns import turn_lines

if TYPE_CHECKING:
    from pytest_inferperf.cli_measure import Measured
    from pytest_inferperf.engines.openai.endpoint import Endpoint
    from pytest_inferperf.measure.agreement import Agreement
    from pytest_inferperf.measure.load.clock import ClockReport
    from pytest_inferperf.measure.load.generator import LoadRun
    from pytest_inferperf.measure.load.skew import HostClock
    from pytest_inferperf.model.results import TurnFigures

__all__ = ["add_clock_options", "add_load_commands", "check_clock_command"]

_EXIT_CODES = """\
exit status:
  0  measured
  1  INVALID: no figure can be trusted; the cause is named
  2  bad usage
"""
_COMPARED = 16


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
    add_workload_options(measure)
    add("--slo", default="", metavar="METRIC=MS,…", help="Count goodput: ttft_ms, tpot_ms, e2e_latency_ms")
    add("--seed", type=int, help="Seed of prompts and arrivals (default: a new one, which is shown)")
    add("--vocab-size", type=int, metavar="N", help="Draw token ids below this (default: the tokenizer's, else 32000)")
    add("--tokenizer", metavar="NAME", help="Folder or hub id of the tokenizer, to count what the server does not")
    add(
        "--compare",
        type=int,
        default=_COMPARED,
        metavar="N",
        help=f"Answers that are asked for again at concurrency 1, and compared (default: {_COMPARED}; 0 for none)",
    )
    add("--audit", action="store_true", help="Repeat prompts afterwards, to find answers that come from a cache")
    add("--timeout", type=float, default=600.0, metavar="S", help="For each request, seconds (default: 600)")
    add("--retries", type=int, default=0, metavar="N", help="Send a request that got 429 or 503 again (default: 0)")
    add("--allow-failed", type=float, default=0.0, metavar="SHARE", help="Share of requests that may fail (default: 0)")
    add(
        "--processes",
        type=int,
        metavar="N",
        help="Processes that send, on each host (default: one, and more where that is too few)",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster whose nodes help to send where this machine is too small: auto, local or ray://HOST:PORT",
    )
    add(
        "--hosts",
        type=int,
        metavar="N",
        help="Nodes of the cluster that send, from the start (default: as many as needed)",
    )
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
    from pytest_inferperf.measure.load.record_file import check_records_path, write_records
    from pytest_inferperf.measure.load.summary import check_slo, summarise_load

    seed: int = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    workload = workload_of(arguments, seed=seed)
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
    check_measure(arguments)
    path: Path | None = arguments.json
    if path is not None and not path.parent.is_dir():
        raise SettingsError(f"{path}: cannot be written: no such folder.")
    records: Path | None = arguments.records
    if records is not None:
        check_records_path(records)
    settings = settings_of(workload)
    line = ProgressLine(sys.stderr, is_terminal=sys.stderr.isatty(), width=shutil.get_terminal_size().columns, lead="")

    def show(state: Callable[[], str]) -> None:
        if line.is_due():
            line(state())

    try:
        found = measure_once(arguments, workload, live=show)
    except (EngineError, HardwareError, InvalidRun) as error:
        cause = str(error).replace("--inferperf-ray", "--ray")
        print(f"INVALID: {cause}", file=sys.stderr)
        _write(path, endpoint, settings, invalid=cause)
        return 1
    except KeyboardInterrupt:
        print("inferperf: stopped before anything was measured", file=sys.stderr)
        return 130
    finally:
        line.clear()
    run, invalid = found.run, found.invalid
    if records is not None:
        # Of an INVALID run too: they may show why.
        write_records(records, run.records)
    summary = summarise_load(run, isl=found.isl, slo=slo, check=False)
    metrics = dict(summary.metrics)
    if found.agreement is not None:
        metrics["output_agreement"] = found.agreement.prefix
    head = [f"{endpoint.shown}  {endpoint.model}", "  ".join(f"{name} {value}" for name, value in settings.items()), ""]
    judged = not invalid or run.interrupted
    figures = [*_figure_lines(metrics, slo), *turn_lines(summary.turns)] if judged else []
    if invalid and figures:
        head.append("So far, not to be judged:")
    print("\n".join([*head, *figures, *_run_lines(run), *_agreement_lines(found.agreement)]))
    if invalid:
        print(f"INVALID: {invalid}", file=sys.stderr)
    _write(path, endpoint, settings, invalid=invalid, metrics=metrics, found=found, turns=summary.turns)
    return 1 if invalid else 0


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
    lines += _host_lines(run.hosts)
    if run.count_sources:
        sources = ", ".join(sorted(run.count_sources))
        lines.append(f"tokens     counted by {sources}")
    for count, what in ((run.retries, "retries (in the latencies)"), (run.reconnects, "connections opened again")):
        if count:
            lines.append(f"also       {count} {what}")
    for cause, failure in sorted(run.failures.items(), key=lambda item: -item[1].count):
        lines.append(f"failed     {failure.count} x {cause}: {failure.example}")
    return lines


def _host_lines(hosts: Sequence[HostClock]) -> list[str]:
    """Say which other machines sent the load, and how well their clocks were known."""
    if not hosts:
        return []
    processes = {host: f"{host.processes} process{'' if host.processes == 1 else 'es'}" for host in hosts}
    names = ", ".join(f"{host.host} ({count})" for host, count in processes.items())
    return [
        f"sent by    {names}; clocks put together within {max(host.bound_ms for host in hosts):.3f} ms, drift "
        f"{max(abs(host.drift_ms) for host in hosts):.3f} ms at most"
    ]


def _agreement_lines(found: Agreement | None) -> list[str]:
    if found is None:
        return []
    return [
        f"answers    {found.compared} asked for again at concurrency 1, {round(found.identical * found.compared)} identical"
    ]


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
    found: Measured | None = None,
    turns: Sequence[TurnFigures] = (),
) -> None:
    """Write the file of `--json`: figures only where the run is valid."""
    if path is None:
        return
    document: dict[str, Any] = {"endpoint": endpoint.shown, "model": endpoint.model, **settings, "invalid": invalid}
    document["metrics"] = metrics if not invalid else {}
    if turns and not invalid:
        document["turns"] = [asdict(item) for item in turns]
    if found is not None:
        run = found.run
        if found.agreement is not None:
            document["agreement"] = asdict(found.agreement)
        if run.interrupted:
            document["metrics_so_far"] = metrics
        document["window"] = {"duration_s": run.stop - run.start, "requests": run.window_requests, "held": run.held}
        document["excluded"] = {"warmup": run.warmup, "fillers": run.fillers, "cut": run.cut}
        document["failures"] = {cause: asdict(failure) for cause, failure in run.failures.items()}
        document["retries"], document["reconnects"] = run.retries, run.reconnects
        document["tokens_counted_by"] = run.count_sources
        document["cached_tokens"] = run.cached_tokens
        document["clock"] = asdict(run.clock) | {"processes": [asdict(clock) for clock in run.clocks]}
        document["hosts"] = [asdict(host) for host in run.hosts]
    _save(path, document, hide=hider(also=[endpoint.api_key_env]))


def _save(path: Path, document: dict[str, Any], *, hide: Hide) -> None:
    try:
        path.write_text(json.dumps(hide_in(document, hide), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}.") from None
