"""The table of the runbook is what a replay of the published figures says, row by row and verdict by verdict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_inferperf.baselines.result_file import ResultRecord, read_result_file
from pytest_inferperf.model.verdicts import GateVerdict
from tests.test_published import RECORD_SUITES, RECORDS, SCORE_SUITES, SCORES, suites, write
from tests.test_suites import ROOT, items, run

pytestmark = pytest.mark.newest

__all__ = ["suites"]

RUNBOOK = ROOT / "docs" / "runbook.md"
HEADING = "## What the published rows prove"
MODELS = {
    "deepseek-r1": "DeepSeek-R1",
    "llama-4-maverick": "Llama 4 Maverick",
    "llama-3.1-405b": "Llama 3.1 405B",
    "llama-3.3-70b": "Llama 3.3 70B",
}
TASKS = {
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "aime24": "AIME 2024",
    "gpqa_diamond_cot_zeroshot": "GPQA Diamond",
    "hendrycks_math500": "MATH-500",
}
UNITS = {"output_throughput_per_user": "tok/s/user", "output_throughput": "tok/s"}
STRICT = """
import pytest

@pytest.mark.inferperf(model="org/x", served_model_name="llama-3.3-70b", quant="NVFP4", backend="tensorrt_llm")
@pytest.mark.inferperf(tp=8, task=["mmlu", "gsm8k"])
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_strict(inferperf):
    inferperf.evaluate()
"""

Key = tuple[str, int | str]
"""Model, and the concurrency of a record or the task of a score."""


def table() -> list[list[str]]:
    """Return the rows of the runbook's table, without its head."""
    section = RUNBOOK.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    lines = re.findall(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def key(record: ResultRecord) -> Key:
    case = record.result.case
    what = case.workload.concurrency if case.workload is not None else case.task and case.task.name
    assert what
    return case.engine.served_model_name, what


def verdicts(
    pytester: pytest.Pytester, suite: str, *arguments: str, factor: float = 1.0, judged_by: str = ""
) -> dict[Key, GateVerdict]:
    """Replay what was published for a suite; return the verdict on each candidate."""
    results, judged = pytester.path / "published.json", pytester.path / "judged.json"
    write(results, items(pytester, suite), factor=factor)
    run(pytester, judged_by or suite, f"--inferperf-replay={results}", f"--inferperf-json={judged}", *arguments)
    found = {}
    for record in read_result_file(judged).records:
        if record.status is None or record.result.case.engine.quant == "BF16" or "test_reference" in record.nodeid:
            continue
        (verdict,) = record.verdicts
        assert verdict.status is record.status
        found[key(record)] = verdict
    return found


def test_the_table_of_verdicts_is_what_a_replay_says(suites: pytest.Pytester) -> None:
    suites.makepyfile(test_strict=STRICT)
    as_published: dict[Key, GateVerdict] = {}
    for suite in sorted({*RECORD_SUITES, *SCORE_SUITES}):
        as_published |= verdicts(suites, suite, "-k", "record or accuracy")
    worse: dict[str, dict[Key, GateVerdict]] = {"5 % less": {}, "ceiling of 1 point": {}}
    for suite in RECORD_SUITES:
        worse["5 % less"] |= verdicts(suites, suite, "-k", "record", factor=0.95)
    strict = str(suites.path / "test_strict.py")
    worse["ceiling of 1 point"] |= verdicts(suites, "llama_3_3_70b", judged_by=strict)

    def row(key: Key, title: str, gate: str) -> list[str]:
        (suite,) = (
            name for name in {*RECORD_SUITES, *SCORE_SUITES} if name == key[0].replace("-", "_").replace(".", "_")
        )
        changed = [f"{name}: {found[key].status.value}" for name, found in worse.items() if key in found]
        return [title, f"`{suite}`", gate, as_published[key].status.value, *(changed or [""])]

    rows = []
    for (model, concurrency), (metric, value) in RECORDS.items():
        limit = as_published[model, concurrency].limit
        rows.append(row((model, concurrency), f"{MODELS[model]}, {value:,.0f} {UNITS[metric]}", f"floor {limit:,.0f}"))
    for model, tasks in SCORES.items():
        for task, (reference, score) in tasks.items():
            limit = as_published[model, task].limit
            title = f"{MODELS[model]}, {TASKS[task]} {reference} → {score}"
            rows.append(row((model, task), title, f"{limit:g} point{'s' * (limit != 1)}"))
    assert table() == rows


def test_every_suite_has_its_line_of_time_and_disk() -> None:
    named = set(re.findall(r"^\| `(\w+)` \| \d x B200 \|", RUNBOOK.read_text(encoding="utf-8"), re.M))
    assert named == {path.name for path in Path(ROOT / "suites").iterdir() if path.name != "embedded" and path.is_dir()}
