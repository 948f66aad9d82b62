"""What the requests of a process say, when the process is on another machine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.load.parcels import DrawnParcel, Parcel, pack
from pytest_inferperf.measure.load.plain import read, write
from pytest_inferperf.measure.load.processes import Bodies
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from tests.measure.load.conftest import endpoint

TOKENS = [{"model": "m", "prompt": [7, 8, 9, *range(20 + 10 * number, 28 + 10 * number)]} for number in range(3)]
WORDS = [
    {"model": "m", "prompt": f" so it{' begins' * 2} a{number} b{number} c{number} d{number}"} for number in range(3)
]
CHATS = [{"model": "m", "messages": [{"role": "user", "content": item["prompt"].strip()}]} for item in WORDS]


def delivered(parcel: Parcel) -> Parcel:
    found: Parcel = read(Parcel, write(parcel), "parcel")
    return found


def sent_away(asked: list[dict[str, Any]], count: int = 3) -> Bodies:
    """Return the requests as they arrive on another machine."""
    bodies = Bodies(
        make_body=lambda number: json.dumps(asked[number]).encode(), sizes_of=lambda number: (11 + number, 4)
    )
    return delivered(pack(bodies, count)).open(endpoint(1))


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
    packed = [delivered(pack(texts.slice(index, 2), 10_000)).open(endpoint(1)) for index in range(2)]
    for index, item in enumerate(packed):
        here = texts.slice(index, 2)
        assert [item.make_body(number) for number in range(3000)] == [here.make_body(number) for number in range(3000)]
    assert len(write(pack(texts.slice(0, 2), 10_000))) < 1_000


def test_one_process_elsewhere_goes_on_where_this_one_is() -> None:
    texts = SyntheticBodies(endpoint(1), isl=8, osl=4, seed=5)
    here = texts.slice(0, 1)
    sent = [here.make_body(number) for number in range(3)]
    there = delivered(pack(texts.slice(0, 1), 4)).open(endpoint(1))
    more = [there.make_body(number) for number in range(3000)]
    assert more == [here.make_body(number) for number in range(3000)]
    assert not set(sent) & set(more)


@pytest.mark.parametrize("change", [{"isl": 0}, {"vocab_size": 3}, {"drawn": b"1,"}, {"state": -1}])
def test_a_drawing_that_is_none(change: dict[str, Any]) -> None:
    drawing = SyntheticBodies(endpoint(1), isl=8, osl=4, seed=5).drawing()
    with pytest.raises(EngineError, match=r"^prompts of a load that cannot be drawn: "):
        DrawnParcel(drawing=replace(drawing, **change)).open(endpoint(1))
