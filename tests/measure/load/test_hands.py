"""Conversations of a file, dealt to processes: each whole, each once, and nothing of the others' with it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.sse import Decoded
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.measure.load.hands import Hand, Played
from pytest_inferperf.measure.load.letters import Letter, read_letter, write_letter
from pytest_inferperf.measure.load.parcels import pack
from pytest_inferperf.measure.load.plan import LoadPlan
from pytest_inferperf.measure.load.talks import Talk, WrittenTurn
from tests.measure.load.conftest import endpoint

CHAT = endpoint(1, chat=True)
LATER = (2, 0, 1, 0, 2, 1, 0)
"""Turns after the first of seven conversations."""


def turn(text: str, *, target: Endpoint = CHAT, osl: int = 4) -> WrittenTurn:
    body = target.body(text, osl=osl)
    if target.chat:
        body = json.dumps(
            json.loads(body) | {"messages": [message("system", "Be brief."), message("user", text)]}
        ).encode()
    return WrittenTurn(body=body, isl=-1, osl=osl, messages=(("system", "Be brief."), ("user", text)))


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(number: int, later: int) -> tuple[WrittenTurn, ...]:
    first = turn(f"question {number} of a visitor")
    others = [
        WrittenTurn(
            body=CHAT.body(f"question {number} turn {place}", osl=5 + place),
            isl=-1,
            osl=5 + place,
            messages=(("user", f"question {number} turn {place}"),),
        )
        for place in range(2, 2 + later)
    ]
    return (first, *others)


WHOLE = Hand(
    conversations=tuple(conversation(number, later) for number, later in enumerate(LATER)),
    has_talks=True,
    think_time_s=0.5,
    spares=9,
    spare_seed="words",
)
PLAN = LoadPlan(num_requests=len(LATER) + sum(LATER), later_turns=LATER, osl=7, concurrency=6)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_conversation_goes_to_one_process_in_its_order(of: int) -> None:
    parts = [WHOLE.part(index, of) for index in range(of)]
    dealt: list[Any] = [None] * len(LATER)
    for index, part in enumerate(parts):
        dealt[index::of] = part.conversations
    assert tuple(dealt) == WHOLE.conversations
    assert sum(len(part.conversations) for part in parts) == len(LATER)
    assert all((part.has_talks, part.think_time_s) == (True, 0.5) for part in parts)
    assert sum(part.spares for part in parts) >= WHOLE.spares


@pytest.mark.parametrize("of", [1, 2, 3, 6])
def test_the_plan_of_each_process_is_of_what_it_was_dealt(of: int) -> None:
    parts = [PLAN.part(index, of) for index in range(of)]
    for index, part in enumerate(parts):
        hand = WHOLE.part(index, of)
        assert part.num_requests == sum(map(len, hand.conversations))
        assert part.begun == len(hand.conversations)
        assert part.concurrency in (6 // of, -(-6 // of))
    assert sum(part.num_requests for part in parts) == PLAN.num_requests
    assert sum(part.concurrency for part in parts) == 6


@pytest.mark.parametrize(
    ("concurrency", "most", "why"),
    [
        (6, 6, "each has a conversation to send: 6 are in flight"),
        (50, 7, "each has a conversation to send: there are 7"),
    ],
)
def test_no_more_processes_than_conversations_or_streams(concurrency: int, most: int, why: str) -> None:
    plan = replace(PLAN, concurrency=concurrency)
    assert (plan.most_parts, plan.each_has) == (most, why)


@pytest.mark.parametrize("later_turns", [(1, 1), (9, -1), (12,)])
def test_turns_that_are_not_those_of_the_requests(later_turns: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match=r"conversations are not 9 requests\.$"):
        LoadPlan(num_requests=9, later_turns=later_turns, osl=1, concurrency=1)


def test_what_is_not_measured_is_of_the_own_conversations_in_other_words_and_nobody_elses() -> None:
    played = [Played(WHOLE.part(index, 2)) for index in range(2)]
    bodies = [[json.loads(one.spare(number)[0])["messages"] for number in range(20)] for one in played]
    for index, mine in enumerate(bodies):
        own = [sorted(turns[0].messages[1][1].split()) for turns in WHOLE.conversations[index::2]]
        for number, (system, user) in enumerate(mine):
            mark, *words = user["content"].split()
            assert system == message("system", "Be brief.")
            assert len(mark) == 8
            assert sorted(words) == own[number % len(own)]
    assert len({json.dumps(said) for mine in bodies for said in mine}) == 40
    assert played[0].spare(3)[1] == (-1, 4)


def test_two_processes_with_like_conversations_do_not_send_the_same_fillers() -> None:
    same = replace(WHOLE, conversations=(WHOLE.conversations[0],) * 4)
    first, second = (Played(same.part(index, 2)) for index in range(2))
    assert first.spare(0) != second.spare(0)


def test_a_hand_goes_to_another_machine_as_it_is_and_holds_no_more_than_is_sent_there() -> None:
    mine = WHOLE.part(1, 3)
    letter = Letter(
        endpoint=CHAT, plan=PLAN, index=1, processes=3, parcel=pack(Played(mine).bodies(), 99), is_shown=False
    )
    data = write_letter(letter)
    found = read_letter(data)
    assert found == letter
    assert b"question 0" not in data
    here, there = Played(mine).bodies(), found.parcel.open(CHAT)
    assert there.make_spare is not None
    assert here.make_spare is not None
    assert there.talk_of is not None
    assert [there.make_body(number) for number in range(2)] == [here.make_body(number) for number in range(2)]
    assert [there.make_spare(number) for number in range(30)] == [here.make_spare(number) for number in range(30)]
    assert there.talk_of(1).left == LATER[4]


def test_a_letter_with_the_conversations_of_another_process_is_none() -> None:
    parcel = WHOLE.part(0, 3)
    data = write_letter(Letter(endpoint=CHAT, plan=PLAN, index=1, processes=3, parcel=parcel, is_shown=False))
    with pytest.raises(EngineError, match=r"letter\.parcel: 5 requests where 4 are its own"):
        read_letter(data)


@pytest.mark.parametrize(
    "turns", [(), (turn("a", target=endpoint(1)),), (replace(turn("a"), body=b"GET"),), (replace(turn("a"), body=b"[]"),)]
)  # fmt: skip
def test_requests_that_are_none_do_not_go_out(turns: tuple[WrittenTurn, ...]) -> None:
    with pytest.raises(EngineError, match=r"^requests of a load that are none: "):
        replace(WHOLE, conversations=(turns,)).open(CHAT)


def test_where_all_is_measured_there_is_nothing_else_to_say() -> None:
    target = endpoint(1)
    trace = Hand(conversations=((WrittenTurn(body=target.body([7, 8], osl=3), isl=2, osl=3),),) * 2)
    bodies = trace.part(1, 2).open(target)
    assert (bodies.make_spare, bodies.talk_of) == (None, None)
    assert bodies.sizes_of is not None
    assert (json.loads(bodies.make_body(0))["prompt"], bodies.sizes_of(0)) == ([7, 8], (2, 3))


def test_each_turn_says_all_that_was_said() -> None:
    talk = Talk(WHOLE.conversations[0])
    answer = Decoded(
        times=[1.0], tokens=[4], text="the “first” answer", reasoning="", prompt_tokens=9, cached_tokens=0, source="usage",
        finish_reason="length", first="the",
    )  # fmt: skip
    body, osl = talk.next(answer)
    asked = json.loads(body)
    said = [("system", "Be brief."), ("user", "question 0 of a visitor"), ("assistant", "the “first” answer")]
    assert asked["messages"] == [message(*one) for one in [*said, ("user", "question 0 turn 2")]]
    assert (asked["max_tokens"], osl) == (7, 7)
    assert asked.keys() == json.loads(WHOLE.conversations[0][0].body).keys()
    assert (talk.left, talk.end(), talk.left) == (1, 1, 0)


def test_a_text_prompt_says_other_words_too() -> None:
    target = endpoint(1)
    text = Hand(conversations=((turn("b c d e", target=target),),), spares=1, spare_seed="x")
    prompt = json.loads(Played(text).spare(0)[0])["prompt"]
    system, _, user = prompt.partition("\n\n")
    assert (system, sorted(user.split()[1:])) == ("Be brief.", ["b", "c", "d", "e"])
    assert random.Random("x").getrandbits(32) == int(user.split()[0], 16)
