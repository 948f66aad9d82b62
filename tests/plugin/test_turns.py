"""Conversations in marks: `turns=3` asks them turn by turn, each with the server's own answers, all of them measured."""

from __future__ import annotations

import collections
import importlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

importlib.import_module("pytest_inferperf.measure.recorded.requests")

FILES = Path(__file__).parent / "datasets"
TALKS = 'dataset="chats.jsonl", endpoint="chat", turns=3, osl=20, num_requests=12, rounds=1, warmup_rounds=0'
FLOOR = "throughput_floor(output_throughput=1)"
CACHE = Behaviour(ttft_ms=10.0, itl_ms=0.5, prefix_cache=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[dict[str, str]]]]:
    """The messages of every request under load that a simulated server of this process got, with their times."""
    found: list[tuple[float, list[dict[str, str]]]] = []
    complete = SimulatedServer._complete

    def listen(self: SimulatedServer, connection: Any, body: bytes, *, chat: bool) -> None:
        request = json.loads(body)
        if request["stream"]:
            found.append((time.perf_counter(), request["messages"]))
        complete(self, connection, body, chat=chat)

    monkeypatch.setattr(SimulatedServer, "_complete", listen)
    return found


@pytest.fixture
def talks(served: ServedProject) -> ServedProject:
    shutil.copy(FILES / "chats.jsonl", served.path / "chats.jsonl")
    return served


def recorded() -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in (FILES / "chats.jsonl").read_text().splitlines()]


TURNS = sum(message["role"] == "user" for talk in recorded() for message in talk)
"""Of all twelve conversations of the file, which have two or three each."""


def measured(served: ServedProject) -> dict[str, Any]:
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    (session,) = record["result"]["performance"]["sessions"]
    (round_,) = session["rounds"]
    return dict(round_)


def test_each_turn_carries_the_history_with_the_servers_own_answers(
    talks: ServedProject, asked: list[tuple[float, list[dict[str, str]]]]
) -> None:
    with serve_in_thread(CACHE) as server:
        talks.test(f"{talks.at(server.url)}, {TALKS}, concurrency=3", FLOOR)
        talks.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    found = measured(talks)
    assert found["num_requests"] == TURNS
    assert found["output_tokens"] == 20 * TURNS
    assert [(turn["turn"], turn["failed"]) for turn in found["turns"]] == [(1, 0), (2, 0), (3, 0)]
    assert found["turns"][0]["requests"] == 12
    assert sum(turn["requests"] for turn in found["turns"]) == TURNS
    inputs = [turn["input_tokens"] for turn in found["turns"]]
    assert inputs == sorted(inputs)
    assert all(10 <= turn["ttft_ms_p50"] <= turn["ttft_ms_p99"] for turn in found["turns"])
    # Fillers and warm-up requests are first turns; every later turn goes on where an earlier request ended.
    later = [messages for _, messages in asked if len(messages) > 2]
    assert len(later) == TURNS - 12
    questions = collections.Counter(tuple(m["content"] for m in talk if m["role"] == "user")[1:] for talk in recorded())
    ends = [
        messages
        for messages in later
        if not any(other[: len(messages)] == messages for other in later if other != messages)
    ]
    assert (
        collections.Counter(tuple(m["content"] for m in talk if m["role"] == "user")[1:] for talk in ends) == questions
    )
    known = [messages for _, messages in asked]
    for messages in later:
        *history, answer, question = messages
        assert history in known
        assert (answer["role"], question["role"]) == ("assistant", "user")
        # What the simulated server says to a chat is decided by the chat: twenty words of its own.
        assert len(answer["content"].split()) == 20
        assert answer["content"] not in {message["content"] for talk in recorded() for message in talk}


def test_turns_wait_for_the_think_time(talks: ServedProject, asked: list[tuple[float, list[dict[str, str]]]]) -> None:
    with serve_in_thread(CACHE) as server:
        talks.test(
            f"{talks.at(server.url)}, {TALKS}, concurrency=2, think_time=0.4".replace("turns=3", "turns=2"), FLOOR
        )
        talks.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    assert measured(talks)["num_requests"] == 24
    sent = {json.dumps(messages): time_s for time_s, messages in asked}
    for time_s, messages in asked:
        if len(messages) > 2:
            assert time_s - sent[json.dumps(messages[:-2])] >= 0.4


def test_open_loop_begins_conversations_at_the_rate(
    talks: ServedProject, asked: list[tuple[float, list[dict[str, str]]]]
) -> None:
    with serve_in_thread(CACHE) as server:
        load = f'{TALKS}, request_rate=40, arrival="constant", think_time=0.1'
        talks.test(f"{talks.at(server.url)}, {load}", FLOOR, "latency_ceiling(ttft_ms_p50=5000)")
        talks.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    assert measured(talks)["num_requests"] == TURNS
    assert sum(len(messages) > 2 for _, messages in asked) == TURNS - 12


def test_cache_that_knows_more_than_was_said_is_invalid(talks: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_inferperf.simulate.prefix_cache.PrefixCache.look", lambda _, prompt: len(prompt))
    with serve_in_thread(CACHE) as server:
        talks.test(f"{talks.at(server.url)}, {TALKS}", FLOOR)
        result = talks.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*prompt tokens came from the server's prefix cache*"])


def test_turn_that_fails_ends_its_conversation_and_the_rest_has_failed(talks: ServedProject) -> None:
    """A run ends all the same, and says how many turns nobody could ask."""
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=0.5, malformed_rate=0.25)) as server:
        talks.test(f"{talks.at(server.url)}, {TALKS}", FLOOR)
        result = talks.run()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*INVALID*of {TURNS} requests failed*unasked (the turn before it in the *"])
        talks.test(f"{talks.at(server.url)}, {TALKS}", FLOOR, "error_rate_ceiling(0.9)")
        talks.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    found = measured(talks)
    assert found["num_requests"] == TURNS
    assert 0 < found["num_failed_requests"] < TURNS


def test_connection_that_breaks_ends_a_conversation_too(talks: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=0.5, disconnect_rate=0.25)) as server:
        talks.test(f"{talks.at(server.url)}, {TALKS}", FLOOR, "error_rate_ceiling(0.01)")
        result = talks.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*error_rate*"])


def test_history_that_nobody_counts_is_invalid(talks: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=0.5, usage=False)) as server:
        talks.test(f"{talks.at(server.url)}, {TALKS}", FLOOR)
        result = talks.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*the server counts no prompt tokens (usage)*"])


def test_latency_of_turns_fails_when_the_server_is_slower_and_its_baseline_is_its_own(talks: ServedProject) -> None:
    few = TALKS.replace("num_requests=12", "num_requests=3")
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.5)'
    with serve_in_thread(Behaviour(ttft_ms=40.0, itl_ms=0.5)) as server:
        talks.test(f"{talks.at(server.url)}, {few}, concurrency=2", gate)
        talks.run("--inferperf-update=new", "--inferperf-set=sessions=1")
        (path,) = (talks.path / "baselines").rglob("tiny-llama.json")
        (key,) = json.loads(path.read_text())["entries"]
        assert key.startswith("BF16-serve-endpoint-chat-chats-")
        assert key.endswith("-turns3-osl20-c2-n3")
        talks.run().assert_outcomes(passed=1)
        talks.run("--inferperf-set=turns=2").assert_outcomes(failed=1)
    with serve_in_thread(Behaviour(ttft_ms=140.0, itl_ms=0.5)) as server:
        talks.test(f"{talks.at(server.url)}, {few}, concurrency=2", gate)
        talks.run().assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ("isl=1, osl=1, turns=2", "turns=2: turns are those of the conversations in a file, asked as chats: *"),
        ('dataset="chats.jsonl", osl=1, turns=2', 'turns=2: *asked as chats: give dataset= and endpoint="chat".'),
        (
            'dataset="chats.jsonl", osl=1, think_time=1',
            "think_time=1 is the time between the turns of a conversation; *",
        ),
        (
            'dataset="one.jsonl", endpoint="chat", osl=1, turns=2',
            "turns=2: no record of dataset='one.jsonl' has a second *",
        ),
        ('dataset="chats.jsonl", turns=0', "turns=0 is below its minimum 1."),
    ],
)
def test_wrong_turns_are_a_collection_error(project: Project, keywords: str, says: str) -> None:
    shutil.copy(FILES / "chats.jsonl", project.path / "chats.jsonl")
    shutil.copy(FILES / "prompts.jsonl", project.path / "one.jsonl")
    project.test(f'inferperf(model="tiny-llama", {keywords})')
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*inferperf: {says}"])
