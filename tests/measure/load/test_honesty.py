"""Servers whose answers are not what they seem: each lie is found, and an honest server is believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.sse import Decoded
from pytest_inferperf.errors import InvalidRun
from pytest_inferperf.measure.agreement import Agreement
from pytest_inferperf.measure.load.generator import LoadPlan, LoadRun, run_load
from pytest_inferperf.measure.load.honesty import Whole, ask_alone, check_outputs, outputs_agreement
from pytest_inferperf.measure.load.outputs import Output, OutputSample
from tests.measure.load.conftest import HEAD, Peer, chunked, endpoint, plain, scripted, simulated

SOUND = Output(body=b"{}", text=" one two three four", first=" one", tokens=4, finish_reason="length")
WHOLE = Whole(text=" one two three four", tokens=4, asked=4)


def words(text: str) -> list[int]:
    return [hash(word) for word in text.split()]


def kept(target: Endpoint, *, osl: int = 8, concurrency: int = 4) -> LoadRun:
    """Run a load of different prompts and keep some of the answers."""
    plan = LoadPlan(num_requests=12, osl=osl, concurrency=concurrency, timeout_s=20.0, kept=6)
    text = "say {0} {0} again"

    def body(index: int) -> bytes:
        return target.body(text.format(index) if target.chat else [index, 2, 3], osl=osl)

    return run_load(target, plan, body)


def looked_at(target: Endpoint, **options: Any) -> tuple[str, Agreement]:
    run = kept(target, **options)
    assert not run.failures
    assert len(run.outputs) == 6
    alone = ask_alone(target, run.outputs)
    cause = check_outputs(run.outputs, alone, encode=None, max_count_error=0.3)
    return cause, outputs_agreement(run.outputs, alone, encode=None)


@pytest.mark.parametrize("behaviour", [{}, {"tokens_per_chunk": 4}, {"usage": False}, {"slowdown": 0.1}])
@pytest.mark.parametrize("chat", [False, True])
def test_an_honest_server_is_believed(behaviour: dict[str, Any], chat: bool) -> None:
    if behaviour == {"usage": False} and chat:
        behaviour = {"reasoning_tokens": 3}
    with simulated(**behaviour) as it:
        cause, agreement = looked_at(replace(it, chat=chat))
    assert cause == ""
    assert agreement == Agreement(prefix=1.0, identical=1.0, compared=6)


def test_garbage_under_load() -> None:
    """An answer that is not alone is another one: the first token is wrong, and little of the rest agrees."""
    with simulated(garble_rate=1.0, itl_ms=5.0, jitter_ms=30.0) as it:
        cause, agreement = looked_at(it)
        alone, _ = looked_at(it, concurrency=1)
    assert agreement.prefix < 0.5
    assert "the first token that was streamed is not the first of the answer in " in cause
    assert alone == ""


def test_some_garbage_under_load_lowers_the_agreement() -> None:
    with simulated(garble_rate=0.5, itl_ms=5.0, jitter_ms=30.0) as it:
        _, agreement = looked_at(it)
    assert agreement.prefix < 1.0


def test_tokens_that_usage_counts_and_nobody_sends() -> None:
    """Without a tokenizer, a fifth of the tokens have less than a byte for each that is counted."""
    with simulated(unsent=0.9) as it:
        cause, _ = looked_at(it, osl=20)
    assert cause.startswith("the server counts 120 tokens in 6 answers whose text has 48 bytes, at least one for each ")


def test_first_token_that_is_none() -> None:
    with simulated(fake_first=True) as it:
        cause, _ = looked_at(it)
    assert cause.startswith("the first token that was streamed is not the first of the answer in 6 of 6 answers ('~', ")


@pytest.mark.parametrize(
    ("output", "whole", "says"),
    [
        ({}, {}, ""),
        ({"tokens": 5}, {}, ""),
        ({"tokens": 8}, {}, "the server counts 8 tokens in 1 answers whose text has 4 tokens, tokenized again"),
        ({"tokens": 2}, {}, "the server counts 2 tokens in 1 answers whose text has 4 tokens, tokenized again"),
        ({"tokens": 2, "text": " one \ufffd \ufffd \ufffd"}, {}, ""),
        ({"finish_reason": ""}, {}, ""),
        ({"finish_reason": "stop"}, {}, "1 of 1 answers ended by 'stop' and not by their length, and yet the server "),
        ({}, {"tokens": None}, ""),
        ({}, {"tokens": 3}, "1 of 1 answers have another length when they are not streamed: usage counts 3 tokens "),
        ({"first": " "}, {}, ""),
        ({"first": " "}, {"text": "one two"}, "the first token that was streamed is not the first of the answer in 1 "),
        ({"first": " one"}, {"text": "one two"}, ""),
        ({"first": " two"}, {}, "the first token that was streamed is not the first of the answer in 1 of 1 answers"),
        ({"first": " one"}, {"text": ""}, "the first token that was streamed is not the first of the answer in 1 of 1"),
    ],
)
def test_contradictions(output: dict[str, Any], whole: dict[str, Any], says: str) -> None:
    found = check_outputs([replace(SOUND, **output)], [replace(WHOLE, **whole)], encode=words, max_count_error=0.3)
    assert found.startswith(says)
    assert bool(found) is bool(says)


def test_first_tokens_that_flip_in_a_few_batches_are_honest() -> None:
    flipped = replace(SOUND, first=" two")
    assert check_outputs([SOUND, flipped], [WHOLE, WHOLE], encode=None, max_count_error=0.3) == ""
    assert check_outputs([SOUND, flipped, flipped], [WHOLE] * 3, encode=None, max_count_error=0.3) != ""


def test_agreement_is_of_tokens_where_there_is_a_tokenizer() -> None:
    other = replace(WHOLE, text=" one two four")
    assert outputs_agreement([SOUND], [other], encode=words).prefix == pytest.approx(2 / 3)
    assert outputs_agreement([SOUND], [other], encode=None).prefix == pytest.approx(
        len("one two ") / len("one two four")
    )


def asked_of(body: dict[str, Any], reply: dict[str, Any] | bytes) -> tuple[dict[str, Any], list[Whole]]:
    """Ask a scripted server again; return what it was sent and what was made of its reply."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        data = b""
        while b"\r\n\r\n" not in data or not data.endswith(b"}"):
            data += peer.sock.recv(65536)
        seen.append(data.partition(b"\r\n\r\n")[2])
        peer.send(plain(b"200 OK", reply if isinstance(reply, bytes) else json.dumps(reply).encode()))

    with scripted(script) as port:
        found = ask_alone(endpoint(port), [replace(SOUND, body=json.dumps(body).encode())], timeout_s=20.0)
    return json.loads(seen[0]), found


def test_what_is_asked_again_is_the_same_but_whole_and_not_longer_than_what_is_compared() -> None:
    reply = {"choices": [{"text": "x"}], "usage": {"completion_tokens": 128}}
    body = {"prompt": [1], "max_tokens": 500, "min_tokens": 500, "stream": True, "stream_options": {}}
    asked, found = asked_of(body, reply)
    assert asked == {"prompt": [1], "max_tokens": 128, "min_tokens": 128, "stream": False}
    assert found == [Whole(text="x", tokens=128, asked=128)]
    body = {"prompt": "a", "max_tokens": 9, "generation_config": json.dumps({"max_new_tokens": 900, "top_k": 1})}
    asked, _ = asked_of(body, reply)
    assert json.loads(asked["generation_config"]) == {"max_new_tokens": 128, "top_k": 1}


@pytest.mark.parametrize("reply", [b"hello", b"[]", {"choices": []}, {"choices": [{}]}, {"choices": "x"}])
def test_a_reply_that_is_none_of_the_api(reply: Any) -> None:
    with pytest.raises(InvalidRun, match="is none of the API"):
        asked_of({"max_tokens": 1}, reply)


def test_a_prompt_that_is_refused_when_it_is_asked_again() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(plain(b"500 Oh", b"boom"))

    refused = pytest.raises(InvalidRun, match=r"is refused when it is asked again.* HTTP 500: boom")
    with scripted(script) as port, refused:
        ask_alone(endpoint(port), [SOUND], timeout_s=20.0)


def test_a_server_that_sends_every_token_twice() -> None:
    """Usage counts both; whole, the answer is another one."""

    def script(peer: Peer) -> None:
        while data := peer.request():
            if b'"stream":true' not in data:
                text = "".join(f" w{number}" for number in range(8))
                reply = {"choices": [{"text": text}], "usage": {"completion_tokens": 8}}
                peer.send(plain(b"200 OK", json.dumps(reply).encode()))
                continue
            events = [b'data: {"choices":[{"text":" w%d"}]}\n\n' % (number // 2) for number in range(8)]
            end = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8}}\n\n'
            peer.send(HEAD + chunked(*events, end, b"data: [DONE]\n\n") + b"0\r\n\r\n")

    with scripted(script) as port:
        _, agreement = looked_at(endpoint(port))
    assert agreement.prefix < 0.2


def decoded(number: int) -> Decoded:
    return Decoded(
        times=[0.0],
        tokens=[1],
        source="usage",
        text=str(number),
        reasoning="",
        first=str(number),
        finish_reason="length",
        prompt_tokens=1,
        cached_tokens=0,
    )


def places(size: int, count: int) -> Sequence[int]:
    sample = OutputSample(size)
    for number in range(count):
        sample.offer(b"POST / HTTP/1.1\r\n\r\n{}", decoded(number))
    return [int(output.text) for output in sample.kept]


def test_a_sample_of_fixed_size_from_all_of_the_run() -> None:
    assert places(4, 3) == [0, 1, 2]
    assert places(0, 3) == []
    found = places(100, 1000)
    assert len(set(found)) == 100
    assert min(found) < 100
    assert max(found) > 900
    assert 400 < sum(found) / 100 < 600
