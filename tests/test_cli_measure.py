"""`inferperf measure` with every workload that marks have, and its look at the answers."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.cli import main
from pytest_inferperf.engines.openai.engine import OpenAIEngine
from pytest_inferperf.measure.load import rounds, summary
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread

pytestmark = pytest.mark.newest

Capture = pytest.CaptureFixture[str]
FILES = Path(__file__).parent / "plugin" / "datasets"
CLOSED = ("--concurrency", "2")
QUICK = Behaviour(ttft_ms=5.0, itl_ms=1.0, prefix_cache=True)


@pytest.fixture(autouse=True)
def _shared_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the client was late or held less is not what these tests are about."""
    lenient = functools.partial(summary.check_load, min_held_share=0.01)
    monkeypatch.setattr(summary, "client_bound", lambda *_, **__: "")
    monkeypatch.setattr(summary, "check_load", lenient)
    monkeypatch.setattr(rounds, "check_load", lenient)


def measure(url: str, *arguments: str) -> int:
    return main(["measure", "--url", url, "--model", "simulated", *arguments])


def test_distributions_and_a_shared_prefix(capsys: Capture, asked: list[dict[str, Any]]) -> None:
    lengths = ("--isl", "uniform(40, 60)", "--osl", "uniform(2,5)", "--shared-prefix", "0.5", "--seed", "3")
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, *lengths, *CLOSED) == 0
    head = "isl uniform(40,60)  osl uniform(2,5)  shared_prefix 0.5  concurrency 2  num_requests 8  seed 3"
    assert head in capsys.readouterr().out.splitlines()
    assert {len(request["prompt"]) for request in asked} <= set(range(40, 61))
    assert len({len(request["prompt"]) for request in asked}) > 1
    assert len({tuple(request["prompt"][:20]) for request in asked}) == 1


def test_a_data_set(capsys: Capture, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, "--dataset", str(FILES / "prompts.jsonl"), *CLOSED, "--json", str(path)) == 0
    found = json.loads(path.read_text())
    assert re.fullmatch(r"prompts-[0-9a-f]{8}", found["dataset"])
    assert "isl" not in found
    assert found["num_requests"] == 8
    prompts = [json.loads(line)["prompt"] for line in (FILES / "prompts.jsonl").read_text().splitlines()]
    assert sum(request["prompt"].partition(" ")[2] in prompts for request in asked) == 8


def test_conversations(capsys: Capture, asked: list[dict[str, Any]]) -> None:
    talks = ("--dataset", str(FILES / "chats.jsonl"), "--chat", "--turns", "2", "--think-time", "0.01", "--osl", "20")
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, *talks, *CLOSED, "--num-requests", "5") == 0
    shown = capsys.readouterr().out
    assert "  osl 20  turns 2  think_time 0.01  concurrency 2  num_requests 5  seed " in shown
    assert re.search(
        r"^turn 2     TTFT p50 [\d.]+ ms, p99 [\d.]+ ms; [\d.]+ input tokens in the mean; n 5$", shown, re.M
    )
    assert sum(len(request["messages"]) == 4 for request in asked) == 5


def test_a_trace(capsys: Capture, asked: list[dict[str, Any]]) -> None:
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, "--trace", str(FILES / "mooncake.jsonl"), "--trace-speed", "2") == 0
    assert re.search(
        r"^trace mooncake-[0-9a-f]{8}  trace_speed 2.0  num_requests 12  seed \d+$", capsys.readouterr().out, re.M
    )
    lengths = [json.loads(line)["input_length"] for line in (FILES / "mooncake.jsonl").read_text().splitlines()]
    assert [len(request["prompt"]) for request in asked] == lengths


def test_answers_that_are_garbled_under_load_are_invalid(capsys: Capture, tmp_path: Path) -> None:
    """Without the comparison nobody would know; with it the run gives no figure, and an honest server passes above."""
    garbled = Behaviour(ttft_ms=5.0, itl_ms=2.0, garble_rate=1.0)
    load = ("--isl", "8", "--osl", "8", "--concurrency", "4", "--num-requests", "12")
    path = tmp_path / "out.json"
    with serve_in_thread(garbled) as server:
        assert measure(server.url, *load, "--json", str(path)) == 1
        out, err = capsys.readouterr()
        assert measure(server.url, *load, "--compare", "0") == 0
    assert err.startswith("INVALID: the ")
    assert "inferperf_" not in err
    assert "ttft_ms" not in out
    assert json.loads(path.read_text())["metrics"] == {}


def test_audit_finds_a_cache_of_answers(capsys: Capture) -> None:
    load = ("--dataset", str(FILES / "prompts.jsonl"), "--concurrency", "2", "--num-requests", "8", "--audit")
    with serve_in_thread(Behaviour(ttft_ms=200.0, itl_ms=1.0, response_cache=True)) as server:
        assert measure(server.url, *load) == 1
    assert capsys.readouterr().err.startswith("INVALID: answers come from a cache")
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=1.0)) as server:
        assert measure(server.url, *load) == 0


def test_cache_hits_that_were_not_asked_for_are_invalid(capsys: Capture) -> None:
    """The same seed sends the same prompts: a server with a prefix cache has them after the first run."""
    load = ("--isl", "uniform(40,60)", "--osl", "4", *CLOSED, "--seed", "5")
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, *load) == 0
        assert measure(server.url, *load) == 1
        assert "prompt tokens came from the server's prefix cache" in capsys.readouterr().err
        assert measure(server.url, *load[:-2]) == 0


class _Words:
    """A tokenizer whose tokens are words."""

    all_special_ids = (0,)

    def __len__(self) -> int:
        return 1000

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(range(len(text.split()))) for text in texts]}


def test_a_tokenizer_counts_what_the_server_does_not(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAIEngine, "_tokenizer", _Words())
    load = ("--dataset", str(FILES / "prompts.jsonl"), *CLOSED)
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, usage=False)) as server:
        assert measure(server.url, *load) == 1
        assert "the server counts no prompt tokens (usage), and there is no tokenizer" in capsys.readouterr().err
        assert measure(server.url, *load, "--tokenizer", "words") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (CLOSED, "--isl is missing; a workload needs --isl and --osl, in tokens, or a file: --dataset or --trace."),
        (("--isl", "8", *CLOSED), "--osl is missing; a workload needs --isl and --osl, in tokens, or a file: "),
        (("--isl", "8k", "--osl", "1", *CLOSED), "--isl '8k' is no distribution of lengths. Write a number of tokens, "),
        (("--isl", "0", "--osl", "1", *CLOSED), "--isl 0 is below its minimum 1."),
        (("--isl", "8", "--osl", "1", "--shared-prefix", "1", *CLOSED), "--shared-prefix 1.0 must be from 0 to below 1; "),
        (("--dataset", "absent.jsonl", *CLOSED), "--dataset 'absent.jsonl': no such file, relative to "),
        (
            ("--dataset", "PROMPTS", "--concurrency", "16"),
            "--dataset 'PROMPTS' has 24 usable records, and 1 rounds (0 of warm-up) of 64 requests, none of them twice, need "
            "64. --num-requests 24 would do, or a longer file.",
        ),
        (("--dataset", "PROMPTS", "--turns", "2", *CLOSED), "--turns 2: turns are those of the conversations in a file, "),
        (("--isl", "1", "--trace", "TRACE"), "--isl 1 and --trace 'TRACE': the trace says when requests are due, "),
        (("--trace", "TRACE", "--num-requests", "99"), "--num-requests 99: --trace 'TRACE' has 12. Leave --num-requests out"),
        (("--trace", "TRACE", "--compare", "-1"), "--compare -1: must be at least 0."),
        (("--trace", "TRACE", "--compare", "0", "--audit"), "--audit repeats prompts whose answers were kept for --compare"),
        (("--trace", "TRACE", "--vocab-size", "9"), "--vocab-size 9: must be at least 20 tokens."),
        (("--trace", "TRACE", "--processes", "0"), "--processes 0: must be at least 1."),
        (("--trace", "TRACE", "--retries", "-1"), "--retries -1: must be at least 0."),
        (("--trace", "TRACE", "--timeout", "0"), "--timeout 0: must be above 0 seconds."),
    ],
)  # fmt: skip
def test_bad_usage_is_told_in_options(arguments: tuple[str, ...], message: str, capsys: Capture) -> None:
    files = {"PROMPTS": str(FILES / "prompts.jsonl"), "TRACE": str(FILES / "mooncake.jsonl")}
    assert measure("http://127.0.0.1:1", *[files.get(item, item) for item in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for name, path in files.items():
        err = err.replace(path, name)
    assert err.startswith(f"inferperf: {message}")


def test_a_server_of_another_dialect_is_asked_in_its_own(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes text and no token ids: prompts of a file are text already."""
    complete = SimulatedServer._complete

    def refuse_ids(self: SimulatedServer, connection: Any, body: bytes, *, chat: bool) -> None:
        if isinstance(json.loads(body).get("prompt"), list):
            self._refuse(connection, 400, "text alone")
        else:
            complete(self, connection, body, chat=chat)

    monkeypatch.setattr(SimulatedServer, "_complete", refuse_ids)
    with serve_in_thread(QUICK) as server:
        assert measure(server.url, "--dataset", str(FILES / "prompts.jsonl"), *CLOSED) == 0
    assert all(isinstance(request["prompt"], str) for request in asked)
