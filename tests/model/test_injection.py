"""`--inferperf-inject`: every kind, every unit, every way to be wrong."""

from __future__ import annotations

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.model.injection import KINDS, Injection, parse_injection, parse_injections, shown


@pytest.mark.parametrize(
    ("text", "kind", "size", "unit"),
    [
        ("slowdown:5%", "slowdown", 5.0, "%"),
        ("latency:20ms", "latency", 20.0, "ms"),
        ("latency: 2.5 %", "latency", 2.5, "%"),
        ("accuracy:.5pt", "accuracy", 0.5, "pt"),
        ("memory:150%", "memory", 150.0, "%"),
        ("noise:3%", "noise", 3.0, "%"),
    ],
)
def test_forms(text: str, kind: str, size: float, unit: str) -> None:
    found = parse_injection(text)
    assert found == Injection(kind=kind, size=size, unit=unit)
    assert parse_injection(str(found)) == found


def test_every_kind_has_an_example_that_is_valid() -> None:
    for row in KINDS.values():
        assert parse_injection(row.example).kind == row.name


_FORMS = (
    "Write slowdown:SIZE%, latency:SIZE% or ms, accuracy:SIZEpt, errors:SIZE%, agreement:SIZE%, memory:SIZE%, noise:SIZE%. "
    "Example: --inferperf-inject=slowdown:5%"
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has no size."),
        ("slowdown", "it has no size."),
        (
            "slow:5%",
            "unknown kind 'slow'. Did you mean 'slowdown'? Kinds: accuracy, agreement, errors, latency, memory, noise, slowdown.",
        ),
        ("slowdown:", "'' is not a number with a unit, as in slowdown:5%."),
        ("slowdown:fast%", "'fast%' is not a number with a unit, as in slowdown:5%."),
        ("slowdown:nan%", "'nan%' is not a number with a unit, as in slowdown:5%."),
        ("slowdown:5%%", "'5%%' is not a number with a unit, as in slowdown:5%."),
        ("slowdown:5", "a unit is missing; slowdown takes %, as in slowdown:5%."),
        ("latency:5", "a unit is missing; latency takes % or ms, as in latency:20ms."),
        ("accuracy:2%", "the unit '%' does not exist; accuracy takes pt, as in accuracy:2pt."),
        ("slowdown:0%", "slowdown takes a size above 0 and at most 99%, as in slowdown:5%."),
        ("slowdown:-5%", "slowdown takes a size above 0 and at most 99%, as in slowdown:5%."),
        ("slowdown:100%", "slowdown takes a size above 0 and at most 99%, as in slowdown:5%."),
        ("accuracy:101pt", "accuracy takes a size above 0 and at most 100pt, as in accuracy:2pt."),
    ],
)
def test_wrong_forms_say_all_that_is_valid(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_injection(text)
    assert str(caught.value) == f"--inferperf-inject {text!r}: {why}\n{_FORMS}"


def test_several() -> None:
    found = parse_injections(["latency:20ms", "latency:5%", "accuracy:2pt"])
    assert shown(found) == "latency:20ms, latency:5%, accuracy:2pt"
    assert shown(()) == ""
    with pytest.raises(SettingsError, match=r"both slowdown:5% and slowdown:7% are given; keep one\."):
        parse_injections(["slowdown:5%", "slowdown:7%"])
