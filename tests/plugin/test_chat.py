"""Chats in marks: `endpoint="chat"` sends the load to `/chat/completions`, and every metric is right there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

CHAT = 'endpoint="chat", isl=16, osl=8, concurrency=2, num_requests=6, rounds=1, warmup_rounds=0'


def measured(served: ServedProject) -> dict[str, Any]:
    """Return the figures of the only round."""
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    (session,) = record["result"]["performance"]["sessions"]
    (round_,) = session["rounds"]
    return dict(round_)


def test_ids_and_selection(served: ServedProject) -> None:
    served.test('serve="vllm", isl=1024, osl=64, endpoint=["completions", "chat"]')
    served.collects("BF16-isl1024-osl64-c1", "BF16-chat-isl1024-osl64-c1")
    served.collects("BF16-chat-isl1024-osl64-c1", expression="inferperf(endpoint='chat')")


@pytest.mark.parametrize("reasoning", [0, 3])
def test_the_role_is_no_token_and_reasoning_is(served: ServedProject, reasoning: int) -> None:
    """The role comes at once, the first token after 150 ms, whether it is reasoning or not."""
    behaviour = Behaviour(ttft_ms=150.0, itl_ms=5.0, reasoning_tokens=reasoning, chat_only=True)
    with serve_in_thread(behaviour) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", "latency_ceiling(ttft_ms_p50=2000)")
        served.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    found = measured(served)
    assert found["metrics"]["ttft_ms.p50"] >= 149
    assert found["input_tokens"] == 6 * 16
    assert found["output_tokens"] == 6 * 8
    assert found["metrics"]["output_agreement"] == 1.0


def test_latency_of_chats_fails_when_the_server_is_slower(served: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=300.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", "latency_ceiling(ttft_ms_p50=200)")
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ttft_ms.p50 3* ms is above its ceiling 200*"])


def test_answers_to_chats_that_are_garbled_under_load_fail_their_floor(served: ServedProject) -> None:
    """The sample is asked for again as chats; an honest server's agree in full, as above."""
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=2.0, garble_rate=1.0)) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", "throughput_floor(output_agreement=0.9)")
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_agreement*"])


def test_cache_of_answers_to_chats_is_found(served: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=60.0, itl_ms=1.0, response_cache=True)) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", "throughput_floor(output_throughput=1)")
        result = served.run("--inferperf-audit")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*answers come from a cache*"])


def test_baseline_of_chats_is_their_own(served: ServedProject) -> None:
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.5)'
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", gate)
        served.run("--inferperf-update=new", "--inferperf-set=sessions=1")
        (path,) = (served.path / "baselines").rglob("tiny-llama.json")
        (key,) = json.loads(path.read_text())["entries"]
        assert key == "BF16-serve-endpoint-chat-isl16-osl8-c2-n6"
        served.run().assert_outcomes(passed=1)
        served.run("--inferperf-set=endpoint=completions").assert_outcomes(failed=1)
    with serve_in_thread(Behaviour(ttft_ms=200.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {CHAT}", gate)
        served.run().assert_outcomes(failed=1)


def test_completions_of_a_server_that_answers_chats_alone(served: ServedProject) -> None:
    with serve_in_thread(Behaviour(chat_only=True)) as server:
        served.test(f"{served.at(server.url)}, isl=16, osl=8", "throughput_floor(output_throughput=1)")
        result = served.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(['*answers chats alone: measure it with @pytest.mark.inferperf(endpoint="chat", …)*'])


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ('serve="vllm", endpoint="chats"', "unknown endpoint 'chats'. Did you mean 'chat'?*"),
        ('serve="vllm", endpoint=1', "endpoint=1 is an int; endpoint takes a str, or a list of them."),
        ('endpoint="chat"', "endpoint='chat': only a server has one, and the engine runs in a process of our own*"),
    ],
)
def test_wrong_endpoint_is_a_collection_error(served: ServedProject, keywords: str, says: str) -> None:
    served.test(f"isl=1, osl=1, {keywords}")
    result = served.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*inferperf: {says}"])


def test_engine_of_a_hook_that_has_no_chats_is_told_so(project: Project) -> None:
    project.test('inferperf(model="tiny-llama", isl=1, osl=1, endpoint="chat")')
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*endpoint='chat': ScriptedEngine has no such endpoint. Leave endpoint out*"])
