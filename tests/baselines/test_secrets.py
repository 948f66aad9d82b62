"""A secret in what is said of a baseline is hidden; in what a baseline is filed under it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.patch import write_patch
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, read_result_file, write_result_file
from pytest_inferperf.baselines.store import read_accuracy, read_performance
from pytest_inferperf.baselines.update import plan_update, update
from pytest_inferperf.errors import SettingsError
from pytest_inferperf.hiding import HIDDEN

Make = Callable[..., ResultRecord]
WORD = "swordfish-0451"
ASKED: dict[str, Any] = {"mode": "new", "accept_regression": False, "now": "2026-01-01"}


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", WORD)


def telling(record: ResultRecord) -> ResultRecord:
    return replace(record, result=replace(record.result, context={"driver": WORD, WORD: "580"}))


def test_reason_and_context_are_hidden_and_the_rest_is_as_measured(root: Path, speed: Make, answers: Make) -> None:
    records = [telling(speed({"output_throughput": 100.0})), telling(answers((1.0, 0.0)))]
    _, written = update(root, records, reason=f"ran with {WORD}", **ASKED)
    accuracy, performance = (path.read_text() for path in sorted(written))
    assert WORD not in accuracy + performance
    (entry,) = read_performance(sorted(written)[1]).entries.values()
    assert entry.provenance.reason == f"ran with {HIDDEN}"
    assert entry.context == {"driver": HIDDEN, HIDDEN: "580"}
    (task,) = read_accuracy(sorted(written)[0]).tasks.values()
    assert task.scores["BF16"].outcomes == (1.0, 0.0)


@pytest.mark.parametrize("name", ["MY_KEY", "UNRELATED"])
def test_key_of_a_baseline_depends_on_no_variable(
    root: Path, speed: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The model is called as the value of a variable: where that is a secret, nothing is recorded, and it says why."""
    monkeypatch.setenv(name, "tiny-model")
    record = speed({"output_throughput": 100.0})
    engine = replace(record.result.case.engine, served_model_name="tiny-model")
    record = replace(record, result=replace(record.result, case=replace(record.result.case, engine=engine)))
    plan, written = update(root, [record], reason="first", **ASKED)
    if name == "UNRELATED":
        assert [path.name for path in written] == ["tiny-model.json"]
        assert "tiny-model" in written[0].read_text()
    else:
        assert written == []
        assert plan.refusals[0].startswith(
            "t.py::test_speed: model holds the value of the environment variable MY_KEY, and a baseline is filed under it"
        )


def test_case_whose_name_was_hidden_is_no_baseline(root: Path, speed: Make, tmp_path: Path) -> None:
    record = speed({"output_throughput": 100.0})
    engine = replace(record.result.case.engine, served_model_name=WORD)
    record = replace(record, result=replace(record.result, case=replace(record.result.case, engine=engine)))
    path = tmp_path / "results.json"
    write_result_file(path, ResultFile(created="2026-01-01", environment={}, records=(record,)))
    assert WORD not in path.read_text()
    plan, written = update(root, read_result_file(path).records, reason="first", **ASKED)
    assert written == []
    assert "model held a secret, which is hidden" in plan.refusals[0]


def test_patch_that_would_quote_a_secret_is_not_written(root: Path, speed: Make, tmp_path: Path) -> None:
    """An older release may have written it into the file; hidden in the patch, it would not apply."""
    _, (file,) = update(root, [speed({"output_throughput": 100.0})], reason="ran with REASON", **ASKED)
    file.write_text(file.read_text().replace("REASON", WORD))
    again = [speed({"output_throughput": 110.0})]
    plan = plan_update(root, again, **{**ASKED, "mode": "all"}, reason="newer")
    says = (
        f"p.patch: not written: it would quote {plan.files[0].shown}, which holds the value of the .* MY_TOKEN. Revoke"
    )
    with pytest.raises(SettingsError, match=says):
        write_patch(plan, tmp_path / "p.patch")
    assert not (tmp_path / "p.patch").exists()
    update(root, again, **{**ASKED, "mode": "all"}, reason="newer")
    assert WORD not in file.read_text()


def test_figure_that_looks_like_a_secret_of_digits_is_none(
    root: Path, speed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIN_SECRET", "123456")
    update(root, [speed({"output_throughput": 9123456.0})], reason="first", **ASKED)
    again = [speed({"output_throughput": 9123456.5})]
    write_patch(plan_update(root, again, **{**ASKED, "mode": "all"}, reason="newer"), tmp_path / "p.patch")
    assert "9123456.5" in (tmp_path / "p.patch").read_text()
    plan = plan_update(root, again, **{**ASKED, "mode": "all"}, reason="newer")
    (file,) = plan.files
    quoted = replace(plan, files=(replace(file, after=(file.after or "").replace("newer", "of 123456")),))
    with pytest.raises(SettingsError, match=r"holds the value of the environment variable PIN_SECRET\."):
        write_patch(quoted, tmp_path / "other.patch")


def test_packed_answers_survive_a_secret_that_looks_like_them(
    answers: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "AAAAAAAA")
    record = answers((0.0,) * 200)
    path = tmp_path / "results.json"
    write_result_file(path, ResultFile(created="2026-01-01", environment={}, records=(record,)))
    (read,) = read_result_file(path).records
    assert read.result.accuracy is not None
    assert read.result.accuracy.outcomes == (0.0,) * 200
