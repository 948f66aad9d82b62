"""What others say is cut after its secrets are hidden: a key across the border would leave half of itself otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.cluster import driver, host
from pytest_inferperf.cluster.place import lines_of
from pytest_inferperf.engines import wire
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.log_tail import log_tail
from pytest_inferperf.engines.openai.http import HttpError, ResponseReader
from pytest_inferperf.engines.openai.sse import StreamError, decode_stream
from pytest_inferperf.engines.servers.process import ManagedServer, free_port
from pytest_inferperf.errors import EngineError, InvalidRun
from pytest_inferperf.hiding import HIDDEN, excerpt
from pytest_inferperf.measure.load.generator import LoadPlan, run_load
from pytest_inferperf.measure.load.honesty import ask_alone
from pytest_inferperf.measure.load.outputs import Output
from tests.engines.openai.test_engine import connect, replying
from tests.measure.load.conftest import Peer, endpoint, plain, scripted

KEY = "correct-horse-battery-staple-correct-horse"
HALF = KEY[: len(KEY) // 2]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose variable is not called one, and that looks like none: only who named the variable knows."""
    monkeypatch.setenv("OUR_LOGIN", KEY)
    endpoint(1, api_key_env="OUR_LOGIN")


def across(border: int) -> str:
    """Return a text with a key in which half of it stands before `border`."""
    return f"{'x' * (border - len(HALF) - 1)} {KEY} is wrong"


def refusing(status: bytes, body: str) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        for _ in peer.requests():
            peer.send(plain(status, body.encode()))

    return script


def check(message: str) -> None:
    assert HIDDEN[:4] in message
    assert KEY[:4] not in message


@pytest.mark.parametrize("kind", [str, str.encode])
def test_an_excerpt_is_hidden_before_it_is_cut(kind: Callable[[str], Any]) -> None:
    assert excerpt(kind(across(60)), 60) == f"{'x' * (60 - len(HALF) - 1)} {HIDDEN} is wrong"
    assert excerpt(kind("plain words"), 5) == "plain"


def test_bytes_that_are_no_utf8_are_shown() -> None:
    assert excerpt(b"a \xff b", 60) == "a \\xff b"


def test_in_a_refusal_of_an_endpoint() -> None:
    # JSON begins with a quote.
    with replying(lambda _: (401, across(199))) as url, pytest.raises(EngineError, match="HTTP 401") as caught:
        connect(url)
    check(str(caught.value))


def test_in_an_answer_of_an_endpoint() -> None:
    def reply(asked: dict[str, Any]) -> tuple[int, Any]:
        return (500, across(199)) if asked["stream"] else (200, {"choices": [{"text": "a"}]})

    with replying(reply) as url:
        engine = connect(url)
        with pytest.raises(EngineError, match="HTTP 500") as caught:
            engine.generate([GenerationRequest(prompt=(1,), max_tokens=1)], concurrency=1)
    check(str(caught.value))


def test_in_the_example_of_a_failed_load() -> None:
    with scripted(refusing(b"401 No", across(200))) as port:
        target = endpoint(port, api_key_env="OUR_LOGIN")
        run = run_load(target, LoadPlan(num_requests=2, osl=2, concurrency=1), lambda _: target.body([1], osl=2))
    assert run.failures["http_401"].count == 2
    check(run.failures["http_401"].example)


@pytest.mark.parametrize(("status", "border"), [(b"401 No", 200), (b"200 OK", 120)], ids=["refused", "no-api"])
def test_in_an_answer_that_is_asked_again(status: bytes, border: int) -> None:
    output = Output(body=b'{"max_tokens": 2}', text=" a b", first=" a", tokens=2, finish_reason="length")
    with scripted(refusing(status, across(border))) as port, pytest.raises(InvalidRun) as caught:
        ask_alone(endpoint(port), [output])
    check(str(caught.value))


@pytest.mark.parametrize(
    ("data", "border"),
    [
        ('data: {"error": "%s"}\n\n', 190),
        ('data: "%s"\n\n', 59),
        ("data: {%s\n\n", 59),
    ],
)
def test_in_an_event_of_a_stream(data: str, border: int) -> None:
    with pytest.raises(StreamError) as caught:
        decode_stream([(data % across(border)).encode()], [1.0])
    check(str(caught.value))


@pytest.mark.parametrize("head", ["%s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n"], ids=["status", "header"])
def test_in_the_head_of_a_response(head: str) -> None:
    text = f"{'HTTP/1.1 NO ' if head.startswith('%') else ''}{across(48)}"
    with pytest.raises(HttpError) as caught:
        ResponseReader().feed((head % text).encode(), 1.0)
    check(str(caught.value))


def test_in_what_an_engine_writes() -> None:
    with pytest.raises(EngineError, match="not a message") as caught:
        wire.decode_frame(across(60).encode())
    check(str(caught.value))


def test_in_a_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"first\n{across(400)}\n")
    check(log_tail(log))


@pytest.mark.parametrize("cut", range(1, len(KEY), 8))
def test_in_the_line_where_the_end_of_a_log_begins(tmp_path: Path, cut: int) -> None:
    """What is read of a long log begins in the middle of a line, which may be the middle of a key."""
    rest = f"{KEY[cut:]} is wrong\n"
    log = tmp_path / "server.log"
    log.write_text(f"{'x' * 99}{KEY} is wrong\n{'y' * ((1 << 16) - len(rest) - 5)}\nend\n")
    found = log_tail(log)
    assert "wrong" not in found
    assert found.endswith("\n  end")


def test_in_a_long_log_of_one_line_that_begins_in_a_long_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account of a cloud is one line of thousands of characters."""
    monkeypatch.setenv("OUR_LOGIN", KEY * 100)
    log = tmp_path / "server.log"
    log.write_text((KEY * 100).ljust((1 << 16) + 100, "x"))
    found = log_tail(log)
    assert KEY[:4] not in found
    assert found.endswith("x" * 400)


def test_a_long_log_of_one_line_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("x" * (1 << 17))
    assert log_tail(log) == f"Last lines of {log}:\n  {'x' * 400}"


def test_in_the_log_of_a_server_that_dies(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Last lines of") as caught:
        ManagedServer(
            ["sh", "-c", f"echo '{across(400)}'; exit 3"],
            what="server toy",
            ready_url=f"http://127.0.0.1:{free_port()}/",
            log_dir=tmp_path,
        )
    check(str(caught.value))


def test_in_the_errors_of_a_node_which_alone_knows_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        def __init__(self, **_: object) -> None:
            pass

        def call(self, *_: object, **__: object) -> str:
            raise EngineError(f"HTTP 401: {KEY} is wrong")

    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(host, "WorkerProcess", Worker)
    talk = host._Talk(what="x", python="", lease=None)
    talk.begin({"name": "ask", "args": {}, "timeout_s": 60, "stream": False})
    ((kind, error),) = map(json.loads, talk.more(60))
    assert (kind, error["message"]) == ("error", f"HTTP 401: {HIDDEN} is wrong")


def test_in_the_first_line_of_what_ray_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNING_KEY", f"{HALF}\n{KEY}")
    assert lines_of(ConnectionError(f"no {HALF}\n{KEY}")) == [f"no {HIDDEN}"]


def test_in_the_last_words_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence is what is quoted of them."""
    monkeypatch.setenv("SIGNING_KEY", "correct horse. Battery staple")
    (tmp_path / "ray.py").write_text(
        "import os, sys\n\ndef init():\n    print('no cluster for', os.environ['SIGNING_KEY'], file=sys.stderr, flush=True)\n"
        "    os._exit(1)\n"
    )
    with pytest.raises(Exception, match="no cluster for") as caught:
        driver.Driver(environment={"PYTHONPATH": str(tmp_path)})
    assert str(caught.value) == f"no cluster for {HIDDEN}"
