"""How true is the load generator's clock, and how fast is it? Runs it against the simulated server, whose truth is known.

Run `python benchmarks/load_clock.py` on an idle machine; the server runs in a process of its own. Each row is the median
of the repeats. Targets, for 2 cores with the server beside: at 256 streams mean TTFT within 1 %, p99 within 3 %, mean ITL
within 0.5 %, 99 % of the concurrency held, under 0.15 core; under stress 99 % of the ideal tokens/s and mean TTFT within
2 %. `sustained` is an open loop at the rates that are asked for, 10,000 requests/s of one token and 150,000 tokens/s of
64: VALID means that every request went out when it was due. `rate` is a closed loop that asks for all there is. The server's
own lateness stands in each row: an error below it is not the client's. What a core gives differs from machine to machine, so
after each closed loop `floor_client.py`, which neither reads nor checks what it gets, sends the same load: its share of a
core, and how many times that this client used, in the median of the repeats.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.generator import LoadPlan, run_load
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.summary import check_load, summarise_load


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row: the truth, and the load: a number of streams, or a rate."""

    name: str
    ttft_ms: float
    itl_ms: float
    osl: int
    requests: int
    streams: int = 0
    rate: float = 0.0
    """Requests per second that are due, at even distances."""

    @property
    def load(self) -> str:
        """What is asked for."""
        return f"{self.rate:g}/s" if self.rate else str(self.streams)

    def plan(self, requests: int) -> LoadPlan:
        """Return the plan of one run."""
        arrivals = Arrivals(rate=self.rate, kind="constant") if self.rate else None
        return LoadPlan(num_requests=requests, osl=self.osl, concurrency=self.streams, arrivals=arrivals)


POINTS = (
    Point(name="truth", ttft_ms=200, itl_ms=20, osl=64, streams=1, requests=4),
    Point(name="truth", ttft_ms=200, itl_ms=20, osl=64, streams=32, requests=128),
    Point(name="truth", ttft_ms=200, itl_ms=20, osl=64, streams=256, requests=1024),
    Point(name="truth", ttft_ms=200, itl_ms=20, osl=64, streams=1024, requests=4096),
    Point(name="stress", ttft_ms=50, itl_ms=5, osl=64, streams=256, requests=4096),
    Point(name="sustained", ttft_ms=0, itl_ms=0, osl=1, rate=10_000, requests=60_000),
    Point(name="sustained", ttft_ms=0, itl_ms=0, osl=64, rate=150_000 / 64, requests=15_000),
    Point(name="rate", ttft_ms=0, itl_ms=0, osl=1, streams=256, requests=60_000),
    Point(name="rate", ttft_ms=0, itl_ms=0, osl=64, streams=256, requests=15_000),
)
FLOOR = Path(__file__).with_name("floor_client.py")
NAMES = tuple(dict.fromkeys(point.name for point in POINTS))
COLUMNS = (
    ("point", 9),
    ("load", 10),
    ("osl", 4),
    ("ttft mean", 10),
    ("error %", 8),
    ("ttft p99", 9),
    ("itl mean", 9),
    ("error %", 8),
    ("itl p99", 8),
    ("held %", 7),
    ("tok/s", 9),
    ("ideal %", 8),
    ("req/s", 8),
    ("sent late", 9),
    ("cores", 6),
    ("busy", 6),
    ("us/tok", 7),
    ("floor", 6),
    ("x floor", 7),
    ("server late", 12),
    ("its cores", 10),
    ("valid", 6),
)


@contextmanager
def server(point: Point) -> Iterator[str]:
    """Serve the truth of a point from a process of its own."""
    times = ["--ttft-ms", str(point.ttft_ms), "--itl-ms", str(point.itl_ms)]
    command = [sys.executable, "-m", "pytest_inferperf.cli", "simulate-server", *times]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def stats(endpoint: Endpoint) -> dict[str, float]:
    """Read and reset the server's own figures."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
    connection.request("GET", "/stats?reset")
    found: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def floor_cores(url: str, point: Point, requests: int) -> float:
    """Return the share of a core that the least client takes for the load of a point."""
    load = ["--streams", str(point.streams), "--requests", str(requests), "--osl", str(point.osl)]
    command = [sys.executable, str(FLOOR), url, *load]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    cores: float = json.loads(done.stdout)["cores"]
    return cores


def measure(point: Point, requests: int) -> dict[str, Any]:
    """Measure a point once."""
    with server(point) as url:
        endpoint = Endpoint.parse(url, model="simulated")
        run = run_load(endpoint, point.plan(requests), SyntheticBodies(endpoint, isl=128, osl=point.osl, seed=0))
        truth = stats(endpoint)
        floor = floor_cores(url, point, requests) if point.streams else 0.0
    metrics = summarise_load(run, isl=128, check=False).metrics
    cycle_s = (point.ttft_ms + (point.osl - 1) * point.itl_ms) / 1000
    ideal_tokens = point.osl * (point.rate or (point.streams / cycle_s if cycle_s else 0.0))
    return {
        "ttft": metrics.get("ttft_ms.mean", 0.0),
        "ttft_p99": metrics.get("ttft_ms.p99", 0.0),
        "itl": metrics.get("itl_ms.mean", 0.0),
        "itl_p99": metrics.get("itl_ms.p99", 0.0),
        "held": 100 * run.held / point.streams if point.streams else 0.0,
        "tokens": metrics["output_throughput"],
        "ideal": 100 * metrics["output_throughput"] / ideal_tokens if ideal_tokens else 0.0,
        "requests": metrics["request_throughput"],
        "sent_late": run.clock.lateness.mean_ms if run.clock.lateness is not None else 0.0,
        "cores": run.clock.cpu_share,
        "busy": run.clock.cpu_share - run.clock.idle_share,
        "us": 1e6 * run.clock.cpu_share / metrics["output_throughput"],
        "floor": floor,
        "ratio": run.clock.cpu_share / floor if floor else 0.0,
        "late": truth["lateness_mean_ms"],
        "server": truth["cpu_s"] / truth["since_s"],
        "invalid": check_load(run),
    }


def main() -> None:
    """Measure every point and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each point (default: 3)")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the requests to send (default: 1)")
    parser.add_argument("--only", choices=NAMES, help=f"Only points of this name: {', '.join(NAMES)}")
    arguments = parser.parse_args()
    print(" ".join(name.rjust(width) for name, width in COLUMNS))
    causes = []
    for point in POINTS:
        if arguments.only not in (None, point.name):
            continue
        requests = max(1, round(arguments.share * point.requests))
        runs = [measure(point, requests) for _ in range(arguments.repeats)]
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "invalid"}
        causes += [f"{point.name} {point.load}: {run['invalid']}" for run in runs if run["invalid"]]
        cells = (
            point.name,
            point.load,
            str(point.osl),
            f"{middle['ttft']:.2f}",
            f"{100 * (middle['ttft'] / point.ttft_ms - 1):+.2f}" if point.ttft_ms else "-",
            f"{middle['ttft_p99']:.2f}",
            f"{middle['itl']:.3f}",
            f"{100 * (middle['itl'] / point.itl_ms - 1):+.2f}" if point.itl_ms else "-",
            f"{middle['itl_p99']:.2f}",
            f"{middle['held']:.2f}" if point.streams else "-",
            f"{middle['tokens']:.0f}",
            f"{middle['ideal']:.2f}" if middle["ideal"] else "-",
            f"{middle['requests']:.0f}",
            f"{middle['sent_late']:.3f}" if point.rate else "-",
            f"{middle['cores']:.3f}",
            f"{middle['busy']:.3f}",
            f"{middle['us']:.2f}",
            f"{middle['floor']:.3f}" if point.streams else "-",
            f"{middle['ratio']:.2f}" if point.streams else "-",
            f"{middle['late']:.3f}",
            f"{middle['server']:.3f}",
            f"{sum(not run['invalid'] for run in runs)}/{len(runs)}",
        )
        print(" ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)), flush=True)
    for cause in causes:
        print(f"INVALID  {cause}")


if __name__ == "__main__":
    main()
