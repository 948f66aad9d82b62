"""Records as text for a result file, and as a file of their own."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pytest_inferperf.errors import MissingExtra, SettingsError
from pytest_inferperf.measure.load import record_file
from pytest_inferperf.measure.load.record_file import check_records_path, write_records
from pytest_inferperf.measure.load.records import FILLER, MEASURED, WARMUP, Records


def records() -> Records:
    found = Records()
    found.add(
        kind=WARMUP, ok=True, intended=50.0, sent=50.0, first=50.2, last=50.5, done=50.6, tokens=4, first_tokens=1
    )
    found.add(
        kind=MEASURED,
        ok=True,
        intended=51.0,
        sent=51.25,
        first=51.5,
        last=51.5,
        done=51.5,
        tokens=4,
        first_tokens=4,
        prompt_tokens=9,
        turn=2,
        number=6,
    )
    found.add(kind=FILLER, ok=False, intended=52.0, sent=0.0, done=53.0)
    return found


ROWS = [
    {
        "kind": "warmup",
        "request": None,
        "turn": None,
        "ok": True,
        "due_s": 0.0,
        "sent_s": 0.0,
        "ttft_ms": pytest.approx(200),
        "tpot_ms": pytest.approx(100),
        "e2e_latency_ms": pytest.approx(500),
        "output_tokens": 4,
        "first_chunk_tokens": 1,
        "prompt_tokens": None,
    },
    {
        "kind": "measured",
        "request": 7,
        "turn": 2,
        "ok": True,
        "due_s": 1.0,
        "sent_s": 1.25,
        "ttft_ms": 500.0,
        "tpot_ms": None,
        "e2e_latency_ms": 500.0,
        "output_tokens": 4,
        "first_chunk_tokens": 4,
        "prompt_tokens": 9,
    },
    {
        "kind": "filler",
        "request": None,
        "turn": None,
        "ok": False,
        "due_s": 2.0,
        "sent_s": None,
        "ttft_ms": None,
        "tpot_ms": None,
        "e2e_latency_ms": None,
        "output_tokens": 0,
        "first_chunk_tokens": 0,
        "prompt_tokens": None,
    },
]


def test_a_line_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "_ROWS", 2)
    path = tmp_path / "records.jsonl"
    write_records(path, records())
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


def test_a_row_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    monkeypatch.setattr(record_file, "_ROWS", 2)
    path = tmp_path / "records.parquet"
    write_records(path, records())
    assert parquet.read_table(path).to_pylist() == ROWS


def test_no_request_makes_an_empty_file(tmp_path: Path) -> None:
    write_records(tmp_path / "none.jsonl", Records())
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_what_cannot_be_written_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_records_path(tmp_path / "x.jsonl")
    with pytest.raises(SettingsError, match=r"^--records .*x\.csv: name it \*\.jsonl or \*\.parquet\.$"):
        check_records_path(tmp_path / "x.csv")
    with pytest.raises(SettingsError, match="no such folder"):
        check_records_path(tmp_path / "no" / "x.jsonl")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"\(pyarrow is not installed\): pip install \"pytest-inferperf\[records\]\"$"
    ):
        check_records_path(tmp_path / "x.parquet")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SettingsError, match=r"folder\.jsonl: cannot be written: Is a directory\.$"):
        write_records(tmp_path / "folder.jsonl", records())


def test_every_column_is_packed() -> None:
    assert set(records().pack()) == {"requests", *records().columns()}


def test_packed_records_come_back() -> None:
    packed = records().pack()
    assert json.loads(json.dumps(packed)) == packed
    back = Records.unpack(packed).columns()
    for name, column in records().columns().items():
        if name in ("intended", "sent", "first", "last", "done"):
            column = np.where(column > 0, column - 49.0, 0.0)
            np.testing.assert_allclose(back[name], column, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(back[name], column, err_msg=name)
    assert len(Records.unpack(Records().pack())) == 0


def test_packed_records_are_small_and_their_latencies_exact() -> None:
    chance = np.random.default_rng(0)
    found = Records()
    for index in range(5000):
        due = 1e5 + 0.37 * index
        first = due + float(chance.gamma(4, 0.05))
        last = first + float(chance.gamma(4, 0.3))
        found.add(
            kind=MEASURED, ok=True, intended=due, sent=due, first=first, last=last, done=last, tokens=64,
            first_tokens=1, prompt_tokens=128,
        )  # fmt: skip
    packed = found.pack()
    assert len(json.dumps(packed)) < 40 * 5000
    back, columns = Records.unpack(packed).columns(), found.columns()
    for name in ("first", "last"):
        lost_s = np.abs((back[name] - back["intended"]) - (columns[name] - columns["intended"]))
        assert lost_s.max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requests": 4}, "packed records: kind: 3 values for 4 requests"),
        ({"requests": "3"}, "not packed records"),
        ({"more": ""}, "not packed records"),
        ({"sent": "?"}, "packed records: sent: "),
        ({"tokens": "AAAA"}, "packed records: tokens: "),
        ({"tokens": 3}, "packed records: tokens: "),
    ],
)
def test_what_is_not_packed_records(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Records.unpack({**records().pack(), **change})
