"""`inferperf.waivers.toml`: what a waiver says, and every way in which the file can be wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.waivers import FILE_NAME, Waiver, read_waivers

pytestmark = pytest.mark.newest

GOOD = """\
[[waiver]]
case = "tests/test_x.py::test_it[NVFP4-c8]"
gate = "ttft_ms.p99"
reason = "driver 580"
issue = "https://git.example.org/issues/1"
expires = 2026-12-31
"""


def read(folder: Path, text: str) -> tuple[Waiver, ...]:
    (folder / FILE_NAME).write_text(text)
    return read_waivers(folder)


def test_no_file_is_no_waiver(tmp_path: Path) -> None:
    assert read_waivers(tmp_path) == ()


def test_a_waiver(tmp_path: Path) -> None:
    (found,) = read(tmp_path, f"# why\n\n{GOOD}")
    assert found == Waiver(
        case="tests/test_x.py::test_it[NVFP4-c8]",
        gate="ttft_ms.p99",
        reason="driver 580",
        issue="https://git.example.org/issues/1",
        expires=date(2026, 12, 31),
        line=3,
    )
    assert found.covers("tests/test_x.py::test_it[NVFP4-c8]", "ttft_ms.p99")
    assert not found.covers("tests/test_x.py::test_it[NVFP4-c8]", "ttft_ms.p50")
    assert not found.covers("tests/test_x.py::test_it[NVFP4-c88]", "ttft_ms.p99")


def test_a_waiver_holds_until_the_end_of_its_last_day(tmp_path: Path) -> None:
    (found,) = read(tmp_path, GOOD)
    assert not found.has_expired(date(2026, 12, 31))
    assert found.has_expired(date(2027, 1, 1))


def test_a_star_stands_for_anything_and_brackets_for_themselves(tmp_path: Path) -> None:
    (found,) = read(tmp_path, GOOD.replace("test_it[NVFP4-c8]", "test_it[NVFP4-*]"))
    assert found.covers_test("tests/test_x.py::test_it[NVFP4-c64]")
    assert not found.covers_test("tests/test_x.py::test_it[FP8-c64]")
    assert not found.covers_test("tests/test_x.py::test_itN")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "expire = 2026-12-31\n", "line 7: unknown field 'expire'. Did you mean 'expires'? Fields: case, "),
        (
            GOOD.replace('reason = "driver 580"\n', ""),
            "line 1: the field 'reason' is missing. Fields: case, gate, reason, issue, expires.",
        ),
        (GOOD.replace('"driver 580"', '" "'), "line 4: reason = ' ': write a text that is not empty."),
        (GOOD.replace('"driver 580"', "580"), "line 4: reason = 580: write a text that is not empty."),
        (
            GOOD.replace("::test_it[NVFP4-c8]", ""),
            "line 2: case = 'tests/test_x.py': write a test as pytest names it: ",
        ),
        (GOOD.replace("https://git.example.org/issues/1", "#1"), "line 5: issue = '#1': write a link: https://…"),
        (
            GOOD.replace("2026-12-31", '"2026-12-31"'),
            'line 6: expires = "2026-12-31": write a date without quotes: 2026-12-31.',
        ),
        (GOOD.replace("2026-12-31", "2026-12-31T00:00:00"), "line 6: expires = 2026-12-31 00:00:00: write a date"),
        (GOOD.replace("2026-12-31", "2026-02-30"), "not TOML: "),
        (GOOD.replace("[[waiver]]", "[[waivers]]"), "unknown table 'waivers'. Each waiver begins with [[waiver]]."),
        (GOOD.replace("[[waiver]]", "[waiver]"), "'waiver' is no list of tables. Each waiver begins with [[waiver]]."),
        (
            GOOD + "\n" + GOOD,
            "line 8: the waiver of ttft_ms.p99 in tests/test_x.py::test_it[NVFP4-c8] stands on line 1 al",
        ),
        (GOOD + "\n" + GOOD.replace("gate =", "gates ="), "line 10: unknown field 'gates'. Did you mean 'gate'? "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{FILE_NAME}: {message}")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="the bytes are not UTF-8"):
        read_waivers(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_waivers(tmp_path)
