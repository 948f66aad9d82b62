"""What the requests of a process say, when the process is on another machine."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.load.parcels import pack
from pytest_inferperf.measure.load.processes import Bodies
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from tests.measure.load.conftest import endpoint

TOKENS = [{"model": "m", "prompt": [7, 8, 9, *range(20 + 10 * number, 28 + 10 * number)]} for number in range(3)]
WORDS = [
    {"model": "m", "prompt": f" so it{' begins' * 2} a{number} b{number} c{number} d{number}"} for number in range(3)
]
CHATS = [{"model": "m", "messages": [{"role": "user", "content": item["prompt"].strip()}]} for item in WORDS]


def sent_away(asked: list[dict[str, Any]], count: int = 3) -> Bodies:
    """Return the requests as they arrive on another machine."""
    bodies = Bodies(
        make_body=lambda number: json.dumps(asked[number]).encode(), sizes_of=lambda number: (11 + number, 4)
    )
    found: Bodies = pickle.loads(pickle.dumps(pack(bodies, count)))
    return found


def units(body: bytes) -> list[Any]:
    asked = json.loads(body)
    prompt = asked["messages"][0]["content"] if "messages" in asked else asked["prompt"]
    return prompt.split() if isinstance(prompt, str) else list(prompt)


@pytest.mark.parametrize("asked", [TOKENS, WORDS, CHATS], ids=["tokens", "words", "chats"])
def test_what_was_written_is_sent_and_then_more_like_it(asked: list[dict[str, Any]]) -> None:
    found = sent_away(asked)
    written = [found.make_body(number) for number in range(3)]
    assert [json.loads(body) for body in written] == asked
    more = [found.make_body(number) for number in range(3, 9)]
    for number, body in enumerate(more):
        model, shared = written[number % 3], 3 if asked is TOKENS else 4
        assert json.loads(body).keys() == json.loads(model).keys()
        assert units(body)[:shared] == units(model)[:shared]
        assert sorted(units(body)) == sorted(units(model))
    assert len({*written, *more}) > 6
    assert found.sizes_of is not None
    assert [found.sizes_of(number) for number in (2, 3, 7)] == [(13, 4), (11, 4), (12, 4)]


def test_two_machines_that_have_the_same_do_not_go_on_alike() -> None:
    asked = [{"prompt": [number, *range(100, 200)]} for number in range(2)]
    assert sent_away(asked, 2).make_body(2) != sent_away(asked, 2).make_body(2)


def test_leading_space_of_words_stays() -> None:
    assert json.loads(sent_away(WORDS).make_body(5))["prompt"].startswith(" so it begins begins ")


def test_one_that_needs_a_single_request_still_tells_what_is_shared() -> None:
    found = sent_away(TOKENS, 1)
    assert units(found.make_body(2))[:3] == [7, 8, 9]
    assert found.make_body(2) != found.make_body(0)


def test_drawn_prompts_are_drawn_where_they_are_sent() -> None:
    texts = SyntheticBodies(endpoint(1), isl=8, osl=4, seed=5)
    packed = [pickle.loads(pickle.dumps(pack(texts.slice(index, 2), 10_000))) for index in range(2)]
    assert [item.make_body(0) for item in packed] == [texts.slice(index, 2).make_body(0) for index in range(2)]
    assert len(pickle.dumps(packed[0])) < 1_000_000


def test_what_a_file_holds_goes_out_from_one_host() -> None:
    bodies = Bodies(make_body=lambda _: b"", make_spare=lambda _: (b"", (1, 1)))
    with pytest.raises(SettingsError, match=r"^what a file holds goes out from one host\.$"):
        pack(bodies, 4)
