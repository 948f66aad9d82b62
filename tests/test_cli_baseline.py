"""`inferperf baseline`: what a diff tells, what an update keeps and refuses, and a patch that git applies."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.cli import main
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.results import (
    AccuracyResult,
    CaseResult,
    Hardware,
    PerformanceResult,
    Session,
)
from tests.values import engine_info, one_round

pytestmark = pytest.mark.newest

Capture = pytest.CaptureFixture[str]
SPEED, SCORES = Path("baselines/performance/amd-epyc-2x/tiny.json"), Path("baselines/accuracy/tiny.json")
KEY = "NVFP4-isl64-osl32-c1"
STEADY = (1000.0, 1010.0, 990.0, 1005.0, 995.0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Ada Löwe")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "ada@example.org")
    Path("baselines").mkdir()


def speed(*throughputs: float, sessions: int = 0, isl: int = 64, **context: str) -> ResultRecord:
    """Make a record with a session for each throughput."""

    def session(throughput: float) -> Session:
        item = one_round({"output_throughput": throughput}, input_tokens=64, output_tokens=32)
        return Session(rounds=(item, item), warmup_rounds=1)

    info = engine_info(
        backend="transformers",
        hardware=Hardware(name="AMD EPYC", count=2, kind="cpu"),
        quant_algo="NVFP4",
        simulated=True,
    )
    engine = EngineSpec(model="/m/Tiny", served_model_name="tiny", quant="NVFP4")
    result = CaseResult(
        case=Case(engine=engine, workload=Workload(isl=isl, osl=32, sessions=sessions)),
        engine=info,
        performance=PerformanceResult(sessions=tuple(map(session, throughputs))),
        context=context,
    )
    return ResultRecord(nodeid="t.py::test_speed", result=result)


def score(quant: str, right: int, *, questions: int = 200) -> ResultRecord:
    outcomes = (1.0,) * right + (0.0,) * (questions - right)
    engine = EngineSpec(model="/m/Tiny", served_model_name="tiny", quant=quant)
    accuracy = AccuracyResult(
        task="sums",
        metric="exact_match",
        higher_is_better=True,
        score=right / questions,
        outcomes=outcomes,
        documents_digest="d1",
        unparseable=(False,) * questions,
    )
    return ResultRecord(
        nodeid=f"t.py::test_sums[{quant}]",
        result=CaseResult(case=Case(engine=engine, task=Task(name="sums")), accuracy=accuracy),
    )


def results(*records: ResultRecord) -> str:
    write_result_file(Path("r.json"), ResultFile(created="", environment={}, records=records))
    return "r.json"


def entry(key: str = KEY) -> Any:
    return json.loads(SPEED.read_text())["entries"][key]


def update(*records: ResultRecord, options: tuple[str, ...] = ()) -> int:
    return main(["baseline", "update", results(*records), *options])


ALL = ("--mode", "all", "--reason", "new driver")


# What a diff tells.


def test_a_diff_gives_the_interval_of_the_change_and_the_sessions_behind_it(capsys: Capture) -> None:
    update(speed(*STEADY))
    capsys.readouterr()
    assert main(["baseline", "diff", results(speed(*(0.9 * value for value in STEADY[:3])))]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "output_throughput" in line]
    words = row.split("  ")
    assert "-10.0 % worse" in words
    assert words[-1] == "5 -> 3 sessions"
    low, high = (float(word) for word in words[-2].replace("95 % between ", "").replace(" %", "").split(" and "))
    assert low < -10 < high < 0
    assert high - low == pytest.approx(2.4, abs=0.5)


def test_a_diff_says_that_the_context_moved(capsys: Capture) -> None:
    update(speed(*STEADY, torch="2.13.0", driver="570"))
    capsys.readouterr()
    main(["baseline", "diff", results(speed(*STEADY, torch="2.14.0", driver="570"))])
    out = capsys.readouterr().out
    assert f"  {KEY}: context moved: torch 2.13.0 -> 2.14.0\n" in out
    assert "driver" not in out


def test_a_diff_says_that_the_identity_moved(capsys: Capture) -> None:
    update(speed(*STEADY))
    capsys.readouterr()
    main(["baseline", "diff", results(speed(*STEADY, isl=128))])
    out = capsys.readouterr().out
    assert f"  NVFP4-isl128-osl32-c1: identity moved: nearest is {KEY}; isl 64 -> 128\n" in out


def test_a_diff_of_answers_pairs_them(capsys: Capture) -> None:
    update(score("BF16", 160))
    capsys.readouterr()
    main(["baseline", "diff", results(score("BF16", 140), score("FP8", 150))])
    out = capsys.readouterr().out
    assert "-12.5 % worse  95 % between -1" in out
    assert "  200 -> 200 questions\n" in out
    assert "  sums-exact_match: identity moved: precision BF16 -> FP8\n" in out


# What an update keeps.


def test_an_update_records_who_when_and_from_what(capsys: Capture) -> None:
    assert update(speed(*STEADY, git_commit="abc123"), options=("--reason", "first")) == 0
    provenance = entry()["provenance"]
    digest = hashlib.sha256(Path("r.json").read_bytes()).hexdigest()
    assert provenance.pop("recorded")[:2] == "20"
    assert provenance == {
        "kind": "measured",
        "reason": "first",
        "author": "Ada Löwe <ada@example.org>",
        "commit": "abc123",
        "results": f"sha256:{digest} r.json",
    }
    capsys.readouterr()


def test_the_author_is_gits(monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "config", "user.name", "Grace"], check=True)
    subprocess.run(["git", "config", "user.email", "g@example.org"], check=True)
    monkeypatch.delenv("GIT_AUTHOR_NAME")
    monkeypatch.delenv("GIT_AUTHOR_EMAIL")
    update(speed(*STEADY))
    assert entry()["provenance"]["author"] == "Grace <g@example.org>"


def test_without_git_the_ci_names_the_author(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_AUTHOR_NAME")
    monkeypatch.delenv("GIT_AUTHOR_EMAIL")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("GITHUB_ACTOR", "octo")
    update(speed(*STEADY))
    assert entry()["provenance"]["author"] == "octo"


# What it refuses.


def test_too_few_sessions_are_refused(capsys: Capture) -> None:
    assert update(speed(1000.0)) == 1
    assert capsys.readouterr() == (
        "Nothing recorded in baselines; 1 refused.\n",
        "refused: t.py::test_speed: 1 session measured, and a judge of noise needs 5\n"
        f"  {SPEED}: {KEY}\n"
        "  Repeat the run with --inferperf-set=sessions=10, or accept a baseline without known error: "
        "--accept-uncalibrated\n",
    )
    assert not SPEED.exists()
    assert update(speed(1000.0), options=("--accept-uncalibrated",)) == 0
    assert len(entry()["metrics"]["output_throughput"]["sessions"]) == 1


def test_fewer_sessions_than_the_mark_asks_for_are_refused(capsys: Capture) -> None:
    assert update(speed(*STEADY, sessions=8), options=("--accept-uncalibrated",)) == 1
    assert "5 sessions measured, and the mark asks for 8" in capsys.readouterr().err
    assert update(speed(*STEADY, sessions=5)) == 0


def test_a_finer_precision_with_worse_answers_is_refused(capsys: Capture) -> None:
    update(score("NVFP4", 180))
    capsys.readouterr()
    assert update(score("FP8", 150)) == 1
    assert capsys.readouterr().err.startswith(
        "refused: t.py::test_sums[FP8]: FP8 is finer than NVFP4 and answers worse: as a baseline it would be too lax\n"
        f"  {SCORES}: sums-exact_match FP8\n"
        "  vs NVFP4 0.9  0.75  worse on 30 questions and better on 0, a loss of at least 0.1"
    )
    assert update(score("FP8", 150), options=(*ALL, "--accept-regression")) == 0


def test_a_finer_precision_within_the_noise_is_recorded() -> None:
    update(score("NVFP4", 180))
    assert update(score("FP8", 179)) == 0


def test_a_coarser_precision_may_be_worse() -> None:
    update(score("FP8", 180))
    assert update(score("NVFP4", 150)) == 0


def test_of_one_run_the_finer_precision_is_refused_whatever_the_order(capsys: Capture) -> None:
    assert update(score("BF16", 100), score("NVFP4", 180)) == 1
    assert list(json.loads(SCORES.read_text())["tasks"]["sums-exact_match"]["scores"]) == ["NVFP4"]


def test_an_invalid_run_is_refused(capsys: Capture) -> None:
    record = speed(*STEADY)
    assert update(replace(record, result=replace(record.result, invalid="throttled"))) == 1
    assert "the run is invalid: throttled" in capsys.readouterr().err


def test_small_losses_do_not_add_up_unseen(capsys: Capture) -> None:
    """Each step is within the tolerance of 5 %; the second is beyond it together with the first."""
    update(speed(*STEADY, git_commit="c1"))
    recorded = entry()["provenance"]["recorded"]
    assert update(speed(*(0.97 * value for value in STEADY)), options=ALL) == 0
    anchor = {"level": 1000.0, "recorded": recorded, "commit": "c1"}
    assert entry()["metrics"]["output_throughput"]["anchor"] == anchor
    capsys.readouterr()
    lower = tuple(0.94 * value for value in STEADY)
    assert update(speed(*lower), options=ALL) == 1
    assert (
        f"  output_throughput  1000 -> 940 tok/s (-6.0 % since {recorded[:10]}, allowed 5 %)\n"
        in capsys.readouterr().err
    )
    assert update(speed(*lower), options=(*ALL, "--accept-regression")) == 0
    # What was accepted is the level that later losses are counted from.
    assert "anchor" not in entry()["metrics"]["output_throughput"]
    assert update(speed(*(0.91 * value for value in STEADY)), options=ALL) == 0


def test_the_anchor_goes_where_the_level_is_reached_again() -> None:
    update(speed(*STEADY))
    update(speed(*(0.97 * value for value in STEADY)), options=ALL)
    assert update(speed(*(1.01 * value for value in STEADY)), options=ALL) == 0
    assert "anchor" not in entry()["metrics"]["output_throughput"]


def test_small_losses_of_a_score_do_not_add_up_unseen(capsys: Capture) -> None:
    update(score("BF16", 800, questions=1000))
    assert update(score("BF16", 796, questions=1000), options=ALL) == 0
    capsys.readouterr()
    assert update(score("BF16", 792, questions=1000), options=ALL) == 1
    assert "exact_match  0.8 -> 0.792 (0.8 points worse since 20" in capsys.readouterr().err
    assert update(score("BF16", 792, questions=1000), options=(*ALL, "--accept-regression")) == 0
    assert update(score("BF16", 789, questions=1000), options=ALL) == 0


# Tighten, and patches.


def test_tighten_is_the_mode(capsys: Capture) -> None:
    update(speed(*STEADY))
    capsys.readouterr()
    faster = speed(*(1.2 * value for value in STEADY))
    assert main(["baseline", "tighten", results(faster), "--reason", "kernel"]) == 0
    assert "1000.0  ->  1200.0  tok/s  +20.0 % better" in capsys.readouterr().out
    assert main(["baseline", "tighten", results(speed(*STEADY))]) == 0
    assert capsys.readouterr().out == "Nothing recorded in baselines.\n"


def test_a_terminal_is_asked_for_the_reason(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    update(speed(*STEADY))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _prompt: "asked and answered")
    assert update(speed(*(0.99 * value for value in STEADY)), options=("--mode", "all")) == 0
    assert entry()["provenance"]["reason"] == "asked and answered"


@pytest.mark.parametrize("root", ["baselines", 'base lines/Grüße "x"'])
def test_git_applies_a_patch(capsys: Capture, root: str) -> None:
    """A new file, and then a change, each as a patch that touches nothing by itself."""
    subprocess.run(["git", "init", "-q"], check=True)
    Path(root).mkdir(parents=True, exist_ok=True)
    path = Path(root) / SPEED.relative_to("baselines")
    for record, options in (
        (speed(*STEADY), ()),
        (speed(*(0.97 * value for value in STEADY)), ALL),
    ):
        before = path.read_bytes() if path.exists() else None
        arguments = ["baseline", "update", results(record), *options, "--root", root]
        assert main([*arguments, "--patch", "change.patch"]) == 0
        assert (path.read_bytes() if path.exists() else None) == before
        assert capsys.readouterr().out.endswith("Nothing was recorded. To apply: git apply change.patch\n")
        subprocess.run(["git", "apply", "change.patch"], check=True)
        applied = json.loads(path.read_text())
        path.unlink() if before is None else path.write_bytes(before)
        assert main(arguments) == 0
        written = json.loads(path.read_text())
        for document in (applied, written):
            for item in document["entries"].values():
                del item["provenance"]["recorded"]
        assert applied == written
        capsys.readouterr()


def test_a_patch_of_nothing_is_no_file(capsys: Capture) -> None:
    update(speed(*STEADY))
    assert update(speed(*STEADY), options=("--patch", "change.patch")) == 0
    assert not Path("change.patch").exists()


def test_a_patch_that_cannot_be_written(capsys: Capture) -> None:
    assert update(speed(*STEADY), options=("--patch", "baselines")) == 2
    assert capsys.readouterr().err == "inferperf: baselines: cannot be written: it is a folder. Name a file.\n"
