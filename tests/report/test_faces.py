"""What a run looks like to GitHub, GitLab and a reviewer: the verdict first, everything escaped, no secret anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.ci import CODE_QUALITY, METRICS, workflow_commands, write_ci_files
from pytest_inferperf.report.markdown import markdown
from pytest_inferperf.report.run import CaseReport, RunReport


def verdict(status: Status = Status.FAIL, **changed: object) -> GateVerdict:
    values: dict[str, object] = {
        "gate": "ttft_ms.p99",
        "status": status,
        "unit": "ms",
        "higher_is_better": False,
        "measured": 210.0,
        "limit": 198.0,
        "source": "baselines/x.json",
        "reason": "210 ms is above its ceiling 198" if status is not Status.PASS else "",
    }
    return GateVerdict(**{**values, **changed})  # type: ignore[arg-type]


def case(nodeid: str, *verdicts: GateVerdict, status: Status = Status.FAIL, invalid: str = "") -> CaseReport:
    return CaseReport(
        nodeid=nodeid,
        status=status,
        invalid=invalid,
        simulated=False,
        verdicts=verdicts,
        metrics={"ttft_ms.p99": 210.0},
    )


def run(*cases: CaseReport) -> RunReport:
    return RunReport(created="2026-01-01", environment={}, cases=cases)


PASSED = case("t.py::test_a", verdict(Status.PASS), status=Status.PASS)
FAILED = case("t.py::test_b", verdict())


def test_markdown_begins_with_the_verdict_and_shows_failures_first() -> None:
    lines = markdown(run(PASSED, FAILED)).splitlines()
    assert lines[0] == "❌ **FAIL: 2 gates in 2 tests (1 PASS, 1 FAIL)**"
    rows = [line for line in lines if line.startswith("| ttft")]
    assert rows[0] == "| ttft&#95;ms.p99 | ❌ FAIL | 210.00 | ≤ 198.00 | ms | baselines/x.json |"
    assert "✅ PASS" in rows[1]


@pytest.mark.parametrize(
    ("report", "first"),
    [
        (run(PASSED), "✅ **PASS: 1 gate in 1 test (1 PASS)**"),
        (run(case("t", invalid="throttled")), "⚠️ **INVALID: 0 gates in 1 test**"),
        (run(case("t")), "**NOT JUDGED: no gates in 1 test**"),
        (run(), "**NOT JUDGED: no gates in 0 tests**"),
    ],
)
def test_no_run_without_a_judged_gate_reads_as_a_pass(report: RunReport, first: str) -> None:
    assert markdown(report).splitlines()[0] == first


def test_markdown_fits_and_says_what_it_leaves_out() -> None:
    text = markdown(run(*(case(f"t.py::test_{n}", verdict()) for n in range(100))), most_bytes=5000)
    assert len(text.encode()) <= 5000
    shown = text.count("**t.py")
    assert shown > 5
    assert f"{100 - shown} more tests are not shown; the result file holds them." in text


HOSTILE = "<img src=x onerror=alert(1)> | [a](http://evil) `x` @team #1 **b**\n::error::boo\r\n# head www.evil.org"


def test_markdown_is_text_whatever_names_hold() -> None:
    text = markdown(run(case(HOSTILE, verdict(gate=HOSTILE, reason=HOSTILE), invalid=HOSTILE)))
    for markup in ("<", "@", "](", "`", "**b", "#1 ", "://", "www."):
        assert markup not in text, markup
    # One header, one rule, one row, and in each as many cells as the header has.
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


def test_workflow_commands_stay_on_one_line() -> None:
    hostile = case("a,b:c.py::t", verdict(gate="g,1:2", reason="50 %\n::warning::second"))
    assert workflow_commands(run(hostile, PASSED)) == [
        "::error file=a%2Cb%3Ac.py,title=g%2C1%3A2::a,b:c.py::t: 50 %25%0A::warning::second"
    ]
    assert workflow_commands(run(case("t.py::t", verdict(Status.INCONCLUSIVE)))) == [
        "::warning file=t.py,title=ttft_ms.p99::t.py::t: 210 ms is above its ceiling 198"
    ]
    assert len(workflow_commands(run(*[FAILED] * 30))) == 10
    assert workflow_commands(run(case("t.py::t", invalid="throttled"))) == [
        "::error file=t.py,title=invalid run::t.py::t: throttled"
    ]


def test_github(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("earlier step\n")
    lines = write_ci_files(
        run(FAILED), {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}, tmp_path / "root"
    )
    assert len(lines) == 1
    assert summary.read_text().startswith("earlier step\n❌ **FAIL: 1 gate in 1 test (1 FAIL)**")


def test_gitlab(tmp_path: Path) -> None:
    environ = {"GITLAB_CI": "true", "CI_PROJECT_DIR": str(tmp_path)}
    assert write_ci_files(run(FAILED, PASSED), environ, tmp_path / "root") == []
    (issue,) = json.loads((tmp_path / CODE_QUALITY).read_text())
    assert issue["severity"] == "critical"
    assert issue["location"] == {"path": "t.py", "lines": {"begin": 1}}
    first = issue["fingerprint"]
    write_ci_files(run(case("t.py::test_b", verdict(reason="another figure"))), environ, tmp_path)
    assert json.loads((tmp_path / CODE_QUALITY).read_text())[0]["fingerprint"] == first
    assert (tmp_path / METRICS).read_text() == 'inferperf_ttft_ms_p99{test="t.py::test_b"} 210.0\n# EOF\n'


def test_outside_ci_nothing_is_written(tmp_path: Path) -> None:
    assert write_ci_files(run(FAILED), {"GITLAB_CI": "false", "GITHUB_ACTIONS": ""}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
