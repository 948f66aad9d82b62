"""Synthetic prompts."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from tests.measure.load.conftest import endpoint


def test_prompts_are_of_exact_length_and_share_nothing() -> None:
    bodies = SyntheticBodies(endpoint(1), isl=50, osl=3, seed=1, vocab_size=1000)
    asked = [json.loads(bodies(index)) for index in range(200)]
    assert {len(item["prompt"]) for item in asked} == {50}
    assert {token for item in asked for token in item["prompt"]} <= set(range(100, 1000))
    assert len({tuple(item["prompt"][:4]) for item in asked}) == 200
    assert {item["max_tokens"] for item in asked} == {3}


def test_chat_prompts_are_words() -> None:
    bodies = SyntheticBodies(endpoint(1, chat=True), isl=20, osl=3, seed=1)
    assert len(json.loads(bodies(0))["messages"][0]["content"].split()) == 20


def test_the_seed_decides() -> None:
    one, same, other = (SyntheticBodies(endpoint(1), isl=9, osl=3, seed=seed) for seed in (1, 1, 2))
    first = one(0)
    assert first == same(0)
    assert first != other(0)
    assert first != one(1)


def test_what_is_too_small() -> None:
    with pytest.raises(SettingsError, match=r"^isl 0: must be at least 1\.$"):
        SyntheticBodies(endpoint(1), isl=0, osl=1, seed=0)
    with pytest.raises(SettingsError, match=r"^vocabulary of 19: must be at least 20 tokens\.$"):
        SyntheticBodies(endpoint(1), isl=1, osl=1, seed=0, vocab_size=19)
