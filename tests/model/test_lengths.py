"""Lengths of prompts and outputs: fixed ones and distributions."""

from __future__ import annotations

import random
from statistics import fmean, pstdev

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.model.lengths import parse_lengths


def drawn(value: int | str, count: int = 4000) -> list[int]:
    generator = random.Random(1)
    return [parse_lengths(value).draw(generator) for _ in range(count)]


def test_fixed_length_draws_nothing() -> None:
    """Prompts of a seed are the same as before there were distributions."""
    generator = random.Random(1)
    state = generator.getstate()
    assert parse_lengths(1024).draw(generator) == 1024
    assert generator.getstate() == state


def test_uniform_lengths_reach_both_ends() -> None:
    found = drawn("uniform(819, 1024)")
    assert (min(found), max(found)) == (819, 1024)
    assert fmean(found) == pytest.approx(921.5, rel=0.01)


def test_normal_lengths_are_cut_at_three_deviations() -> None:
    found = drawn("normal(1024,100)")
    assert fmean(found) == pytest.approx(1024, rel=0.01)
    assert pstdev(found) == pytest.approx(100, rel=0.05)
    assert min(found) >= 724
    assert max(found) <= parse_lengths("normal(1024,100)").largest == 1324


def test_normal_lengths_near_zero_are_at_least_one() -> None:
    assert min(drawn("normal(2,100)")) == 1


@pytest.mark.parametrize(
    ("value", "short", "spelled"),
    [
        (1024, "1024", 1024),
        (" uniform( 819 , 1024 ) ", "819-1024", "uniform(819,1024)"),
        ("normal(1024,100)", "1024sd100", "normal(1024,100)"),
    ],
)
def test_names(value: int | str, short: str, spelled: int | str) -> None:
    assert (parse_lengths(value).short, parse_lengths(value).value) == (short, spelled)


@pytest.mark.parametrize(
    "value", [0, "1024", "uniform(1024)", "uniform(9,1)", "uniform(0,9)", "normal(9,0)", "unif(1,2)"]
)
def test_what_is_no_length(value: int | str) -> None:
    with pytest.raises(SettingsError, match=r"at least 1|Write a number of tokens, uniform\(LEAST,MOST\)"):
        parse_lengths(value)
