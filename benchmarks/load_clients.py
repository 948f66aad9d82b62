"""Our load generator and its peers, side by side on the same server with known truth.

Run `python benchmarks/load_clients.py --peer aiperf=/path/to/venv/bin/aiperf` on an idle machine. Peers are those on the
PATH and those that `--peer NAME=PROGRAM` names, each best in an environment of its own; nothing is installed. Clients take
turns, each on a fresh simulated server in a process of its own. Errors are of the client's own figures against the truth;
what was held and sustained is counted by the server, between the first and the last quarter of the requests, by the same
rule for every client. CPU time and memory are of the client with all its processes, start-up included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.process import read_stats, serve_in_process

ISL = 128
TIMEOUT_S = 900
SAMPLE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, and the times of the server that answers."""

    name: str
    streams: int
    requests: int
    osl: int = 64
    ttft_ms: float = 200.0
    itl_ms: float = 20.0


LOADS = (
    Load(name="1", streams=1, requests=8),
    Load(name="32", streams=32, requests=128),
    Load(name="256", streams=256, requests=1024),
    Load(name="1024", streams=1024, requests=4096),
    Load(name="requests", streams=256, requests=20_000, osl=1, ttft_ms=0, itl_ms=0),
    Load(name="tokens", streams=256, requests=5000, ttft_ms=0, itl_ms=0),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where one run of a client finds what it needs."""

    program: str
    url: str
    load: Load
    tokenizer: Path
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Client:
    """How a client is called, and where it writes mean and p99 of TTFT and ITL, milliseconds."""

    command: Callable[[Run], Sequence[str]]
    read: Callable[[Path], Mapping[str, float]]
    environment: Mapping[str, str] = field(default_factory=dict)


def ours_command(run: Run) -> Sequence[str]:
    load = run.load
    return (
        *(run.program, "measure", "--url", run.url, "--model", "simulated", "--isl", str(ISL), "--osl", str(load.osl)),
        *("--concurrency", str(load.streams), "--num-requests", str(load.requests)),
        # No peer looks at the answers.
        *("--compare", "0", "--json", str(run.folder / "x.json")),
    )


def ours_figures(folder: Path) -> Mapping[str, float]:
    document = json.loads((folder / "x.json").read_text())
    if document["invalid"]:
        raise ValueError(f"INVALID: {document['invalid']}")
    names = {"ttft": "ttft_ms.mean", "ttft_p99": "ttft_ms.p99", "itl": "itl_ms.mean", "itl_p99": "itl_ms.p99"}
    return {short: document["metrics"][name] for short, name in names.items() if name in document["metrics"]}


def aiperf_command(run: Run) -> Sequence[str]:
    load = run.load
    return (
        *(run.program, "profile", "-m", "simulated", "--url", run.url, "--endpoint-type", "completions", "--streaming"),
        *("--tokenizer", str(run.tokenizer), "--concurrency", str(load.streams), "--request-count", str(load.requests)),
        *("--warmup-request-count", str(load.streams), "--synthetic-input-tokens-mean", str(ISL)),
        *("--output-tokens-mean", str(load.osl), "--extra-inputs", "ignore_eos:true"),
        *(
            "--extra-inputs",
            f"min_tokens:{load.osl}",
            "--artifact-dir",
            str(run.folder),
            "--use-server-token-count",
            "--ui",
            "none",
        ),
    )


def aiperf_figures(folder: Path) -> Mapping[str, float]:
    document = json.loads((folder / "profile_export_aiperf.json").read_text())
    found: dict[str, float] = {}
    for short, name in (("ttft", "time_to_first_token"), ("itl", "inter_token_latency")):
        if name in document:
            found |= {short: document[name]["avg"], f"{short}_p99": document[name]["p99"]}
    return found


def inference_perf_command(run: Run) -> Sequence[str]:
    load = run.load
    isl, osl = ({"type": "fixed", "min": size, "max": size, "mean": size} for size in (ISL, load.osl))
    settings = {
        "load": {"type": "concurrent", "stages": [{"num_requests": load.requests, "concurrency_level": load.streams}]},
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": "simulated", "base_url": run.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(run.tokenizer)},
        "data": {"type": "random", "input_distribution": isl, "output_distribution": osl},
        "storage": {"local_storage": {"path": str(run.folder)}},
    }
    # YAML takes JSON.
    path = run.folder / "settings.yml"
    path.write_text(json.dumps(settings))
    return run.program, "--config_file", str(path)


def inference_perf_figures(folder: Path) -> Mapping[str, float]:
    latency = json.loads((folder / "summary_lifecycle_metrics.json").read_text())["successes"]["latency"]
    found: dict[str, float] = {}
    for short, name in (("ttft", "time_to_first_token"), ("itl", "inter_token_latency")):
        if latency.get(name):
            found |= {short: 1000 * latency[name]["mean"], f"{short}_p99": 1000 * latency[name]["p99"]}
    return found


def sglang_command(run: Run) -> Sequence[str]:
    load = run.load
    return (
        *(run.program, "--backend", "sglang-oai", "--base-url", run.url, "--model", "simulated", "--seed", "1"),
        *("--tokenizer", str(run.tokenizer), "--dataset-name", "random-ids", "--random-range-ratio", "1.0"),
        *("--random-input-len", str(ISL), "--random-output-len", str(load.osl), "--num-prompts", str(load.requests)),
        *("--max-concurrency", str(load.streams), "--warmup-requests", "0", "--disable-tqdm"),
        *("--output-file", str(run.folder / "x.jsonl")),
    )


def sglang_figures(folder: Path) -> Mapping[str, float]:
    document = json.loads((folder / "x.jsonl").read_text().splitlines()[-1])
    return {
        f"{short}{suffix}": document[f"{statistic}_{short}_ms"]
        for short in ("ttft", "itl")
        for suffix, statistic in (("", "mean"), ("_p99", "p99"))
    }


CLIENTS = {
    "inferperf": Client(command=ours_command, read=ours_figures),
    "aiperf": Client(command=aiperf_command, read=aiperf_figures),
    "inference-perf": Client(command=inference_perf_command, read=inference_perf_figures),
    "sglang": Client(command=sglang_command, read=sglang_figures, environment={"HF_HUB_OFFLINE": "1"}),
}


def train_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE tokenizer in Hugging Face layout, trained here: peers count tokens with one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = (path.read_text() for path in sorted(Path(json.__file__).parents[1].glob("*.py")))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 8000}))


class Watch:
    """Samples the server's counts and the client's memory and CPU time from a thread, until stopped."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 0
        self._process = process
        self._stop = threading.Event()
        self._cpu: dict[int, float] = {}
        self._thread = threading.Thread(target=self._sample)
        self.counts: list[dict[str, float]] = []
        self.peak_bytes = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu_s(self) -> float:
        """CPU time of every process of the client that was seen."""
        return sum(self._cpu.values())

    def _sample(self) -> None:
        number = 0
        while not self._stop.wait(SAMPLE_S):
            self.counts.append(read_stats(self._host, self._port, reset=False))
            # The processes are looked at less often: on two cores that costs what is measured.
            if number % 5 == 0:
                self._look()
            number += 1

    def _look(self) -> None:
        total = 0
        try:
            processes = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                total += process.memory_info().rss
            except psutil.Error:
                continue
        self.peak_bytes = max(self.peak_bytes, total)

    def middle(self, requests: float) -> dict[str, float]:
        """Return rates and streams between the first and the last quarter of the requests. Empty without samples."""
        inside = [item for item in self.counts if requests / 4 <= item["requests"] <= 3 * requests / 4]
        if len(inside) < 2:
            return {}
        first, last = inside[0], inside[-1]
        span_s = last["since_s"] - first["since_s"]

        def active_s(item: dict[str, float]) -> float:
            return item["mean_active"] * item["since_s"]

        return {
            "held": (active_s(last) - active_s(first)) / span_s,
            "tokens_s": (last["tokens"] - first["tokens"]) / span_s,
        }


def measure(name: str, program: str, load: Load, tokenizer: Path) -> dict[str, Any]:
    """Run one client once; `cause` says why there are no figures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_in_process(Behaviour(ttft_ms=load.ttft_ms, itl_ms=load.itl_ms)) as url,
    ):
        run = Run(program=program, url=url, load=load, tokenizer=tokenizer, folder=Path(folder))
        log = Path(folder) / "log.txt"
        environment = os.environ | CLIENTS[name].environment
        begin = time.perf_counter()
        with (
            log.open("w") as output,
            subprocess.Popen(
                CLIENTS[name].command(run), stdout=output, stderr=output, start_new_session=True, env=environment
            ) as process,
        ):
            try:
                with Watch(url, psutil.Process(process.pid)) as watch:
                    status = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                status = -1
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        wall_s = time.perf_counter() - begin
        host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
        stats = read_stats(host, port, reset=False)
        found: dict[str, Any] = {"wall_s": wall_s, "peak_gib": watch.peak_bytes / 2**30, "cause": ""}
        started = [item for item in watch.counts if item["requests"]]
        if started:
            found["start_s"] = wall_s - (stats["since_s"] - started[0]["since_s"])
        if stats["tokens"]:
            found["cpu_s_per_1000"] = 1000 * watch.cpu_s / stats["tokens"]
        found |= watch.middle(load.requests)
        if "tokens_s" in found:
            # Requests come in waves; their tokens do not.
            found["requests_s"] = found["tokens_s"] / load.osl
        found["late_ms"] = stats["lateness_mean_ms"]
        try:
            found |= CLIENTS[name].read(Path(folder))
        except (OSError, ValueError, KeyError) as error:
            text = " ".join(log.read_text(errors="replace").split())[-300:]
            found["cause"] = (
                f"exit status {status}: {error}" if name == "inferperf" else f"exit status {status}: {text}"
            )
        return found


COLUMNS = (
    ("load", 9, ""),
    ("client", 15, ""),
    ("ttft mean", 10, "ttft"),
    ("p99", 9, "ttft_p99"),
    ("itl mean", 9, "itl"),
    ("p99", 8, "itl_p99"),
    ("held", 8, "held"),
    ("req/s", 9, "requests_s"),
    ("tok/s", 10, "tokens_s"),
    ("CPU s/1000 tok", 15, "cpu_s_per_1000"),
    ("wall s", 8, "wall_s"),
    ("start s", 8, "start_s"),
    ("GiB", 6, "peak_gib"),
    ("server late", 12, "late_ms"),
)


def programs(peers: Sequence[str]) -> dict[str, str]:
    """Return every client that is there, ours first."""
    found = {"inferperf": str(Path(sys.executable).parent / "inferperf")}
    found |= {name: path for name in CLIENTS if name != "inferperf" and (path := shutil.which(name))}
    for peer in peers:
        name, equals, path = peer.partition("=")
        if not equals or name not in CLIENTS or not Path(path).is_file():
            raise SystemExit(f"--peer {peer}: write NAME=PROGRAM; names: {', '.join(CLIENTS)}.")
        found[name] = path
    return found


def main() -> None:
    """Run every client on every load and print a row of medians for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PROGRAM", help="A peer's program")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each client on each load (default: 3)")
    parser.add_argument("--only", default="", help=f"Loads, with commas: {', '.join(load.name for load in LOADS)}")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the requests to send (default: 1)")
    arguments = parser.parse_args()
    clients = programs(arguments.peer)
    print(" ".join(name.rjust(width) for name, width, _ in COLUMNS))
    causes = []
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder))
        for load in LOADS:
            if arguments.only and load.name not in arguments.only.split(","):
                continue
            requests = max(4, round(arguments.share * load.requests))
            load = Load(**{**vars(load), "requests": requests})
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
            for _ in range(arguments.repeats):
                for name, program in clients.items():
                    runs[name].append(measure(name, program, load, Path(folder)))
            for name, results in runs.items():
                cells = [load.name, name]
                for _, _, key in COLUMNS[2:]:
                    values = [result[key] for result in results if key in result]
                    cells.append(f"{statistics.median(values):.3f}" if values else "-")
                print(
                    " ".join(cell.rjust(width) for cell, (_, width, _) in zip(cells, COLUMNS, strict=True)), flush=True
                )
                causes += [f"{load.name} {name}: {result['cause']}" for result in results if result["cause"]]
    for cause in causes:
        print(f"no figures  {cause}")


if __name__ == "__main__":
    main()
