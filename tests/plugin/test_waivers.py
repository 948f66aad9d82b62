"""Waivers in a run: a waived regression is an xfail; nothing else is waived, and a waiver that does nothing is an error."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from pytest_inferperf.selftest.run import FOLDER
from tests.plugin.conftest import PERFORMANCE, Project

FLOOR = 'throughput_floor("output_throughput_per_user")'
CEILING = 'latency_ceiling("tpot_ms.p99")'
CASE = "test_it.py::test_it[NVFP4-isl16-osl8-c2]"
GATE = "output_throughput_per_user"
FILE = "inferperf.waivers.toml"


def waive(project: Project, *gates: str, case: str = CASE, expires: str = "2999-12-31", keep: bool = False) -> None:
    entries = [
        f'[[waiver]]\ncase = "{case}"\ngate = "{gate}"\nreason = "driver 580"\n'
        f'issue = "https://git.example.org/1"\nexpires = {expires}\n'
        for gate in gates
    ]
    (project.path / FILE).write_text("\n".join(entries))


@pytest.fixture
def slower(project: Project) -> Project:
    """A project with a baseline, and an engine that has become half as fast."""
    project.test(PERFORMANCE, FLOOR)
    project.run("--inferperf-update=new")
    project.engine(tpot_ms=20)
    return project


def test_a_waived_regression_is_an_xfail_everywhere(slower: Project) -> None:
    waive(slower, GATE)
    result = slower.run("-rx", "--junitxml=junit.xml", "--inferperf-json=r.json")
    result.assert_outcomes(xfailed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            f"*note: {GATE}: waived until 2999-12-31: driver 580 (https://git.example.org/1)",
            "XFAIL test_it.py*waived until 2999-12-31: driver 580 (https://git.example.org/1): output_throughput_per_user "
            "50 tok/s/user is below its floor 95*",
        ]
    )
    (skipped,) = ET.parse(slower.path / "junit.xml").getroot().iter("skipped")
    assert skipped.get("type") == "pytest.xfail"
    assert "waived until 2999-12-31: driver 580" in str(skipped.get("message"))
    (record,) = json.loads((slower.path / "r.json").read_text())["records"]
    # What was found is kept as it is.
    assert record["status"] == "FAIL"


def test_without_a_waiver_it_fails(slower: Project) -> None:
    slower.run().assert_outcomes(failed=1)


def test_runxfail_counts_no_waiver(slower: Project) -> None:
    waive(slower, GATE)
    slower.run("--runxfail").assert_outcomes(failed=1)


def test_every_failing_gate_needs_its_own_waiver(slower: Project) -> None:
    slower.test(PERFORMANCE, FLOOR, CEILING)
    waive(slower, GATE)
    slower.run().assert_outcomes(failed=1)
    waive(slower, GATE, "tpot_ms.p99")
    slower.run().assert_outcomes(xfailed=1)


def test_an_invalid_run_is_not_waived(slower: Project) -> None:
    waive(slower, GATE)
    slower.engine(failed=1, tpot_ms=20)
    result = slower.run()
    result.assert_outcomes(failed=1)
    # Nothing is known of the gate, so nothing of its waiver.
    result.stdout.no_fnmatch_line(f"*{FILE}*")


def test_a_missing_baseline_is_not_waived(project: Project) -> None:
    project.test(PERFORMANCE, FLOOR)
    waive(project, GATE)
    project.run().assert_outcomes(failed=1)


@pytest.mark.parametrize("dies", ["build_error", "generate_error"])
def test_the_death_of_an_engine_is_not_waived(slower: Project, dies: str) -> None:
    waive(slower, GATE)
    slower.engine(**{dies: "the engine died"})
    assert slower.run().ret == pytest.ExitCode.TESTS_FAILED
    assert slower.run().parseoutcomes().get("xfailed") is None


def test_a_body_that_fails_by_itself_is_not_waived(slower: Project) -> None:
    waive(slower, GATE)
    slower.test(PERFORMANCE, FLOOR, body="inferperf.measure(); assert False")
    slower.run().assert_outcomes(failed=1)


def test_an_expired_waiver_waives_nothing_and_is_an_error(slower: Project) -> None:
    waive(slower, GATE, expires="2020-01-01")
    result = slower.run()
    result.assert_outcomes(failed=1)
    expired = (
        f"ERROR: {FILE}: line 1: the waiver of {GATE} in {CASE} expired on 2020-01-01. Mend what "
        "https://git.example.org/1 is about, or renew it."
    )
    assert expired in result.outlines
    slower.engine(tpot_ms=10)
    again = slower.run()
    again.assert_outcomes(passed=1)
    assert again.ret == pytest.ExitCode.TESTS_FAILED
    assert expired in again.outlines


@pytest.mark.parametrize(
    ("gate", "case", "why"),
    [
        (GATE, CASE, "the gate passes"),
        ("ttft_ms.p99", CASE, f"the test has no such gate; its gates: {GATE}"),
        (GATE, "test_it.py::test_gone", "no such test was collected"),
    ],
)
def test_an_unused_waiver_is_an_error(slower: Project, gate: str, case: str, why: str) -> None:
    slower.engine(tpot_ms=10)
    waive(slower, gate, case=case)
    result = slower.run()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"ERROR: {FILE}: line 1: the waiver of {gate} in {case} is not used: {why}. Remove it." in result.outlines


@pytest.mark.parametrize(
    "arguments", [("-k", "test_it"), ("-m", "inferperf"), (CASE,), ("test_other.py", "test_third.py"), ("-x",)]
)
def test_only_a_full_selection_says_that_a_waiver_is_unused(slower: Project, arguments: tuple[str, ...]) -> None:
    """Of the files that were named, everything; and of a run that was stopped, nothing."""
    slower.engine(tpot_ms=10)
    (slower.path / "test_other.py").write_text(f"def test_other():\n    assert {'-x' not in arguments}\n")
    (slower.path / "test_third.py").write_text("def test_third(): pass\n")
    waive(slower, GATE, case="test_zz.py::test_gone" if arguments == ("-x",) else CASE)
    slower.run(*arguments).stdout.no_fnmatch_line(f"*{FILE}*")


def test_the_named_file_is_selected_in_full(slower: Project) -> None:
    slower.engine(tpot_ms=10)
    waive(slower, GATE)
    slower.run("test_it.py").stdout.fnmatch_lines([f"ERROR: {FILE}: *is not used: the gate passes. Remove it."])


def test_a_test_that_was_skipped_says_nothing_of_its_waiver(slower: Project) -> None:
    slower.test(PERFORMANCE, FLOOR, "requires_gpu(count=64)")
    waive(slower, GATE)
    result = slower.run()
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK


def test_a_wrong_file_ends_the_run_before_it_begins(slower: Project) -> None:
    (slower.path / FILE).write_text("[[waiver]]\n")
    result = slower.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {FILE}: line 1: the field 'case' is missing. *"])


def test_a_selftest_asks_the_gate_itself(slower: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a waived gate would look like one that cannot fail."""
    waive(slower, GATE)
    folder = slower.path / "selftest"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    slower.run("-p", "pytest_inferperf.selftest_plugin").assert_outcomes(failed=1)


def test_under_xdist_the_controller_puts_waivers_together(project: Project) -> None:
    """One worker has the waived test, and the controller knows that the other waiver covers nothing."""
    task = 'inferperf(model="tiny-llama", quant="NVFP4", task="gsm8k")'
    loss = 'accuracy_loss_ceiling(reference="BF16", points=1)'
    project.engine(right={"BF16": 900, "NVFP4": 700})
    project.test(
        task.replace("NVFP4", "BF16"), "accuracy_floor(points=50)", name="test_ref", body="inferperf.evaluate()"
    )
    project.run("--inferperf-update=new")
    project.test(task, loss, name="test_low", body="inferperf.evaluate()")
    case = "test_low.py::test_low[NVFP4-gsm8k]"
    waive(project, "exact_match loss vs BF16", "accuracy", case=case)
    result = project.pytester.runpytest_subprocess("-n2", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, xfailed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    errors = [line for line in result.outlines if line.startswith("ERROR: ")]
    assert len(errors) == 1
    assert f"{FILE}: line 8: the waiver of accuracy in {case} is not used: the test has no such gate" in errors[0]
    partial = project.pytester.runpytest_subprocess("-n1", "-p", "no:cacheprovider", "-k", "low")
    assert not [line for line in partial.outlines if line.startswith("ERROR: ")]
