"""The load generator: what it sends, what it measures, and every way in which a server can fail it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.arrivals import Arrivals
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP
from pytest_inferperf.measure.load.summary import check_load, summarise_load
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.conftest import (
    HEAD,
    Peer,
    Script,
    answer,
    chunked,
    endpoint,
    load,
    plain,
    scripted,
    simulated,
    tokens,
)

CERTIFICATE = Path(__file__).with_name("localhost.pem")


class Same:
    """The same body for every request."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __call__(self, index: int) -> bytes:
        return self.body


def causes(run: LoadRun) -> dict[str, int]:
    return {cause: failure.count for cause, failure in run.failures.items()}


def round_of(run: LoadRun) -> dict[str, float]:
    return dict(summarise_load(run, isl=2, check=False).metrics)


# What is sent and counted.


def test_closed_loop_measures_what_was_asked_between_warmup_and_fillers() -> None:
    with simulated() as it:
        run = load(it, concurrency=4, num_requests=20)
    kinds = list(run.records.kind)
    assert not run.failures
    assert kinds.count(WARMUP) == run.warmup == 4
    assert kinds.count(MEASURED) == 20
    assert run.fillers >= run.cut
    assert kinds.count(FILLER) == run.fillers - run.cut
    assert run.count_sources == {"usage": 20}
    assert 0 < run.held <= 4
    result = summarise_load(run, isl=9, check=False)
    assert (result.num_requests, result.num_failed_requests) == (20, 0)
    assert (result.input_tokens, result.output_tokens) == (40, 80)


def test_rates_are_of_the_window() -> None:
    """One stream: nothing overlaps, so requests per second is one over the mean cycle."""
    with simulated(ttft_ms=20.0, itl_ms=2.0) as it:
        run = load(it, num_requests=5)
    found = round_of(run)
    assert (run.window_requests, run.window_tokens) == pytest.approx((5, 20))
    assert found["request_throughput"] == pytest.approx(5 / (run.stop - run.start))
    assert found["output_throughput"] == pytest.approx(20 / (run.stop - run.start))
    assert found["request_throughput"] <= 1 / 0.026
    assert found["ttft_ms.mean"] >= 20
    assert found["itl_ms.mean"] == pytest.approx(found["tpot_ms.mean"])
    rows = run.records.columns()
    tpot_s = ((rows["last"] - rows["first"]) / (rows["tokens"] - rows["first_tokens"]))[rows["kind"] == MEASURED]
    # Tokens that a late server sent all at once have no speed.
    assert found["output_throughput_per_user"] == pytest.approx((1 / tpot_s[tpot_s > 0]).mean())


@pytest.mark.parametrize("requests", [16, 128])
def test_rates_agree_with_latencies_however_short_the_run(requests: int) -> None:
    """Little's law: what is in flight is the rate times the latency. Jitter keeps the streams from moving in step."""
    with simulated(ttft_ms=30.0, itl_ms=3.0, jitter_ms=40.0) as it:
        runs = [load(it, num_requests=requests, concurrency=8, osl=8) for _ in range(4)]
    found = [round_of(run) for run in runs]
    ratios = [
        item["request_throughput"] * item["e2e_latency_ms.mean"] / 1000 / run.held
        for item, run in zip(found, runs, strict=True)
    ]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.1)
    assert all(item["output_throughput"] == pytest.approx(8 * item["request_throughput"]) for item in found)


def test_one_request_and_more_places_than_requests() -> None:
    with simulated() as it:
        assert load(it, num_requests=1, concurrency=1).window_requests == pytest.approx(1)
        run = load(it, num_requests=1, concurrency=8)
    assert list(run.records.kind).count(MEASURED) == 1
    assert run.stop > run.start


def test_four_tokens_per_chunk() -> None:
    with simulated(tokens_per_chunk=4, ttft_ms=10.0, itl_ms=5.0) as it:
        run = load(it, osl=16)
    found = round_of(run)
    assert summarise_load(run, isl=2, check=False).output_tokens == 4 * 16
    assert found["tpot_ms.mean"] >= 5 * 0.9
    assert found["itl_ms.mean"] == pytest.approx(found["tpot_ms.mean"])
    assert found["chunk_gap_ms.mean"] == pytest.approx(4 * found["itl_ms.mean"])
    assert len(run.itl_ms) == 4 * 12
    assert len(run.chunk_gap_ms) == 4 * 3


def test_a_role_chunk_is_no_first_token() -> None:
    with simulated(ttft_ms=40.0) as it:
        run = load(replace(it, chat=True))
    assert not run.failures
    assert round_of(run)["ttft_ms.p50"] >= 40


def test_reasoning_counts() -> None:
    with simulated(ttft_ms=20.0, itl_ms=10.0, reasoning_tokens=3) as it:
        run = load(replace(it, chat=True))
    assert summarise_load(run, isl=2, check=False).output_tokens == 16
    assert round_of(run)["ttft_ms.p50"] < 40 + round_of(run)["itl_ms.p99"]


def test_missing_usage() -> None:
    with simulated(usage=False) as it:
        run = load(it)
        assert run.count_sources == {"chunks": 4}
    with simulated(usage=False, tokens_per_chunk=2) as it:
        assert causes(load(it)) == {"osl": 4}
        plan = LoadPlan(num_requests=4, osl=4, concurrency=1)
        body = it.body([1], osl=4)
        counted = run_load(it, plan, lambda index: body, count_tokens=lambda text: len(text.split()))
    assert (counted.count_sources, counted.failures) == ({"tokenizer": 4}, {})


def test_open_loop_counts_from_the_planned_time() -> None:
    """A stall of the server must show in the latency of every request that was due meanwhile."""

    def script(peer: Peer) -> None:
        for number in peer.requests():
            if peer.number == 0 and number == 0:
                time.sleep(0.05)
            with lock:
                peer.send(answer(4))

    lock = threading.Lock()
    with scripted(script) as port:
        lock.acquire()
        threading.Timer(0.4, lock.release).start()
        run = load(endpoint(port), arrivals=Arrivals(rate=50.0, kind="constant"), num_requests=5)
    rows = run.records.columns()
    assert run.warmup >= 15
    assert run.clock.lateness is not None
    stalled = (rows["first"] - rows["intended"])[rows["kind"] == WARMUP]
    assert stalled.max() >= 0.25
    # Due every 20 ms and answered at one moment: the latencies are a ladder, not one long and many short ones.
    assert (stalled > 0.1).sum() >= 10


def test_open_loop_sends_at_the_rate() -> None:
    with simulated() as it:
        run = load(it, arrivals=Arrivals(rate=200.0, kind="constant"), num_requests=40)
    rows = run.records.columns()
    planned = sorted(rows["intended"].tolist())
    assert [after - before for before, after in itertools.pairwise(planned)] == pytest.approx(
        [0.005] * (len(planned) - 1), abs=1e-6
    )
    assert (rows["sent"] >= rows["intended"]).all()
    assert (rows["kind"] == MEASURED).sum() == 40


def test_a_client_that_runs_late_does_not_call_the_answers_late() -> None:
    """The process stands still while the answers come; the kernel's times must be the ones that count."""
    with simulated(ttft_ms=30.0, itl_ms=0.0) as it:
        plan = LoadPlan(num_requests=8, osl=4, concurrency=2)
        same = it.body([1], osl=4)

        def body(index: int) -> bytes:
            # 150 ms of other work for each request after those written ahead, as a starved process sees it.
            time.sleep(0.15 if index > 64 else 0)
            return same

        run = run_load(it, plan, body)
    assert run.clock.wait is not None
    if run.clock.wait_source == "kernel":
        assert run.clock.wait.max_ms >= 50
        assert round_of(run)["ttft_ms.p50"] < 100
    assert "requests were in flight in the mean, where 2 were asked for" in check_load(run) or "client" in check_load(
        run
    )


# Connections.


def test_connections_are_kept() -> None:
    seen: list[int] = []

    def script(peer: Peer) -> None:
        for _ in peer.requests():
            seen.append(peer.number)
            peer.send(answer(4))

    with scripted(script) as port:
        run = load(endpoint(port), num_requests=10, concurrency=2)
    assert len(seen) >= 10
    # On a busy machine the first may have answered everything before the other one's thread was run.
    assert set(seen) <= {0, 1}
    assert not run.reconnects


@pytest.mark.parametrize("header", [b"Connection: close", b"X: y"])
def test_a_server_that_closes_after_each_answer(header: bytes) -> None:
    def script(peer: Peer) -> None:
        if peer.request():
            peer.send(answer(4).replace(b"Transfer", header + b"\r\nTransfer", 1))

    with scripted(script) as port:
        run = load(endpoint(port), num_requests=5)
    assert not run.failures
    assert run.reconnects >= 5


def test_an_answer_that_ends_with_the_connection() -> None:
    def script(peer: Peer) -> None:
        if peer.request():
            peer.send(b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(tokens(4)) + b"data: [DONE]\n\n")

    with scripted(script) as port:
        run = load(endpoint(port))
    assert not run.failures
    assert run.count_sources == {"chunks": 4}


def test_a_server_that_restarts_in_mid_run() -> None:
    """What was under way is lost and counted; then it goes on."""

    def script(peer: Peer) -> None:
        for number in peer.requests():
            if peer.number == 0 and number == 3:
                peer.send(HEAD + chunked(*tokens(2)))
                peer.reset()
                return
            peer.send(answer(4))

    with scripted(script) as port:
        run = load(endpoint(port), num_requests=8)
    assert sum(causes(run).values()) == 1
    assert set(causes(run)) <= {"reset", "closed"}
    assert "1 of 8 requests failed, where none may" in check_load(run)


def test_a_server_that_dies_in_mid_run() -> None:
    """Nothing hangs: what is left fails at once, each request under its cause."""
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0)) as server:
        threading.Timer(0.3, server.stop).start()
        run = load(endpoint(server.port), num_requests=2000, concurrency=4)
    assert len(run.records) >= 2000
    assert set(causes(run)) <= {"refused", "reset", "closed"}
    assert 0 < causes(run)["refused"] < 2000
    assert "of 2000 requests failed, where none may: " in check_load(run)
    # Those that got no connection were due when they failed, on the clock of all others: a row of 0 would move them all.
    assert min(run.records.intended) > 0


def test_many_streams() -> None:
    with simulated(ttft_ms=200.0, itl_ms=50.0) as it:
        run = load(it, num_requests=500, concurrency=1000, osl=2)
    assert not run.failures
    assert run.warmup == 1000


# Faults: each is counted under its cause, and no figure comes of it.


def hang(peer: Peer) -> None:
    peer.request()
    peer.request()


def endless(peer: Peer) -> None:
    peer.request()
    peer.send(HEAD)
    with suppress(OSError):
        while True:
            peer.send(chunked(*tokens(1)))
            time.sleep(0.02)


def slow_head(peer: Peer) -> None:
    peer.request()
    with suppress(OSError):
        for at in range(len(HEAD)):
            peer.send(HEAD[at : at + 1])
            time.sleep(0.05)


def always(data: bytes, *, then: Callable[[Peer], None] | None = None) -> Script:
    def script(peer: Peer) -> None:
        for _ in peer.requests():
            peer.send(data)
            if then is not None:
                then(peer)
                return

    return script


def nothing(peer: Peer) -> None:
    peer.request()


HTML = plain(b"200 OK", b"<html>hello</html>", b"Content-Type: text/html")
CUT = HEAD + chunked(*tokens(2))


@pytest.mark.parametrize(
    ("script", "cause", "detail"),
    [
        (always(plain(b"500 Oh", b'{"error": "boom"}')), "http_500", 'HTTP 500: {"error": "boom"}'),
        (always(plain(b"429 Slow", b"later")), "http_429", "HTTP 429: later"),
        (always(plain(b"401 No", b"key?")), "http_401", "HTTP 401: key?"),
        (always(plain(b"404 No", b"")), "http_404", "HTTP 404"),
        (always(HTML), "not_openai", "the answer is text/html, not an event stream"),
        (always(plain(b"200 OK", b'{"choices": []}')), "not_openai", "not an event stream"),
        (always(b"SSH-2.0-server\r\n\r\n"), "malformed", "not an HTTP/1.1 response"),
        (always(CUT, then=Peer.reset), "reset", "the connection broke (Connection reset by peer)"),
        (always(CUT, then=lambda peer: None), "closed", "the server closed the connection after"),
        (nothing, "closed", "the server closed the connection before it answered"),
        (always(CUT + b"0\r\n\r\n"), "truncated", "without a finish reason and without [DONE]"),
        (always(HEAD + chunked(b"data: {oh\n\n") + b"0\r\n\r\n"), "malformed", "an event is not JSON"),
        (always(HEAD + chunked(b'data: {"choices":[{"text":"\xff"}]}\n\n') + b"0\r\n\r\n"), "malformed", "not JSON"),
        (always(answer(3)), "osl", "3 tokens came where 4 were asked for"),
        (always(answer(4, said=3)), "usage", "usage counts 3 tokens where 4 chunks carried text"),
        (always(answer(4, said=9)), "osl", "9 tokens came where 4 were asked for"),
        (hang, "timeout", "no complete answer within 0.5 s; no status had come"),
        (slow_head, "timeout", "no complete answer within 0.5 s; no status had come"),
        (endless, "timeout", "no complete answer within 0.5 s;"),
    ],
)
def test_faults(script: Script, cause: str, detail: str) -> None:
    with scripted(script) as port:
        run = load(endpoint(port), num_requests=2, timeout_s=0.5 if cause == "timeout" else 20.0)
    assert causes(run) == {cause: 2}
    assert detail in run.failures[cause].example
    invalid = check_load(run)
    assert invalid.startswith("no request had success: 2 x " + cause)
    assert not {"ttft_ms.mean", "goodput"} & set(round_of(run))


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [({"malformed_rate": 0.5}, "malformed"), ({"disconnect_rate": 0.5}, "reset"), ({"error_rate": 0.5}, "http_503")],
)
def test_faults_of_some(behaviour: dict[str, Any], cause: str) -> None:
    with simulated(**behaviour) as it:
        run = load(it, num_requests=10)
    assert causes(run) == {cause: 5}
    assert check_load(run).startswith(f"5 of 10 requests failed, where none may: 5 x {cause} (")
    assert "failed" not in check_load(run, max_failed_share=0.5)
    assert "where 40 % may" in check_load(run, max_failed_share=0.4)


def test_retries_are_counted_and_are_part_of_the_latency() -> None:
    def script(peer: Peer) -> None:
        for number in peer.requests():
            peer.send(answer(4) if number % 2 else plain(b"503 Busy", b"", b"Retry-After: 0"))

    with scripted(script) as port:
        assert causes(load(endpoint(port), num_requests=4))["http_503"] == 2
        run = load(endpoint(port), num_requests=4, retries=1)
    assert not run.failures
    assert run.retries >= 4
    with simulated(error_rate=0.5, error_status=429, ttft_ms=1.0, itl_ms=0.0) as it:
        slow = load(it, num_requests=4, retries=3)
    assert not slow.failures
    assert round_of(slow)["ttft_ms.mean"] >= 100
    with simulated(error_rate=1.0) as it:
        assert causes(load(it, num_requests=1, retries=1)) == {"http_503": 1}


# What ends a run before it starts.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_connection_refused() -> None:
    port = free_port()
    message = rf"^http://127.0.0.1:{port}/v1/completions: cannot connect: Connection refused. Is the server running\?$"
    with pytest.raises(EngineError, match=message):
        load(endpoint(port))


def test_dns() -> None:
    with pytest.raises(EngineError, match="cannot be resolved"):
        load(Endpoint.parse("http://no-such-host.invalid", model="m"))


def test_more_connections_than_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(EngineError, match=rf"^{hard} connections need {hard + 64} open files.*limit .* is {hard}\."):
        load(endpoint(9), concurrency=hard)


def test_the_soft_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 5000)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, value: limits.append(value))
    with simulated() as it:
        load(it, concurrency=200, num_requests=1)
    assert limits[-1] == (5000, 5000)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"concurrency": 0}, "give either a concurrency (closed loop) or a request rate (open loop)."),
        ({"arrivals": Arrivals(rate=1.0), "concurrency": 2}, "give either a concurrency"),
        ({"num_requests": 0}, "num_requests 0: must be at least 1."),
        ({"osl": 0}, "osl 0: must be at least 1."),
        ({"timeout_s": 0.0}, "timeout 0 s: must be above 0."),
        ({"retries": -1}, "retries -1: must be at least 0."),
    ],
)
def test_plans_that_are_none(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as found:
        LoadPlan(**{"num_requests": 1, "osl": 1, "concurrency": 1, **options})
    assert str(found.value).startswith(problem)


# TLS.


def tls(sock: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context.wrap_socket(sock, server_side=True)


def test_https() -> None:
    with scripted(always(answer(4)), wrap=tls) as port:
        target = Endpoint.parse(f"https://localhost:{port}", model="m", ca_file=str(CERTIFICATE))
        run = load(target, num_requests=6, concurrency=2)
    assert not run.failures
    assert summarise_load(run, isl=2, check=False).output_tokens == 24


def test_a_certificate_that_nobody_signed() -> None:
    with scripted(always(answer(4)), wrap=tls) as port:
        target = Endpoint.parse(f"https://localhost:{port}", model="m")
        with pytest.raises(EngineError, match=r"cannot connect: TLS: self.signed certificate"):
            load(target)
        named = Endpoint.parse(f"https://127.0.0.2:{port}", model="m", ca_file=str(CERTIFICATE))
        with pytest.raises(EngineError, match=r"cannot connect: (TLS: IP address mismatch|Connection refused)"):
            load(named)


def test_a_server_without_tls() -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(65536)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    scripts: list[Script] = [script, lambda peer: None]
    for found in scripts:
        with scripted(found) as port, pytest.raises(EngineError, match="cannot connect: TLS: "):
            load(Endpoint.parse(f"https://127.0.0.1:{port}", model="m"))


def test_large_requests_and_slow_readers() -> None:
    """A request that the socket does not take at once is sent on when it can be."""

    def script(peer: Peer) -> None:
        for _ in peer.requests():
            peer.send(answer(4))

    for wrap in (None, tls):
        with scripted(script, wrap=wrap) as port:
            scheme = "http" if wrap is None else "https"
            target = Endpoint.parse(f"{scheme}://localhost:{port}", model="m", ca_file=str(CERTIFICATE))
            plan = LoadPlan(num_requests=2, osl=4, concurrency=2, timeout_s=20)
            bodies = Same(target.body("word " * 1_000_000, osl=4))
            assert not run_load(target, plan, bodies).failures


# Ctrl-C.


def test_ctrl_c_keeps_what_was_measured() -> None:
    before = signal.getsignal(signal.SIGINT)
    with simulated(ttft_ms=5.0) as it:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        run = load(it, num_requests=100_000)
    assert run.interrupted
    assert 0 < list(run.records.kind).count(MEASURED) < 100_000
    assert check_load(run).startswith("interrupted after ")
    assert round_of(run)["ttft_ms.p50"] >= 5
    assert signal.getsignal(signal.SIGINT) == before
