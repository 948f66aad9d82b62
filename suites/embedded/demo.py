"""The main job in four acts, on the embedded suite: record, pass, a performance regression, an accuracy regression.

Each act is one pytest run in a process of its own, judged by its exit code, its results and its JUnit file. Exit code 0
only when every act ended as it should. Baselines are copied to `.demo/`, so that nothing in the repository changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.baselines.result_file import ResultRecord, read_result_file
from pytest_inferperf.model.verdicts import Status

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".demo"
BASELINES = WORK / "baselines"
WRONG_TEXTS = "data/calibration_wrong.jsonl"
"""Calibration texts of another kind than the model is asked: the scales they give clip what the questions need."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """One pytest run and what it must show."""

    title: str
    arguments: tuple[str, ...]
    exit_code: int
    check: Callable[[Sequence[ResultRecord]], str]
    """Return what is wrong with the results; "" when they are as they should be."""


RECORDED_SESSIONS = 5
"""As few as a calibrated verdict takes, and what the first act asks for; 10, the default, would take twice as long."""


def recorded(records: Sequence[ResultRecord]) -> str:
    """Every gate failed for want of a baseline, and the file exists now, with the sessions of every case."""
    for record in records:
        if record.result.performance is None or len(record.result.performance.sessions) != RECORDED_SESSIONS:
            return f"{record.nodeid}: {RECORDED_SESSIONS} sessions were not measured"
        for verdict in record.verdicts:
            if verdict.status is not Status.FAIL or "has no baseline" not in verdict.reason:
                return f"{record.nodeid}: {verdict.gate} is {verdict.status.value}, not a missing baseline"
    return "" if list(BASELINES.glob("performance/*/*.json")) else "no performance baseline was written"


def passed(records: Sequence[ResultRecord]) -> str:
    """Every gate of every test passed, both kinds of test ran."""
    bad = [record.nodeid for record in records if record.status is not Status.PASS]
    if bad:
        return f"did not pass: {', '.join(bad)}"
    kinds = {record.result.accuracy is not None for record in records}
    return calibrated(records) if kinds == {True, False} else "performance and accuracy were not both judged"


def calibrated(records: Sequence[ResultRecord]) -> str:
    """Every performance gate was judged by the spread between sessions, not by its tolerance alone."""
    for record in records:
        for verdict in record.verdicts:
            stored = verdict.details.get("baseline_sessions")
            if record.result.performance is not None and (
                stored != RECORDED_SESSIONS or "level" not in verdict.details
            ):
                return f"{record.nodeid}: {verdict.gate} was not judged against {RECORDED_SESSIONS} stored sessions"
    return ""


def regressed(gate: str) -> Callable[[Sequence[ResultRecord]], str]:
    """At least one gate whose name begins with `gate` measured a figure beyond its limit."""

    def check(records: Sequence[ResultRecord]) -> str:
        every = [verdict for record in records for verdict in record.verdicts]
        found = [verdict for verdict in every if verdict.gate.startswith(gate)]
        if not found:
            return f"no {gate} gate was judged"
        if any(verdict.measured is None for verdict in every):
            return "a gate failed without a figure: that is an absence, not a regression"
        fine = [verdict.gate for verdict in found if verdict.status is not Status.FAIL]
        return f"{gate} did not regress" if len(fine) == len(found) else calibrated(records)

    return check


ACTS = (
    Act(
        title="Record this machine's performance baseline (a run that records is never green)",
        arguments=(
            *("-k", "test_performance", "--inferperf-update=new", "--inferperf-update-in-ci"),
            *("--inferperf-set=sessions=5", "--inferperf-set=rounds=3"),
        ),
        exit_code=1,
        check=recorded,
    ),
    Act(
        title="Pass: nothing changed",
        arguments=("-m", "inferperf(quant='NVFP4') or inferperf(quant='BF16')"),
        exit_code=0,
        check=passed,
    ),
    Act(
        title="A real performance regression: generation without the KV cache",
        arguments=(
            "-k",
            "test_performance",
            "--inferperf-set=engine_options.use_cache=false",
            "--inferperf-set=rounds=1",
        ),
        exit_code=1,
        check=regressed("output_throughput"),
    ),
    Act(
        title="A real accuracy regression: NVFP4 weights and KV cache, calibrated on the wrong texts",
        arguments=(
            *("-m", "inferperf(quant='NVFP4', kv_cache_dtype='nvfp4', task='embedded_transform')"),
            *("-k", "test_accuracy_transform"),
            *("--inferperf-set=quant=NVFP4", "--inferperf-set=kv_cache_dtype=nvfp4"),
            f"--inferperf-set=calib_dataset={WRONG_TEXTS}",
        ),
        exit_code=1,
        check=regressed("exact_match loss"),
    ),
)


def run(number: int, act: Act) -> str:
    """Run one act; return what is wrong with it, or ""."""
    results, junit = WORK / f"act{number}.json", WORK / f"act{number}.xml"
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "suites" / "embedded" / "test_embedded.py"),
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
        ),
        *(f"--rootdir={ROOT}", f"--inferperf-baselines={BASELINES}", "--benchmark-disable"),
        *(f"--inferperf-json={results}", f"--junitxml={junit}", *act.arguments),
        # A laptop or a shared runner has neighbours and quotas. The regressions shown here are larger than their share.
        *("-o", "inferperf_max_interference=1", "-o", "inferperf_max_throttled=1"),
    ]
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False).returncode
    if code != act.exit_code:
        return f"pytest exited with {code}, expected {act.exit_code}"
    records = read_result_file(results).records
    suite = ET.parse(junit).getroot().find("testsuite")  # noqa: S314 - written by our own pytest
    failures = int(suite.attrib["failures"]) if suite is not None else -1
    if bool(failures) is not bool(act.exit_code):
        return f"JUnit counts {failures} failures"
    return act.check(records)


def main() -> int:
    """Run every act and summarise what each showed."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(ROOT / "baselines" / "accuracy", BASELINES / "accuracy")
    lines = []
    failed = False
    begin = time.perf_counter()
    for number, act in enumerate(ACTS, start=1):
        print(f"\n{'=' * 100}\nAct {number}. {act.title}\n{'=' * 100}", flush=True)
        start = time.perf_counter()
        wrong = run(number, act)
        failed = failed or bool(wrong)
        outcome = "as it should" if not wrong else f"WRONG: {wrong}"
        lines.append(f"  {number}. {act.title}: {outcome} ({time.perf_counter() - start:.0f} s)")
    print("\nWhat each act showed:")
    print("\n".join(lines))
    print(f"  {time.perf_counter() - begin:.0f} s in all; results and JUnit files are in {WORK.relative_to(ROOT)}/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
