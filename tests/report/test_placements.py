"""Where engines ran on a cluster, as a report says it: a row for each place, and a line of how long they waited."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.model.case import Case, EngineSpec
from pytest_inferperf.model.results import CaseResult, Placement
from pytest_inferperf.report.page.content import Where, page_of
from pytest_inferperf.report.page.write import page_html
from pytest_inferperf.report.placements import placement_rows, waiting_line
from pytest_inferperf.report.run import run_report


def place(engine: str, granted: str, waited_s: float) -> Placement:
    return Placement(engine=engine, node="gpu-07 (3f2a)", gpus=8, asked="22:00", granted=granted, waited_s=waited_s)


def record(nodeid: str, placement: Placement | None) -> ResultRecord:
    case = Case(engine=EngineSpec(model="m", served_model_name="llama"))
    return ResultRecord(nodeid=nodeid, result=CaseResult(case=case, placement=placement))


LATE, EARLY = place("FP8 llama", "22:09", 540.0), place("BF16 llama", "22:01", 60.0)
RECORDS = (
    record("t.py::late", LATE),
    record("t.py::early", EARLY),
    record("t.py::<b>too", EARLY),
    record("t.py::here", None),
)


def test_each_place_is_a_row_with_the_tests_that_ran_there() -> None:
    rows = placement_rows(RECORDS, hide=lambda text: text.replace("gpu-07", "***"))
    assert [(row.placement.engine, row.tests) for row in rows] == [
        ("BF16 llama", ("t.py::early", "t.py::<b>too")),
        ("FP8 llama", ("t.py::late",)),
    ]
    assert [row.waited for row in rows] == ["60 s", "9 min"]
    assert {row.placement.node for row in rows} == {"*** (3f2a)"}


def test_a_place_is_waited_for_once_however_many_tests_it_has() -> None:
    assert waiting_line(item.result.placement for item in RECORDS) == [
        "2 engines waited 10 min for nodes; longest 9 min: FP8 llama, on gpu-07 (3f2a)"
    ]


@pytest.mark.parametrize("placements", [[], [None], [place("a", "22:00", 4.0), place("b", "22:00", 5.0)]])
def test_nothing_is_said_where_nobody_waited(placements: list[Placement | None]) -> None:
    assert waiting_line(placements) == []


@pytest.mark.parametrize("records", [RECORDS, RECORDS[3:]], ids=["on a cluster", "here"])
def test_the_page_shows_places_where_there_were_any(records: tuple[ResultRecord, ...], tmp_path: Path) -> None:
    def hide(text: str) -> str:
        return text

    report = run_report(records, created="2026-11-21", environment={}, hide=hide)
    html = page_html(page_of(records, report, Where(baselines=tmp_path), hide=hide))
    assert ('id="placements"' in html) is (len(records) > 1)
    assert ("<td>22:09</td>" in html) is (len(records) > 1)
    assert "<b>too" not in html
