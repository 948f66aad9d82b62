"""The suites of the published results, on a machine without a GPU: they collect, plan, skip with a reason, and can fail."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from pytest_inferperf.baselines.entries import PerformanceEntry, ScoreEntry
from pytest_inferperf.baselines.store import baseline_files, read_accuracy, read_performance
from pytest_inferperf.engines import hardware
from pytest_inferperf.engines.hardware import Gpu, GpuMachine
from pytest_inferperf.model.quant import QUANTIZATIONS
from pytest_inferperf.selection import bound_of

ROOT = Path(__file__).parents[1]
BASELINES = ROOT / "baselines"
SUITES = ("blackwell_smoke", "deepseek_r1", "llama_3_1_405b", "llama_3_3_70b", "llama_4_maverick", "nemotron_4")
REQUIRED = " (--inferperf-require-gpu forbids to skip)"

# pytester takes modules that a run imported out of sys.modules again; a second import would make second classes.
for _name in ("collection", "planning.plan", "report.plan", "engines.needs", "marks.cases", "baselines.store"):
    importlib.import_module(f"pytest_inferperf.{_name}")


class Collected:
    """Keeps the items of a run."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


@pytest.fixture
def suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder to run the suites from, on a machine without a GPU."""
    monkeypatch.setattr(hardware, "look_at_gpus", GpuMachine)
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        # These tests may run under xdist; the runs inside them do not.
        monkeypatch.delenv(name, raising=False)
    return pytester


def run(pytester: pytest.Pytester, suite: str, *arguments: str, plugin: object = None) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        f"--inferperf-baselines={BASELINES}",
        str(ROOT / "suites" / suite),
        *arguments,
        plugins=[plugin] if plugin is not None else [],
    )


def items(pytester: pytest.Pytester, suite: str) -> list[pytest.Item]:
    found = Collected()
    assert run(pytester, suite, "--collect-only", "-q", plugin=found).ret == pytest.ExitCode.OK
    assert found.items
    return found.items


def test_every_suite_is_tested_here() -> None:
    folders = {path.parent.name for path in (ROOT / "suites").glob("*/test_*.py")}
    assert folders == {"embedded", *SUITES}


@pytest.mark.parametrize("suite", SUITES)
def test_skips_every_case_with_needed_and_found(suites: pytest.Pytester, suite: str) -> None:
    result = run(suites, suite, "-rs")
    outcomes = result.parseoutcomes()
    assert outcomes.keys() == {"skipped"}
    reasons = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert reasons
    assert all(re.search(r"needs \d GPUs? of SM \d+ or later with 160 GiB; found no NVIDIA GPU$", r) for r in reasons)


@pytest.mark.parametrize("suite", SUITES)
def test_require_gpu_fails_every_case(suites: pytest.Pytester, suite: str) -> None:
    count = len(items(suites, suite))
    result = run(suites, suite, "--inferperf-require-gpu")
    assert result.parseoutcomes() == {"errors": count}
    assert sum(line.endswith(f"found no NVIDIA GPU{REQUIRED}") for line in result.outlines) >= count


@pytest.mark.parametrize("suite", SUITES)
def test_plan_says_what_it_would_need(suites: pytest.Pytester, suite: str) -> None:
    result = run(suites, suite, "--inferperf-plan")
    assert result.ret == pytest.ExitCode.OK
    needs = [line for line in result.outlines if line.startswith("  GPUs ")]
    assert len(needs) == len([line for line in result.outlines if line.startswith("engine ")])
    assert all(re.search(r"\d GPUs? of SM \d+ or later with 160 GiB; found no NVIDIA GPU", line) for line in needs)
    result.stdout.fnmatch_lines(["* cases of them cannot run on this machine"])


def test_plan_of_the_embedded_suite_needs_no_gpu(suites: pytest.Pytester, tmp_path: Path) -> None:
    result = run(suites, "embedded", "--inferperf-plan", f"--inferperf-cache-dir={tmp_path / 'cache'}")
    assert result.ret == pytest.ExitCode.OK
    engines = [line for line in result.outlines if line.startswith("engine ")]
    assert len(engines) > 5
    assert "found no NVIDIA GPU" not in result.stdout.str()
    result.stdout.no_fnmatch_line("* cannot run on this machine")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suite", SUITES)
def test_runs_on_tensorrt_llm_and_nothing_else(suites: pytest.Pytester, suite: str) -> None:
    """`auto` would try to run a model of 671 billion parameters on a CPU."""
    cases = [bound.case for bound in map(bound_of, items(suites, suite)) if bound is not None]
    assert {case.engine.backend for case in cases} == {"tensorrt_llm"}


def test_nvfp4_skips_on_hopper(suites: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    h200 = Gpu(name="NVIDIA H200", sm=90, memory_gib=180.0)
    monkeypatch.setattr(hardware, "look_at_gpus", lambda: GpuMachine(gpus=(h200,) * 8))
    result = run(suites, "blackwell_smoke", "-rs")
    assert result.parseoutcomes() == {"skipped": 5}
    result.stdout.fnmatch_lines(["SKIPPED *needs 1 GPU of SM 100 or later *; found 8 x NVIDIA H200 (SM 90, 180 GiB)"])


def test_seven_gpus_are_not_eight(suites: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    b200 = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)
    monkeypatch.setattr(hardware, "look_at_gpus", lambda: GpuMachine(gpus=(b200,) * 7))
    result = run(suites, "llama_4_maverick", "-rs")
    result.stdout.fnmatch_lines(["SKIPPED *needs 8 GPUs *; found 7 x NVIDIA B200 (SM 100, 178 GiB)"])


def test_a_driver_that_is_too_old_fails(suites: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    b200 = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)
    old = GpuMachine(gpus=(b200,), driver="570.124.06", cuda="12.8")
    monkeypatch.setattr(hardware, "look_at_gpus", lambda: old)
    monkeypatch.setattr("pytest_inferperf.engines.needs.installed_cuda", lambda: "13.0")
    result = run(suites, "blackwell_smoke", "-k", "speed")
    assert result.parseoutcomes()["errors"] == 3
    result.stdout.fnmatch_lines(
        ["the NVIDIA driver 570.124.06 runs CUDA up to 12.8, and the installed CUDA runtime is 13.0.*"]
    )


def test_task_names_are_those_of_lm_eval(suites: pytest.Pytester) -> None:
    """Its own registry, of the folders that the suites name: the whole takes 20 seconds."""
    shipped = Path(lm_eval.tasks.__file__).parent
    folders = ("aime", "gpqa", "gsm8k", "hendrycks_math", "mmlu")
    manager = TaskManager(include_path=[str(shipped / name) for name in folders], include_defaults=False)
    known = {*manager.all_subtasks, *manager.all_groups}
    named = set()
    for suite in SUITES:
        bounds = filter(None, map(bound_of, items(suites, suite)))
        named |= {bound.case.task.name for bound in bounds if bound.case.task is not None}
    assert named == {"aime24", "gpqa_diamond_cot_zeroshot", "gsm8k", "hendrycks_math500", "mmlu"}
    assert named <= known


def test_published_entries_say_where_they_come_from_and_what_they_leave_open() -> None:
    performance, accuracy = baseline_files(BASELINES)
    entries = [entry for path in performance for entry in read_performance(path).entries.values()]
    scores = [
        score
        for path in accuracy
        if path.stem != "inferperf-tiny-llama"
        for task in read_accuracy(path).tasks.values()
        for score in task.scores.values()
    ]
    assert (len(entries), len(scores)) == (4, 24)
    found: list[PerformanceEntry | ScoreEntry] = [*entries, *scores]
    for item in found:
        assert item.provenance.kind == "published"
        assert item.provenance.source.startswith("NVIDIA, ")
        assert item.context["left_open"]


def test_precisions_of_published_scores_are_known() -> None:
    _, accuracy = baseline_files(BASELINES)
    files = [read_accuracy(path) for path in accuracy]
    names = {name for file in files for task in file.tasks.values() for name in task.scores}
    assert {name.partition("+")[0] for name in names} <= QUANTIZATIONS.keys()
