"""What the page shows of a run: beside its baselines, its past and the documents that flipped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import ResultFile, read_result_file, write_result_file
from pytest_inferperf.hiding import HIDDEN, hider
from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.records import MEASURED, Records
from pytest_inferperf.model.results import Flip, Flips, PerformanceResult, Point, Round, TurnFigures
from pytest_inferperf.report.page.charts import Chart
from pytest_inferperf.report.page.content import CasePage, Page, Where, _hidden, page_of
from pytest_inferperf.report.page.write import page_html
from pytest_inferperf.report.run import run_report
from tests.report.page.planted import HOSTILE, NEEDLE, SECRET, Planted, plant

ALONE = {"this run: a round", "this run: sessions, with their rounds"}
"""What is drawn of a run without a baseline."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def page(planted: Planted) -> Page:
    return planted.page()


def case(page: Page, name: str) -> CasePage:
    return next(item for item in page.cases if name in item.report.nodeid)


def chart(found: tuple[Chart, ...], title: str) -> Chart:
    return next(item for item in found if item.title == title)


def line(drawn: Chart, name: str) -> dict[str, Any]:
    return next(item for item in drawn.figure["data"] if item["name"] == name)


def test_what_did_not_pass_comes_first(page: Page) -> None:
    assert [item.report.status.value for item in page.cases if item.report.status] == ["FAIL"] * 4 + ["PASS"]


def test_sessions_stand_beside_those_of_the_baseline(page: Page) -> None:
    drawn = chart(case(page, "test_throughput").charts, "output_throughput_per_gpu")
    baseline, mine = (line(drawn, f"{whose}: sessions, with their rounds") for whose in ("baseline", "this run"))
    assert baseline["x"] == ["b1", "b2", "b3", "b4", "b5", "b6"]
    assert len(mine["y"]) == 6
    assert max(mine["y"]) < min(baseline["y"])
    band, level, limit = drawn.figure["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == (min(baseline["y"]), max(baseline["y"]))
    assert band["y0"] <= level["y0"] <= band["y1"]
    assert limit["y0"] == pytest.approx(0.95 * level["y0"])
    assert len(line(drawn, "this run: a round")["y"]) == 18


def test_a_latency_is_drawn_from_median_to_tail_beside_the_baseline(page: Page) -> None:
    """The results of this run hold some requests of TTFT, TPOT and end to end; those of a sweep's loads none."""
    assert [item.title for item in case(page, "test_throughput").charts[2:]] == [
        "ttft_ms: every request",
        "tpot_ms: every request",
        "e2e_latency_ms: every request",
    ]
    drawn = chart(case(page, "test_interactivity").loads[3].charts, "ttft_ms: distribution")
    mine, old = line(drawn, "this run"), line(drawn, "baseline")
    assert mine["x"] == old["x"] == ["p50", "p90", "p95", "p99"]
    assert mine["y"] == sorted(mine["y"])
    assert [new / before for new, before in zip(mine["y"], old["y"], strict=True)] == pytest.approx([1.0] * 4, rel=0.02)
    assert re.search(r"p99 \d+\.\d\d ms \([+-]0\.\d %\), against the baseline\.", drawn.summary)


def test_every_request_is_drawn_where_the_result_holds_them(planted: Planted, page: Page) -> None:
    drawn = chart(case(page, "test_throughput").charts, "ttft_ms: every request")
    mine, old = line(drawn, "this run: every request"), line(drawn, "baseline: p50 to p99")
    assert (mine["y"][0], mine["y"][-1], len(mine["y"])) == (0.0, 100.0, 3 * 64)
    assert mine["x"] == sorted(mine["x"])
    performance = planted.records[0].result.performance
    assert performance is not None
    values = []
    for item in performance.sessions[0].rounds:
        assert item.records is not None
        rows = Records.unpack(item.records["rows"])
        requests = zip(rows.kind, rows.ok, rows.first, rows.intended, strict=True)
        values += [1000 * (first - due) for kind, ok, first, due in requests if kind == MEASURED and ok]
    assert mine["x"] == pytest.approx(sorted(values), rel=1e-3)
    assert old["y"] == [50, 90, 95, 99]
    assert drawn.summary.startswith("192 requests of all rounds; p50 159.94 ms (+11.1 %), ")


def test_a_sample_of_the_requests_is_said_to_be_one_and_drawn_small(planted: Planted) -> None:
    def sampled(item: Round) -> Round:
        return item if item.records is None else replace(item, records={**item.records, "of": 100_000})

    drawn = chart(with_rounds(planted, sampled).charts, "tpot_ms: every request")
    assert drawn.summary.startswith("192 requests, drawn by chance from those of all rounds; ")


def test_the_distribution_of_many_requests_is_two_hundred_steps(planted: Planted) -> None:
    rows = Records()
    for number in range(5000):
        rows.add(
            kind=MEASURED, ok=True, intended=1.0, sent=1.0, first=1.1 + number / 1000, last=9.0, done=9.0, tokens=2
        )
    drawn = chart(
        with_rounds(planted, lambda item: replace(item, records=keep_records(rows))).charts, "ttft_ms: every request"
    )
    (mine, _) = drawn.figure["data"]
    assert len(mine["x"]) == 201
    assert mine["x"][100] == pytest.approx(100 + 2499.5, rel=1e-4)


def test_requests_that_cannot_be_read_are_named_and_percentiles_drawn(planted: Planted) -> None:
    def damaged(item: Round) -> Round:
        if item.records is None:
            return item
        return replace(item, records={"of": 66, "rows": {**item.records["rows"], "ok": "!"}})

    found = with_rounds(planted, damaged)
    assert any(
        "requests of a round cannot be read, so that percentiles are drawn: packed" in note for note in found.notes
    )
    drawn = chart(found.charts, "ttft_ms: distribution")
    assert "p99 231.91 ms (+11.1 %)" in drawn.summary


def spoken(turn: int, ttft: float | None, *, failed: int = 0) -> TurnFigures:
    return TurnFigures(
        turn=turn,
        requests=10,
        failed=failed,
        input_tokens=None if ttft is None else 100.0 * turn,
        ttft_ms_p50=ttft,
        ttft_ms_p99=None if ttft is None else 2 * ttft,
    )


def test_first_tokens_stand_by_turn(planted: Planted) -> None:
    """Requests of all rounds, and medians over sessions of medians over rounds; of the last turn one round has none."""
    first = planted.records[0].result.performance
    assert first is not None
    numbers = {id(item): place for place, item in enumerate(item for one in first.sessions for item in one.rounds)}

    def talked(item: Round) -> Round:
        number = numbers[id(item)]
        last = spoken(2, None, failed=10) if number == 0 else spoken(2, 300.0 + number)
        return replace(item, turns=(spoken(1, 200.0 + number), last))

    found = with_rounds(planted, talked)
    # Six sessions of three rounds: the middle rounds are 1, 4, …, 16.
    assert found.turns == (
        replace(spoken(1, 208.5), requests=180),
        replace(spoken(2, 308.5), requests=180, failed=10),
    )
    html = re.sub(r">\s+<", "><", page_html(replace(planted.page(), cases=(found,))))
    assert "<caption>First tokens by turn of the conversation, medians of all rounds</caption>" in html
    cells = ("2", "180", "10", "200.00", "308.50", "617.00")
    assert "".join(f'<td class="n">{cell}</td>' for cell in cells) in html


def test_each_load_of_a_sweep_has_its_turns(planted: Planted) -> None:
    record = next(item for item in planted.records if item.result.frontier is not None)
    assert record.result.frontier is not None

    def talked(point: Point, ttft: float) -> Point:
        return replace(
            point,
            performance=PerformanceResult(
                sessions=tuple(
                    replace(one, rounds=tuple(replace(item, turns=(spoken(1, ttft),)) for item in one.rounds))
                    for one in point.performance.sessions
                )
            ),
        )

    points = tuple(talked(point, 100.0 * place) for place, point in enumerate(record.result.frontier.points, 1))
    frontier = replace(record.result.frontier, points=points)
    changed = replace(record, result=replace(record.result, frontier=frontier))
    (found,) = replace(planted, records=(changed,)).page().cases
    assert found.turns == ()
    assert [load.turns[0].ttft_ms_p50 for load in found.loads] == [100.0 * place for place in range(1, len(points) + 1)]


def test_where_nobody_spoke_twice_there_is_no_table_of_turns(page: Page) -> None:
    assert all(item.turns == () and not any(load.turns for load in item.loads) for item in page.cases)
    assert "First tokens by turn" not in page_html(page)


def with_rounds(planted: Planted, changed: Callable[[Round], Round]) -> CasePage:
    """Return the page of the first test with its rounds changed."""
    first = planted.records[0]
    assert first.result.performance is not None
    sessions = tuple(
        replace(session, rounds=tuple(map(changed, session.rounds))) for session in first.result.performance.sessions
    )
    record = replace(first, result=replace(first.result, performance=PerformanceResult(sessions=sessions)))
    (found,) = replace(planted, records=(record,)).page().cases
    return found


def test_the_frontier_stands_beside_that_of_the_baseline(page: Page) -> None:
    found = case(page, "test_interactivity")
    (drawn,) = found.charts
    mine, old = line(drawn, "this run"), line(drawn, "baseline")
    assert mine["text"] == ["c1", "c4", "c16", "c64"]
    ratios = [new / before for new, before in zip(mine["y"], old["y"], strict=True)]
    assert ratios == pytest.approx([1.0, 1.0, 0.85, 1.0], rel=0.01)
    assert [item.title for item in found.loads] == ["c1", "c4", "c16", "c64"]


def test_steps_of_the_past_are_drawn_where_they_came(page: Page) -> None:
    drawn = next(item for item in page.trends if "output_throughput_per_gpu" in item.title)
    (step,) = drawn.figure["layout"]["shapes"]
    assert step["x0"] == 16.5
    assert drawn.summary == (
        "24 results; worse by 10.2 %, from commit 00000000000f (2026-02-17) to 000000000010 (2026-02-18)."
    )


def test_a_score_is_compared_with_its_reference_and_a_speed_with_its_baseline(page: Page) -> None:
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in page_html(page).split("<tr")]
    (loss,) = (row for row in rows if row.startswith("data-case") and "FAIL" in row and "match loss vs BF16" in row)
    (floor,) = (row for row in rows if row.startswith('data-case="1"') and "≥" in row)
    assert "≤ 3.000 0.9000 reference points" in loss
    assert "≥ 283.78 298.71 baseline -10.0 % tok/s/GPU" in floor


def test_flips_say_what_was_asked_expected_and_answered(page: Page) -> None:
    (flips,) = case(page, "test_facts[NVFP4]").flips
    assert (flips.reference, flips.lost, flips.gained, len(flips.shown)) == ("BF16", 20, 2, 22)
    flip = flips.shown[7]
    assert (flip.document, flip.lost, flip.prompt, flip.expected) == (7, True, NEEDLE, "the Vltava")
    assert flip.answer == f"no idea {HOSTILE} {HIDDEN}"
    assert [item.document for item in flips.shown if not item.lost] == [360, 361]
    (none,) = case(page, "test_facts[BF16]").flips
    assert none == Flips(reference="BF16", lost=0, gained=0)


def test_what_moved_is_told_from_what_is_as_it_was(page: Page) -> None:
    moved = case(page, "test_throughput").moved
    assert moved == (("driver", "570.10", "580.65"),)
    assert case(page, "test_facts[BF16]").moved == ()
    assert case(page, "test_hostile").moved is None


def test_each_thing_is_said_once(page: Page) -> None:
    first, second = case(page, "test_hostile").reasons
    assert first.next_step.startswith("pytest 'test_hostile.py::test[<img")
    assert second.next_step == ""
    assert not any("no baseline" in note for note in case(page, "test_hostile").notes)
    notes = [note for reason in case(page, "test_throughput").reasons for note in reason.notes]
    assert len(notes) == len(set(notes)) == 2


def test_the_resolved_configuration_is_shown(page: Page) -> None:
    facts = dict(case(page, "test_throughput").configuration)
    assert facts["quantization"] == "NVFP4"
    assert facts["option max_batch_size"] == "64"
    assert facts["version of tensorrt_llm"] == "1.2.1"
    assert HIDDEN in facts["option env"]


def test_a_page_of_the_result_file_is_that_of_the_run(planted: Planted, page: Page) -> None:
    file = read_result_file(planted.file)
    report = run_report(file.records, created=page.report.created, environment=file.environment, hide=hider({}))
    where = Where(baselines=planted.baselines, history=planted.results)
    again = page_of(file.records, report, where, hide=hider({}))
    assert [item.flips for item in again.cases] == [item.flips for item in page.cases]
    assert [item.charts for item in again.cases] == [item.charts for item in page.cases]
    assert again.trends == page.trends


def test_a_baseline_that_has_changed_since_is_not_drawn_as_if_it_had_judged(planted: Planted) -> None:
    first = planted.records[0]
    verdict = replace(first.verdicts[0], baseline=350.0)
    then = replace(planted, records=(replace(first, verdicts=(verdict, *first.verdicts[1:])),))
    (found,) = then.page().cases
    assert (
        "output_throughput_per_gpu: the baseline has changed since this run was judged; its sessions are not drawn"
        in found.notes
    )
    drawn, other = found.charts[:2]
    assert {item["name"] for item in drawn.figure["data"]} == ALONE
    assert {item["name"] for item in other.figure["data"]} > ALONE


def test_without_baselines_it_says_so_and_draws_the_run_alone(planted: Planted, tmp_path: Path) -> None:
    found = case(replace(planted, folder=tmp_path).page(), "test_throughput")
    assert found.notes == (
        "no baseline: baselines/performance/test-gpu-8x/llama-3.1-8b.json: no such file (key NVFP4-isl1024-osl256-c64)",
    )
    assert {item["name"] for item in found.charts[0].figure["data"]} == ALONE


def test_what_of_the_past_cannot_be_read_is_named(planted: Planted, tmp_path: Path) -> None:
    shutil.copytree(planted.baselines, tmp_path / "baselines")
    shutil.copytree(planted.results, tmp_path / "results")
    (tmp_path / "results" / "cut.json").write_text('{"schema')
    page = replace(planted, folder=tmp_path).page()
    assert any("cut.json was skipped" in note for note in page.notes)
    assert page.trends


def test_values_of_the_environment_reach_no_text(planted: Planted) -> None:
    """Words that look like nothing, and are secret because the environment says so."""
    words = ("580.65", "river runs through", "Vltava", "max_batch_size", "output_throughput_per_user")
    hide = hider({f"KEY_{number}": word for number, word in enumerate(words)})
    report = run_report(planted.records, created="2026", environment={"driver": "580.65"}, hide=hide)
    where = Where(baselines=planted.baselines, history=planted.results)
    text = page_html(page_of(planted.records, report, where, hide=hide))
    for word in (*words, SECRET):
        assert word not in text, word


def test_a_result_file_keeps_the_flips_and_no_other_answer(planted: Planted, tmp_path: Path) -> None:
    text = planted.file.read_text()
    assert NEEDLE in text
    assert "Question 30:" not in text
    file = read_result_file(planted.file)
    write_result_file(tmp_path / "again.json", ResultFile(created="", environment={}, records=file.records))
    again = read_result_file(tmp_path / "again.json")
    assert [item.result.accuracy for item in again.records] == [item.result.accuracy for item in file.records]


def texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a value, with the names of the fields that lead to it."""
    if isinstance(value, str) and not isinstance(value, Enum):
        yield place, value
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from texts(getattr(value, item.name), f"{place}.{item.name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, place)
            # Keys of a figure and of a gate's details are this package's own.
            if not place.endswith((".figure", ".details")):
                yield place, key
    elif isinstance(value, tuple | list):
        for item in value:
            yield from texts(item, place)


def test_every_text_of_a_page_has_been_searched_for_secrets(planted: Planted, tmp_path: Path) -> None:
    """Each is marked by the search: one that is not has gone another way."""
    mark = "\x01"

    def hide(text: str) -> str:
        return f"{mark}{text}"

    shutil.copytree(planted.baselines, tmp_path / "baselines")
    shutil.copytree(planted.results, tmp_path / "results")
    (tmp_path / "results" / "cut.json").write_text('{"schema')
    first = planted.records[0]
    records = (replace(first, result=replace(first.result, invalid="throttled")), *planted.records[1:])
    report = run_report(records, created="2026", environment={"driver": "580.65"}, hide=hide)
    page = page_of(records, report, Where(baselines=tmp_path / "baselines", history=tmp_path / "results"), hide=hide)
    unmarked = {place for place, text in texts(page) if text and mark not in text}
    assert {place for place in unmarked if not place.endswith(".unit")} == set()
    seen = {place for place, _ in texts(page)}
    assert {".notes", ".trends.summary", ".cases.loads.charts.title", ".cases.flips.shown.answer"} <= seen


def test_every_text_of_a_flip_is_searched() -> None:
    flip = Flip(document=0, lost=True, prompt="prompt", expected="right", answer="wrong", reference_answer="theirs")
    found: list[str] = []

    def hide(text: str) -> str:
        found.append(text)
        return HIDDEN

    (shown,) = _hidden(Flips(reference="BF16", lost=1, gained=0, shown=(flip,)), hide).shown
    assert sorted(found) == ["BF16", "prompt", "right", "theirs", "wrong"]
    assert {shown.prompt, shown.expected, shown.answer, shown.reference_answer} == {HIDDEN}
