"""`inferperf measure` and `inferperf simulate-server`, as they are typed."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.cli import _parser, main
from pytest_inferperf.measure import progress
from pytest_inferperf.measure.load import generator, summary
from pytest_inferperf.measure.load.clock import ClockLimits
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread

pytestmark = pytest.mark.newest

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[1]
SIZES = ("--model", "simulated", "--isl", "8", "--osl", "4")


@pytest.fixture
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide whether a run is valid here; how it is decided is tested beside `check_load`."""
    limits = ClockLimits(error_floor_ms=1e6, cpu_share=1e6)
    monkeypatch.setattr(
        summary, "check_load", functools.partial(summary.check_load, min_held_share=0.01, limits=limits)
    )


def measure(url: str, *arguments: str) -> int:
    return main(["measure", "--url", url, *SIZES, *arguments])


@pytest.mark.usefixtures("_lenient")
def test_the_clock_of_each_process(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=5.0)) as server:
        assert measure(server.url, "--concurrency", "4", "--processes", "2", "--json", str(path)) == 0
    assert re.search(r"CPU cores used by 2 processes, \d\.\d+ by one at most$", capsys.readouterr().out, re.MULTILINE)
    clock = json.loads(path.read_text())["clock"]
    assert [sorted(each) for each in clock["processes"]] == [sorted(clock.keys() - {"processes"})] * 2


@pytest.mark.usefixtures("_lenient")
def test_a_table_of_figures_and_a_file(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=5.0)) as server:
        status = measure(
            server.url, "--concurrency", "2", "--seed", "7", "--slo", "ttft_ms=9000, tpot_ms=9000", "--json", str(path)
        )
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    lines = re.sub(" +", " ", re.sub(r"\d+\.\d+", "N", out.replace(server.url, "URL"))).splitlines()
    assert lines[:9] == [
        "URL/v1/completions simulated",
        "isl 8 osl 4 concurrency 2 num_requests 8 seed 7",
        "",
        " mean p50 p90 p95 p99",
        "ttft_ms N N N N N ms",
        "tpot_ms N N N N N ms",
        "itl_ms N N N N N ms",
        "e2e_latency_ms N N N N N ms",
        "",
    ]
    assert lines[9:] == [
        "output_throughput N tok/s",
        "output_throughput_per_user N tok/s/user",
        "total_throughput N tok/s",
        "request_throughput N req/s",
        "goodput N req/s (ttft_ms <= 9000, tpot_ms <= 9000)",
        "output_agreement N share",
        "",
        lines[16],
        "in flight N of 2 in the mean over N s",
        lines[18],
        "tokens counted by usage",
        "answers 8 asked for again at concurrency 1, 8 identical",
    ]
    assert re.fullmatch(
        r"excluded 2 warm-up requests before, \d after the measured ones \(\d cut off at the end\)", lines[16]
    )
    assert re.fullmatch(
        r"clock arrivals timed .* N ms late \(p99 N\); woke N ms late \(p99 N\); N CPU cores used", lines[18]
    )
    found = json.loads(path.read_text())
    assert found["invalid"] == ""
    assert found["metrics"]["ttft_ms.p50"] >= 20
    assert found["metrics"]["goodput"] == found["metrics"]["request_throughput"]
    assert found["tokens_counted_by"] == {"usage": 8}
    assert found["agreement"] == {"prefix": 1.0, "identical": 1.0, "compared": 8}
    assert found["window"]["requests"] == pytest.approx(8, rel=0.3)


@pytest.mark.usefixtures("_lenient")
def test_open_loop_and_bursts(capsys: Capture) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=5.0, tokens_per_chunk=2)) as server:
        rate = ("--request-rate", "100", "--arrival", "gamma", "--burstiness", "0.5", "--num-requests", "10")
        assert measure(server.url, *rate) == 0
    out = capsys.readouterr().out
    assert "request_rate 100.0  arrival gamma  burstiness 0.5  num_requests 10  seed " in out
    assert "\nchunk_gap_ms " in out
    assert re.search(r"; sends \d+\.\d+ ms late \(p99 ", out)


@pytest.mark.usefixtures("_lenient")
@pytest.mark.parametrize("terminal", [True, False])
def test_how_far_it_is_shows_on_a_terminal_and_now_and_then_elsewhere(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Read fifty times a second: the run is short. Elsewhere a line comes every half a minute, which it does not last."""

    def watched(state: Callable[[], str], live: Any) -> Any:
        return progress.watched(state, live, every_s=0.02)

    monkeypatch.setattr(generator, "watched", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=5.0)) as server:
        assert measure(server.url, "--concurrency", "1", "--num-requests", "5") == 0
    out, err = capsys.readouterr()
    assert "\nttft_ms " in out
    lines = [line for line in err.split("\r") if "/5 requests, 1 in flight" in line]
    assert bool(lines) is terminal
    assert err.endswith("\r") is terminal


def test_an_invalid_run_shows_no_figure(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=1.0, itl_ms=1.0, error_rate=0.5)) as server:
        assert measure(server.url, "--concurrency", "1", "--num-requests", "6", "--json", str(path)) == 1
    out, err = capsys.readouterr()
    assert err.startswith("INVALID: 3 of 6 requests failed, where none may: 3 x http_503 (HTTP 503: {")
    assert "ttft_ms" not in out
    assert "throughput" not in out
    assert "failed     3 x http_503: HTTP 503: " in out
    found = json.loads(path.read_text())
    assert found["metrics"] == {}
    assert found["failures"]["http_503"]["count"] == 3


def interrupt_in_mid_run(server: SimulatedServer) -> None:
    while server.stats()["requests"] < 20:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_server_that_fails_always_is_said_to(capsys: Capture) -> None:
    with serve_in_thread(Behaviour(error_rate=1.0)) as server:
        assert measure(server.url, "--concurrency", "1") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"INVALID: http://\S+ answers no completion: HTTP 503: ", err)


def test_ctrl_c_before_the_run_is_no_measurement(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_inferperf.engines.openai.connecting.open_url", interrupt)
    assert measure("http://127.0.0.1:1", "--concurrency", "1") == 130
    assert capsys.readouterr().err == "inferperf: stopped before anything was measured\n"


def test_ctrl_c_shows_what_was_measured_and_marks_it(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with serve_in_thread(Behaviour(ttft_ms=2.0, itl_ms=1.0)) as server:
        threading.Thread(target=interrupt_in_mid_run, args=(server,)).start()
        assert measure(server.url, "--concurrency", "1", "--num-requests", "1000000", "--json", str(path)) == 1
    out, err = capsys.readouterr()
    assert "\nSo far, not to be judged:\n" in out
    assert "\nttft_ms " in out
    assert re.match(r"INVALID: interrupted after \d+ of 1000000 measured requests\n", err)
    found = json.loads(path.read_text())
    assert found["metrics"] == {}
    assert found["metrics_so_far"]["ttft_ms.p50"] >= 2


def test_no_server(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert measure("http://no-such-host.invalid", "--concurrency", "1", "--json", str(path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("INVALID: http://no-such-host.invalid/v1/completions: DNS: the host ")
    assert json.loads(path.read_text())["metrics"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "0"), "--concurrency 0 is below its minimum 1."),
        (
            ("--concurrency", "1", "--arrival", "gamma"),
            "--arrival 'gamma' says how requests arrive under open loop, and --request-rate is",
        ),
        (("--request-rate", "1", "--arrival", "poison"), "arrival 'poison' is unknown. Did you mean 'poisson'?"),
        (("--concurrency", "1", "--slo", "ttft_ms"), "--slo 'ttft_ms': write METRIC=MILLISECONDS, such as"),
        (("--concurrency", "1", "--slo", "ttft_ms=x"), "--slo 'ttft_ms=x': write METRIC=MILLISECONDS, such as"),
        (("--concurrency", "1", "--slo", "itl=3"), "SLO 'itl' is unknown."),
        (("--concurrency", "1", "--allow-failed", "1"), "--allow-failed 1: must be from 0 to below 1."),
        (("--concurrency", "1", "--api-key-env", "NO_SUCH_KEY"), "the environment variable NO_SUCH_KEY is not set"),
        (
            ("--concurrency", "1", "--json", "/no/such/folder/x"),
            "/no/such/folder/x: cannot be written: no such folder.",
        ),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert measure("http://no-such-host.invalid", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"inferperf: {message}")


def test_a_loop_is_needed(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as found:
        measure("http://h")
    assert found.value.code == 2
    assert "one of the arguments --concurrency --request-rate --trace is required" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_says_where_it_is_and_ends_when_told(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "pytest_inferperf.cli", "simulate-server", "--ttft-ms", "1", "--itl-ms", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready == {"url": f"http://127.0.0.1:{ready['port']}", "port": ready["port"], "model": "simulated"}
        client = subprocess.run(
            [*command[:3], "measure", "--url", ready["url"], *SIZES, "--concurrency", "1", "--num-requests", "2"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert client.returncode in (0, 1), client.stderr
    assert client.returncode == 0 or client.stderr.startswith("INVALID: ")
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("command", ["measure", "simulate-server"])
def test_help_names_every_option(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as found:
        main([command, "--help"])
    assert found.value.code == 0
    text = capsys.readouterr().out
    names = ("--slo", "--json", "exit status:") if command == "measure" else ("--host",)
    for name in names:
        assert name in text
    if command == "simulate-server":
        for item in fields(Behaviour):
            assert f"--{item.name.replace('_', '-')}" in text
            assert " ".join(item.metadata["help"].split()[:2]) in " ".join(text.split())


def test_bad_options_of_the_server(capsys: Capture) -> None:
    assert main(["simulate-server", "--error-rate", "2"]) == 2
    assert capsys.readouterr().err == "inferperf: --error-rate 2.0: must be from 0 to 1.\n"
    with serve_in_thread(Behaviour()) as server:
        assert main(["simulate-server", "--port", str(server.port)]) == 2
    assert "cannot listen on 127.0.0.1 port" in capsys.readouterr().err


def test_commands_of_the_documentation_are_understood() -> None:
    text = (ROOT / "docs" / "load.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert len(commands) >= 2
    for command in commands:
        name, *arguments = shlex.split(command, comments=True)
        assert name == "inferperf"
        _parser().parse_args(arguments)


@pytest.mark.usefixtures("_lenient")
def test_records_of_every_request(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "records.jsonl"
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=5.0)) as server:
        assert measure(server.url, "--concurrency", "2", "--records", str(path)) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["kind"] for row in rows].count("measured") == 8
    assert all(row["ttft_ms"] > 0 and row["output_tokens"] == 4 for row in rows if row["ok"])


def test_a_file_of_records_is_checked_before_anything_is_sent(capsys: Capture) -> None:
    assert measure("http://127.0.0.1:1", "--concurrency", "1", "--records", "x.csv") == 2
    assert "name it *.jsonl or *.parquet" in capsys.readouterr().err
