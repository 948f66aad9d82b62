"""Samples of any length, and rows in flat arrays."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import numpy as np
import pytest

from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.measure.load import records as records_module
from pytest_inferperf.measure.load.accounts import Accounts
from pytest_inferperf.measure.load.records import MEASURED, Records, Sample
from pytest_inferperf.measure.load.slots import Request
from tests.measure.load.conftest import answer

SHARES = (0.0, 12.5, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 4095, 4096, 20_000])
def test_percentiles_are_those_of_all_values(count: int) -> None:
    values = np.random.default_rng(count).gamma(0.5, 300.0, count)
    values[: count // 50] += 3000.0  # beyond the dense part
    sample = Sample()
    half = count // 2
    sample.extend(values[:half].tolist())
    for value in values[half:].tolist():
        sample.add(value)
    assert len(sample) == count
    assert sample.mean == pytest.approx(values.mean())
    expected = np.percentile(np.round(values, 3), SHARES)
    assert sample.percentiles(*SHARES) == pytest.approx(expected.tolist(), abs=1e-3)


def test_memory_does_not_grow_with_the_values() -> None:
    sample = Sample()
    for _ in range(200):
        sample.extend([20.0 + index / 1000 for index in range(1000)])
    assert len(sample) == 200_000
    assert len(sample._buffer) <= 5000
    assert not sample._large


def test_a_row_is_small() -> None:
    records = Records()
    for index in range(10_000):
        records.add(kind=MEASURED, ok=True, intended=0.0, sent=0.0, done=1.0, tokens=index)
    size = sum(sys.getsizeof(column) for column in vars(records).values())
    assert size / 10_000 < 90
    columns = records.columns()
    assert {len(column) for column in columns.values()} == {10_000}
    assert columns["ok"].all()


def test_nothing_but_the_row_is_kept_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million requests of any length must fit: what was read of one must not stay."""
    # A buffer is as large for ten requests as for ten million, which a short test would take for growth.
    monkeypatch.setattr(records_module, "_BUFFER", 64)
    accounts = Accounts(count_tokens=None)

    def read(count: int) -> None:
        for _ in range(count):
            reader = LateReader()
            assert reader.feed(answer(40), 2.0)
            accounts.read(Request(MEASURED, b"x" * 1000, 1.0, isl=2, osl=40), reader, 2.0, None)

    # As in a run: what only a collection would free stays.
    gc.disable()
    tracemalloc.start()
    try:
        read(300)
        before, _ = tracemalloc.get_traced_memory()
        read(600)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(accounts.records) == 900
    assert (after - before) / 600 < 150
