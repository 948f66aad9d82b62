"""The simulated server: what it answers, when, and how it fails when told to."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_inferperf.errors import EngineError
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread

QUICK = {"ttft_ms": 0.0, "itl_ms": 0.0}
IDS = {"prompt": [5, 6, 7], "max_tokens": 6}
CHAT = {"messages": [{"role": "user", "content": "two words"}], "max_tokens": 6}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


class Client:
    def __init__(self, server: SimulatedServer) -> None:
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=20)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        text = body if isinstance(body, bytes) or body is None else json.dumps(body)
        self.connection.request("GET" if body is None else "POST", path, text)
        response = self.connection.getresponse()
        return response.status, response.read()

    def value(self, path: str, body: Any = None) -> Any:
        status, data = self.ask(path, body)
        assert status == 200, data
        return json.loads(data)

    def events(self, path: str, body: Any) -> list[Any]:
        status, data = self.ask(path, {**body, **STREAM})
        assert status == 200, data
        rows = data.decode().split("\n\n")
        assert rows[-2:] == ["data: [DONE]", ""]
        return [json.loads(row.removeprefix("data: ")) for row in rows[:-2]]


@contextmanager
def client(**options: Any) -> Iterator[Client]:
    with serve_in_thread(Behaviour(**{**QUICK, **options})) as server:
        found = Client(server)
        try:
            yield found
        finally:
            found.connection.close()


def text_of(events: list[Any]) -> str:
    choices = [item["choices"][0] for item in events if item["choices"]]
    return "".join(item.get("text", "") or item.get("delta", {}).get("content", "") for item in choices)


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", IDS), ("/v1/chat/completions", CHAT)])
def test_streams_and_whole_answers_say_the_same(path: str, body: dict[str, Any]) -> None:
    with client() as it:
        whole = it.value(path, body)
        events = it.events(path, body)
        again = it.value(path, body)
    choice = whole["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert text_of(events) == text == again["choices"][0].get("text", text)
    assert len(text.split()) == 6
    assert events[-1]["usage"] == whole["usage"]
    assert whole["usage"] == {
        "prompt_tokens": 3 if "prompt" in body else 2,
        "completion_tokens": 6,
        "total_tokens": 9 if "prompt" in body else 8,
    }
    assert [item["choices"][0]["finish_reason"] for item in events[:-1]][-1] == "length"


def test_the_prompt_decides_the_answer() -> None:
    with client() as it:
        texts = {it.value("/v1/completions", {"prompt": [n], "max_tokens": 4})["choices"][0]["text"] for n in range(20)}
    assert len(texts) > 10


def test_token_ids() -> None:
    with client(tokens_per_chunk=4) as it:
        ask = {**IDS, "return_token_ids": True}
        whole = it.value("/v1/completions", ask)["choices"][0]["token_ids"]
        parts = [item["choices"][0].get("token_ids", []) for item in it.events("/v1/completions", ask)[:-1]]
    assert [len(part) for part in parts] == [4, 2, 0]
    assert [number for part in parts for number in part] == whole


def test_a_chat_stream_opens_with_the_role_and_may_reason() -> None:
    with client(reasoning_tokens=2) as it:
        deltas = [item["choices"][0]["delta"] for item in it.events("/v1/chat/completions", CHAT)[:-1]]
        message = it.value("/v1/chat/completions", CHAT)["choices"][0]["message"]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [next(iter(item)) for item in deltas[1:7]] == ["reasoning_content"] * 2 + ["content"] * 4
    assert "".join(item["reasoning_content"] for item in deltas[1:3]) == message["reasoning_content"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prefix_cache_knows_the_whole_blocks_of_earlier_prompts(path: str) -> None:
    words = [f"w{number}" for number in range(40)]

    def cached(it: Client, prompt: list[str]) -> int:
        text = " ".join(prompt)
        body = {"prompt": text} if path.endswith("1/completions") else {"messages": [{"role": "user", "content": text}]}
        usage = it.events(path, {**body, "max_tokens": 1})[-1]["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    with client(prefix_cache=True) as it:
        found = [cached(it, prompt) for prompt in (words, words, words[:20] + ["other"] * 20, words[1:], words[:15])]
    assert found == [0, 32, 16, 0, 0]


def test_usage_and_role_can_be_left_out() -> None:
    with client(usage=False, role_chunk=False) as it:
        events = it.events("/v1/chat/completions", CHAT)
    assert all("usage" not in item for item in events)
    assert "role" not in events[0]["choices"][0]["delta"]


def test_fewer_tokens_than_asked() -> None:
    with client(max_output_tokens=3) as it:
        assert it.events("/v1/completions", IDS)[-1]["usage"]["completion_tokens"] == 3


def test_models_health_and_unknown_paths() -> None:
    with client(model="m") as it:
        assert it.value("/v1/models")["data"][0]["id"] == "m"
        assert it.value("/health") == {}
        assert it.ask("/v1/nothing")[0] == 404
        assert it.ask("/v1/embeddings", {})[0] == 404
        assert it.ask("/v1/completions", {**IDS, "model": "other"})[0] == 404


@pytest.mark.parametrize(
    "body", [b"{", b"[]", {"prompt": 3}, {"prompt": ["a"]}, {"messages": [1]}, {**IDS, "max_tokens": -1}]
)
def test_bad_requests(body: Any) -> None:
    with client() as it:
        path = "/v1/chat/completions" if isinstance(body, dict) and "messages" in body else "/v1/completions"
        status, data = it.ask(path, body)
        assert status == 400
        assert json.loads(data)["error"]["message"]
        assert it.ask("/health")[0] == 200


def test_tokens_never_come_early() -> None:
    with client(ttft_ms=60.0, itl_ms=15.0) as it:
        start = time.perf_counter()
        it.connection.request("POST", "/v1/completions", json.dumps({**IDS, **STREAM}))
        response = it.connection.getresponse()
        times = []
        while line := response.readline():
            if b'"text":" ' in line:
                times.append(time.perf_counter() - start)
    assert len(times) == 6
    assert all(moment >= 0.060 + 0.015 * index for index, moment in enumerate(times))


def test_other_streams_slow_it_down() -> None:
    start = time.perf_counter()
    with client(itl_ms=5.0, slowdown=50.0) as slow:
        slow.events("/v1/completions", IDS)
        alone = time.perf_counter() - start
        other = http.client.HTTPConnection(slow.connection.host, slow.connection.port)
        other.request("POST", "/v1/completions", json.dumps({**IDS, **STREAM, "max_tokens": 400}))
        while not slow.value("/stats")["active"]:
            time.sleep(0.001)
        start = time.perf_counter()
        slow.events("/v1/completions", {**IDS, "max_tokens": 2})
        assert time.perf_counter() - start >= 0.005 * 51
        other.close()
    assert alone >= 0.025


@pytest.mark.parametrize(("rate", "refused"), [(0.0, 0), (0.25, 5), (0.3, 6), (1.0, 20)])
def test_errors_come_at_exactly_their_rate(rate: float, refused: int) -> None:
    with client(error_rate=rate, error_status=429) as it:
        statuses = [it.ask("/v1/completions", {**IDS, "max_tokens": 1})[0] for _ in range(20)]
        stats = it.value("/stats")
    assert statuses.count(429) == refused
    assert statuses.count(200) == 20 - refused
    assert stats["errors"] == refused


def test_malformed_events_stalls_and_disconnects() -> None:
    ask = {**IDS, **STREAM}
    with client(malformed_rate=1.0) as it:
        assert b'{"choices": [{"text": \n\n' in it.ask("/v1/completions", ask)[1]
    with client(stall_rate=1.0, stall_ms=80.0) as it:
        start = time.perf_counter()
        it.events("/v1/completions", IDS)
        assert time.perf_counter() - start >= 0.08
    with client(disconnect_rate=1.0) as it, pytest.raises((ConnectionError, http.client.IncompleteRead)):
        it.ask("/v1/completions", ask)


def test_jitter_keeps_the_tokens_in_order() -> None:
    with client(itl_ms=1.0, jitter_ms=10.0) as it:
        events = it.events("/v1/completions", IDS)
        assert text_of(events) == it.value("/v1/completions", IDS)["choices"][0]["text"]


def test_statistics() -> None:
    with client(itl_ms=2.0) as it:
        it.events("/v1/completions", IDS)
        stats = it.value("/stats?reset")
        assert stats["requests"] == 1
        assert stats["tokens"] == 6
        assert stats["peak_active"] == 1
        assert stats["active"] == 0
        assert 0 < stats["mean_active"] < 1
        assert stats["lateness_max_ms"] >= stats["lateness_mean_ms"] >= 0
        assert it.value("/stats")["requests"] == 0


def test_a_request_that_comes_in_pieces() -> None:
    with serve_in_thread(Behaviour(ttft_ms=0.0, itl_ms=0.0)) as server:
        body = json.dumps(IDS).encode()
        data = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            for position in range(0, len(data), 20):
                sock.sendall(data[position : position + 20])
                time.sleep(0.001)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
            sock.sendall(data + data)
            found = b""
            while found.count(b"HTTP/1.1 200 OK") < 2:
                found += sock.recv(65536)


def test_no_http() -> None:
    with serve_in_thread(Behaviour()) as server:
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            sock.sendall(b"x" * 70000)
            assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_port_that_is_taken() -> None:
    with (
        serve_in_thread(Behaviour()) as server,
        pytest.raises(EngineError, match=f"^cannot listen on 127.0.0.1 port {server.port}: "),
    ):
        SimulatedServer(Behaviour(), port=server.port)
