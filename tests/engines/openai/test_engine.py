"""An engine behind an endpoint: what it asks, how it reads answers, and what it refuses."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_inferperf.engines.devices import lease_devices
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.launch import open_engine
from pytest_inferperf.engines.openai.connecting import endpoint_hardware, open_url
from pytest_inferperf.engines.openai.engine import UNKNOWN_TOKEN, OpenAIEngine
from pytest_inferperf.engines.openai.served import ServedEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.model.case import EngineSpec, GpuRequirement, Workload
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.http_server import serving

MODEL = str(Path(__file__).parents[3] / "suites" / "embedded" / "model")
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


@contextmanager
def replying(reply: Reply) -> Iterator[str]:
    """Serve completions by `reply`, which gets the body asked and returns a status and an answer; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "model", "max_model_len": 64}]})

        def do_POST(self) -> None:
            self._send(*reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _send(self, status: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with serving(Handler) as url:
        yield url


def connect(url: str, **options: Any) -> OpenAIEngine:
    named = tuple(sorted({"request_model": "model", **options}.items()))
    return open_url(EngineSpec(model=MODEL, served_model_name="tiny", url=url, engine_options=named), timeout_s=20.0)


def test_answers_of_a_stream() -> None:
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=5.0)) as server:
        engine = open_url(EngineSpec(model="simulated", served_model_name="simulated", url=server.url), timeout_s=20.0)
        requests = [GenerationRequest(prompt=(number, 7), max_tokens=4, ignore_eos=True) for number in range(6)]
        answers = engine.generate(requests, concurrency=3)
        chunks = list(engine.stream(requests[0]))
    assert [item.prompt_tokens for item in answers] == [2] * 6
    assert all(item.finish_reason == "length" and item.text for item in answers)
    assert {item.token_ids for item in answers} == {(UNKNOWN_TOKEN,) * 4}
    assert all(0.015 < item.token_times_s[0] <= item.token_times_s[-1] for item in answers)
    # On a busy machine those of one answer may come in together, and not of every one.
    assert any(item.token_times_s[0] < item.token_times_s[-1] for item in answers)
    assert "".join(chunk.text for chunk in chunks) == answers[0].text


def test_log_probabilities_of_a_prompt() -> None:
    """Summed over the continuation; greedy where no other token is more likely."""

    def reply(asked: dict[str, Any]) -> tuple[int, Any]:
        values = [None, -1.0, -0.5, -0.25, -9.0]
        best = [None, {"a": -1.0}, {"a": -0.5}, {"a": -0.1, "b": -0.25}, {"a": -9.0}]
        count = len(asked["prompt"]) + 1
        logprobs = {"token_logprobs": values[:count], "top_logprobs": best[:count]}
        return 200, {"choices": [{"text": "", "logprobs": logprobs if asked.get("echo") else None}]}

    with replying(reply) as url:
        engine = connect(url)
        first, second = engine.loglikelihood(
            [
                LogLikelihoodRequest(context=(1,), continuation=(2, 3)),
                LogLikelihoodRequest(context=(1, 2), continuation=(3, 4)),
            ],
            concurrency=2,
        )
    assert (first.logprob, first.is_greedy) == (-1.5, True)
    assert (second.logprob, second.is_greedy) == (-0.75, False)
    assert engine.info.max_model_len == 64


@pytest.mark.parametrize(
    ("logprobs", "says"),
    [
        (None, "returns no log-probabilities"),
        ({"token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}, "it gave 1 for a prompt of 3 tokens"),
        ({"token_logprobs": [None] * 3, "top_logprobs": [None] * 3}, "some of them are missing"),
    ],
)
def test_log_probabilities_that_are_not_there(logprobs: Any, says: str) -> None:
    with replying(lambda _asked: (200, {"choices": [{"text": "", "logprobs": logprobs}]})) as url:
        engine = connect(url)
        with pytest.raises(EngineError, match=says):
            engine.loglikelihood([LogLikelihoodRequest(context=(1,), continuation=(2, 3))], concurrency=1)


def test_what_a_server_refuses_is_not_sent() -> None:
    """Text alone, and the exact length in transformers' own field: found by asking, once."""
    asked: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body)
        fine = isinstance(body["prompt"], str) and "ignore_eos" not in body
        return (200 if fine else 422), {"choices": []}

    with replying(reply) as url:
        engine = connect(url)
        serving = engine.serving
        assert serving is not None
        prompt = engine.encode(["add 12+34="])[0]
        body = json.loads(serving.body(GenerationRequest(prompt=prompt, max_tokens=3, ignore_eos=True)))
        with pytest.raises(EngineError, match="would be read as"):
            serving.body(GenerationRequest(prompt=(engine.prefix_token_id, *prompt), max_tokens=3))
        words = sorted(set(range(engine.vocab_size)) - engine.special_token_ids)
        text = json.loads(serving.body(GenerationRequest(prompt=tuple(words[:20]), max_tokens=3)))["prompt"]
    assert len(asked) == 4
    assert body["prompt"] == "add 12+34="
    assert json.loads(body["generation_config"]) == {"max_new_tokens": 3, "min_new_tokens": 3}
    assert "ignore_eos" not in body
    assert engine.encode([text]) == [tuple(words[:20])]


@pytest.mark.parametrize(
    ("status", "says"), [(401, "answers no completion: HTTP 401"), (400, "no completion of an exact length")]
)
def test_endpoint_that_answers_no_completion(status: int, says: str) -> None:
    with replying(lambda _asked: (status, {"error": "no"})) as url, pytest.raises(EngineError, match=says):
        connect(url)


def test_prompt_that_does_not_fit() -> None:
    with replying(lambda _asked: (200, {})) as url:
        engine = connect(url, max_model_len=8)
        with pytest.raises(EngineError, match="9 tokens, prompt and output, does not fit max_model_len=8"):
            engine.generate([GenerationRequest(prompt=(1,) * 5, max_tokens=4)], concurrency=1)


def test_failed_answer_names_the_status() -> None:
    with replying(lambda asked: (500 if asked["stream"] else 200, {"error": "out of cache"})) as url:
        engine = connect(url)
        with pytest.raises(EngineError, match=r"HTTP 500: .*out of cache"):
            engine.generate([GenerationRequest(prompt=(1,), max_tokens=4)], concurrency=1)


def test_unknown_option_names_those_there_are() -> None:
    with pytest.raises(EngineError, match=r"unknown engine option 'tokeniser'.*Did you mean 'tokenizer'"):
        connect("http://127.0.0.1:9", tokeniser="x")


def test_server_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        spec = EngineSpec(model="m", served_model_name="m", url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"no complete answer within 0\.3 s"):
            open_url(spec, timeout_s=0.3)


def test_server_that_dies_is_named_with_its_log(tmp_path: Path) -> None:
    command = f"{sys.executable} -m pytest_inferperf.cli simulate-server --port {{port}} --model {{served_model_name}}"
    spec = EngineSpec(model="simulated", served_model_name="simulated", serve=command)
    workload = Workload(isl=4, osl=4, rounds=1, warmup_rounds=0)
    with open_engine(spec, log_dir=tmp_path) as engine:
        assert isinstance(engine, ServedEngine)
        for process in psutil.Process(engine.pid).children(recursive=True):
            process.kill()
        # Its exit status is the engine's to read.
        while psutil.Process(engine.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)
        with pytest.raises(EngineError, match="was killed by signal 9"):
            measure_session(engine, workload)
        with pytest.raises(EngineError, match="was killed by signal 9"):
            engine.generate([GenerationRequest(prompt=(1,), max_tokens=1)], concurrency=1)
        engine.relaunch()
        session = measure_session(engine, workload)
    assert session.rounds[0].output_tokens == 4


def test_hardware_of_a_server_is_that_of_its_own_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two kinds of GPUs: the first is not the one that the server was given."""
    gpus = tuple(
        Gpu(name=name, sm=sm, memory_gib=48.0, uuid=uuid)
        for name, sm, uuid in (("NVIDIA T4", 75, "GPU-a"), ("NVIDIA L4", 89, "GPU-b"))
    )
    monkeypatch.setattr("pytest_inferperf.engines.openai.served.find_gpus", lambda: gpus)
    lease = lease_devices(GpuRequirement(sm=89), gpus, holder="ours", timeout_s=1, folder=tmp_path)
    command = f"{sys.executable} -m pytest_inferperf.cli simulate-server --port {{port}} --model {{served_model_name}}"
    spec = EngineSpec(model="simulated", served_model_name="simulated", serve=command)
    try:
        with open_engine(spec, log_dir=tmp_path, lease=lease) as engine:
            assert engine.info.hardware.name == "NVIDIA L4"
    finally:
        lease.release()


@pytest.mark.parametrize(
    ("hardware", "slug", "kind"),
    [
        ("", "endpoint-host-1x", "cpu"),
        ("NVIDIA B200 x8", "nvidia-b200-8x", "gpu"),
        ("NVIDIA L4", "nvidia-l4-1x", "gpu"),
    ],
)
def test_hardware_of_an_endpoint(hardware: str, slug: str, kind: str) -> None:
    spec = EngineSpec(model="m", served_model_name="m", url="http://host:8000", hardware=hardware)
    found = endpoint_hardware(spec)
    assert (found.slug, found.kind) == (slug, kind)


def test_what_an_endpoint_has_loaded_is_unverified() -> None:
    """It is let through, and said: what was asked is no proof."""
    with serve_in_thread(Behaviour()) as server:
        spec = EngineSpec(model="simulated", served_model_name="simulated", quant="NVFP4", url=server.url)
        engine = open_url(spec, timeout_s=20.0)
    assert engine.info.quant_algo == "unverified"
    assert "quantization unverified" in engine.info.versions["endpoint"]
    assert check_engine(spec, engine.info) == ""
