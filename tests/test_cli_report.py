"""`inferperf report` and `inferperf compare`, as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_inferperf import cli
from pytest_inferperf.baselines.result_file import ResultFile, write_result_file
from tests.history.conftest import record

pytestmark = pytest.mark.newest


def write(path: Path, value: float, *, driver: str = "570", score: float | None = None) -> str:
    file = ResultFile(created="2026-01-01", environment={"driver": driver}, records=(record(value, score=score),))
    write_result_file(path, file)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


def test_report_shows_the_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "report", write(tmp_path / "a.json", 100.0))
    assert lines[0] == "PASS: 1 gate in 1 test (1 PASS)"
    assert lines[2] == "test_it.py::test_it"
    assert lines[3].split()[:4] == ["ok", "output_throughput", "100.00", ">="]


def test_report_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.md"
    run(capsys, "report", write(tmp_path / "a.json", 100.0), "--markdown", str(path))
    assert path.read_text().startswith("✅ **PASS: 1 gate in 1 test (1 PASS)**\n")


def test_report_as_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.html"
    lines = run(capsys, "report", write(tmp_path / "a.json", 100.0), "--html", str(path))
    assert lines == [f"PASS: 1 gate in 1 test (1 PASS); written to {path}"]
    assert "<title>PASS: 1 gate in 1 test (1 PASS)</title>" in path.read_text()


def test_report_as_html_without_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert cli.main(["report", write(tmp_path / "a.json", 100.0), "--html", str(tmp_path / "r.html")]) == 2
    assert 'pip install "pytest-inferperf[html]"' in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write(tmp_path / "a.json", 100.0), write(tmp_path / "b.json", 80.0, driver="580")
    found = [line.split() for line in run(capsys, "compare", one, two)]
    assert found == [
        ["A", "B", "change"],
        ["test_it.py::test_it", "PASS", "PASS"],
        ["output_throughput", "100.00", "80.00", "-20.0", "%", "worse"],
        ["ttft_ms.p99", "10.00", "12.50", "+25.0", "%", "worse"],
        [],
        ["differs", "A", "B"],
        ["driver", "570", "580"],
        [],
        ["1", "case", "in", "both,", "0", "in", "one", "of", "them."],
    ]


def test_compare_of_other_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write(tmp_path / "a.json", 100.0), write(tmp_path / "b.json", 1.0, score=0.5)
    assert run(capsys, "compare", one, two) == [
        "only in A: test_it.py::test_it",
        "only in B: test_it.py::test_it",
        "",
        "0 cases in both, 2 in one of them.",
    ]
