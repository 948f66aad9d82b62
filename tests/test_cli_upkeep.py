"""`inferperf baseline prune | migrate | check`: what they remove, rewrite and find, and what they refuse."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_inferperf.baselines import upkeep
from pytest_inferperf.baselines.cases import CollectedCase, CollectedCases, write_cases
from pytest_inferperf.baselines.check import RULES
from pytest_inferperf.baselines.entries import (
    AccuracyEntry,
    MetricBaseline,
    PerformanceEntry,
    Provenance,
    ScoreEntry,
    accuracy_key,
    performance_key,
)
from pytest_inferperf.baselines.format import (
    AccuracyFile,
    PerformanceFile,
    dump_accuracy,
    dump_performance,
)
from pytest_inferperf.baselines.store import accuracy_identity, performance_identity, performance_path
from pytest_inferperf.cli import main
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.gates import AccuracyLossCeiling
from pytest_inferperf.model.results import Hardware

Capture = pytest.CaptureFixture[str]
SPEED, SCORES = Path("baselines/performance/amd-epyc-2x/tiny.json"), Path("baselines/accuracy/tiny.json")
NOW = "2026-11-21T00:00:00+00:00"
GOOD = (1.0,) * 9 + (0.0,)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("baselines").mkdir()


def engine(quant: str = "NVFP4") -> EngineSpec:
    return EngineSpec(model="/m/Tiny", served_model_name="tiny", quant=quant)


def load(isl: int) -> Case:
    return Case(engine=engine(), workload=Workload(isl=isl, osl=32))


SUMS = Case(engine=engine(), task=Task(name="sums"))


def write_speed(
    *sizes: int,
    path: Path = SPEED,
    recorded: str = NOW,
    context: Mapping[str, str] | None = None,
    sessions: tuple[tuple[float, ...], ...] = ((1000.0,),),
    tolerance: float | None = None,
) -> None:
    entries = {}
    for isl in sizes:
        case = load(isl)
        entries[performance_key(case)] = PerformanceEntry(
            path="",
            key=performance_key(case),
            identity=performance_identity(case),
            metrics={"output_throughput": MetricBaseline(sessions=sessions, tolerance=tolerance)},
            warmup_rounds=1,
            provenance=Provenance(kind="measured", recorded=recorded),
            context=context or {},
        )
    file = PerformanceFile(model="tiny", hardware=Hardware(name="AMD EPYC", count=2, kind="cpu"), entries=entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_performance(file))


def write_scores(
    *precisions: str,
    outcomes: tuple[float, ...] = GOOD,
    score: float = 0.9,
    unread: bool = False,
    task_sizes: tuple[int, ...] | None = None,
) -> None:
    scores = {
        name: ScoreEntry(
            score=score,
            outcomes=outcomes,
            unparseable=(unread,) * len(outcomes),
            task_sizes=task_sizes,
            provenance=Provenance(kind="measured", recorded=NOW),
        )
        for name in precisions
    }
    key = accuracy_key(SUMS, "exact_match")
    task = AccuracyEntry(
        path="",
        key=key,
        identity=accuracy_identity(SUMS, "exact_match"),
        metric="exact_match",
        higher_is_better=True,
        documents_digest="d1",
        num_documents=len(outcomes),
        scores=scores,
    )
    SCORES.parent.mkdir(parents=True, exist_ok=True)
    SCORES.write_text(dump_accuracy(AccuracyFile(model="tiny", tasks={key: task})))


def collected(*cases: CollectedCase | Case, partial: str = "") -> str:
    found = tuple(
        item if isinstance(item, CollectedCase) else CollectedCase(nodeid="t.py::t", case=item, gates=())
        for item in cases
    )
    write_cases(Path("cases.json"), CollectedCases(partial=partial, cases=found))
    return "cases.json"


def check(*arguments: str) -> int:
    return main(["baseline", "check", *arguments])


def prune(*arguments: str) -> int:
    return main(["baseline", "prune", *arguments])


# Prune.


def test_prune_removes_what_no_case_reaches_and_nothing_else(capsys: Capture) -> None:
    write_speed(64, 128)
    write_scores("BF16", "FP8", "NVFP4")
    gate = AccuracyLossCeiling(reference="BF16", points=1.0)
    sums = CollectedCase(nodeid="t.py::sums", case=SUMS, gates=(gate,))
    assert prune("--cases", collected(load(64), sums)) == 0
    assert capsys.readouterr() == (
        f"{SPEED}\n  NVFP4-isl128-osl32-c1\n{SCORES}\n  sums-exact_match FP8\n\n"
        "2 values removed. Review with git diff baselines, then commit.\n",
        "",
    )
    assert list(json.loads(SPEED.read_text())["entries"]) == ["NVFP4-isl64-osl32-c1"]
    # The reference of a gate is reached by the gate.
    assert list(json.loads(SCORES.read_text())["tasks"]["sums-exact_match"]["scores"]) == ["BF16", "NVFP4"]
    assert prune("--cases", "cases.json") == 0
    assert capsys.readouterr().out == "Nothing to prune in baselines: 2 cases reach all of it.\n"


def test_a_file_that_holds_nothing_any_more_goes(capsys: Capture) -> None:
    write_speed(64)
    write_scores("NVFP4")
    assert prune("--cases", collected(SUMS)) == 0
    assert not SPEED.exists()
    assert SCORES.exists()


@pytest.mark.parametrize(
    ("partial", "cases", "message"),
    [
        (
            "-k was given",
            (SUMS,),
            "refused: not pruned: -k was given, so what is not reached may belong to a test that was not collected. Collect "
            "the whole suite.\n",
        ),
        ("", (), "refused: not pruned: no case was collected. Name the folders of the suites.\n"),
    ],
)
def test_prune_wants_a_full_selection(capsys: Capture, partial: str, cases: tuple[Case, ...], message: str) -> None:
    write_speed(64)
    before = SPEED.read_bytes()
    assert prune("--cases", collected(*cases, partial=partial)) == 1
    assert capsys.readouterr() == ("", message)
    assert SPEED.read_bytes() == before


def test_prune_as_a_patch(capsys: Capture) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    write_speed(64)
    write_scores("BF16", "NVFP4")
    before = SPEED.read_bytes(), SCORES.read_bytes()
    assert prune("--cases", collected(SUMS), "--patch", "prune.patch") == 0
    assert (SPEED.read_bytes(), SCORES.read_bytes()) == before
    subprocess.run(["git", "apply", "prune.patch"], check=True)
    assert not SPEED.exists()
    assert list(json.loads(SCORES.read_text())["tasks"]["sums-exact_match"]["scores"]) == ["NVFP4"]


def test_prune_removes_the_entry_of_another_server_with_the_same_key() -> None:
    """A key holds a command line in lower case letters, digits, `.` and `-`."""
    write_speed(64)
    data = json.loads(SPEED.read_text())
    (entry,) = data["entries"].values()
    entry["identity"]["serve"] = "srv -c 4"
    served = replace(load(64), engine=replace(engine(), serve="srv -C 4"))
    data["entries"] = {performance_key(served): entry}
    SPEED.write_text(json.dumps(data))
    assert prune("--cases", collected(replace(served, engine=replace(engine(), serve="srv -c 4")))) == 0
    assert SPEED.exists()
    assert prune("--cases", collected(served)) == 0
    assert not SPEED.exists()


def test_prune_collects_by_itself(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    write_speed(64, 128)
    Path("suite").mkdir()
    mark = 'pytest.mark.inferperf(model="org/tiny", quant="NVFP4", isl=64, osl=32)'
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("suite/test_it.py").write_text(
        f"import pytest\n\n@{mark}\ndef test_it(inferperf):\n    raise AssertionError\n"
    )
    assert prune("suite", "-p", "no:cacheprovider", "-k", "it") == 1
    assert capsys.readouterr().err.startswith("refused: not pruned: -k was given")
    Path("other").mkdir()
    Path("other/test_texts.py").write_text(f"TEXT = '@{mark}'\n")
    Path("other/test_more.py").write_text(Path("suite/test_it.py").read_text().replace("isl=64", "isl=128"))
    capsys.readouterr()
    # One of two suites is no full selection, whatever it holds.
    assert prune("suite", "-p", "no:cacheprovider") == 1
    assert capsys.readouterr().err.startswith(
        "refused: not pruned: other/test_more.py has inferperf marks and was not collected, so what is not reached"
    )
    assert prune("suite", "other", "-p", "no:cacheprovider") == 0
    assert "Nothing to prune" in capsys.readouterr().out
    Path("other/test_more.py").unlink()
    assert prune("suite", "-p", "no:cacheprovider") == 0
    assert list(json.loads(SPEED.read_text())["entries"]) == ["NVFP4-isl64-osl32-c1"]


def test_pytest_that_cannot_even_begin(capsys: Capture) -> None:
    assert prune("suite", "--no-such-option") == 2
    assert "pytest collected nothing (exit status 4). It said:\n" in capsys.readouterr().err


def test_a_file_of_cases_cut_short(capsys: Capture) -> None:
    Path("cases.json").write_text('{"cases": [')
    assert prune("--cases", "cases.json") == 2
    assert capsys.readouterr().err.endswith("It is written by pytest --collect-only --inferperf-cases=FILE.\n")
    assert prune("--cases", "none.json") == 2
    assert "none.json: cannot be read: No such file or directory." in capsys.readouterr().err
    assert prune("--cases", "cases.json", "suite") == 2
    assert "--cases goes without pytest arguments" in capsys.readouterr().err


# Migrate.


def test_migrate_rewrites_an_older_version(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a version before the first, which called the reason a comment."""

    def from_zero(name: str, data: dict[str, Any]) -> dict[str, Any]:
        assert name == "performance"
        for entry in data["entries"].values():
            entry["provenance"]["reason"] = entry["provenance"].pop("comment")
        return data | {"schema_version": 1}

    write_speed(64)
    newest = SPEED.read_text()
    SPEED.write_text(newest.replace('"schema_version": 1', '"schema_version": 0').replace('"reason"', '"comment"'))
    assert main(["baseline", "migrate"]) == 2
    assert "schema_version 0 is none that was ever written" in capsys.readouterr().err
    monkeypatch.setitem(upkeep.MIGRATIONS, 0, from_zero)
    assert main(["baseline", "migrate"]) == 0
    assert capsys.readouterr().out == f"{SPEED}\n\n1 file rewritten. Review with git diff baselines, then commit.\n"
    assert SPEED.read_text() == newest
    assert main(["baseline", "migrate"]) == 0
    assert capsys.readouterr().out == "Every file in baselines is as this version writes it.\n"


def test_migrate_sorts_what_was_edited_by_hand(capsys: Capture) -> None:
    write_scores("BF16")
    tidy = SCORES.read_text()
    SCORES.write_text(json.dumps(dict(reversed(json.loads(tidy).items()))))
    assert main(["baseline", "migrate", "--patch", "m.patch"]) == 0
    assert SCORES.read_text() != tidy
    subprocess.run(["git", "init", "-q"], check=True)
    assert main(["baseline", "migrate", "--patch", "m.patch"]) == 0
    subprocess.run(["git", "apply", "m.patch"], check=True)
    assert SCORES.read_text() == tidy


# Check.


def test_a_clean_folder(capsys: Capture) -> None:
    write_speed(64)
    write_scores("BF16", "NVFP4")
    assert check() == 0
    assert capsys.readouterr().out == "2 files in baselines: nothing found.\n"


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def _edit(old: str, new: str) -> Callable[[], None]:
    def edit() -> None:
        write_speed(64)
        text = SPEED.read_text()
        assert old in text
        SPEED.write_text(text.replace(old, new, 1))

    return edit


def _conflict() -> None:
    write_speed(64)
    lines = SPEED.read_text().splitlines()
    SPEED.write_text(
        "\n".join([*lines[:5], "<<<<<<< HEAD", *lines[5:8], "=======", *lines[5:8], ">>>>>>> x", *lines[8:]])
    )


def _twice() -> None:
    write_speed(64)
    write_speed(64, path=SPEED.with_name("tiny..copy.json"))


FINDINGS: dict[str, tuple[Callable[[], None], str, str]] = {
    "conflict": (
        _conflict,
        f"{SPEED}: line 6: a merge conflict marker (<<<<<<<). Resolve the conflict first.",
        "broken",
    ),
    "cut short": (lambda: _write(str(SPEED), '{"model": '), f"{SPEED}: line 1, column 11: not JSON", "broken"),
    "unknown key": (_edit('"model"', '"modle"'), f"{SPEED}: $: unknown key 'modle'. Did you mean 'model'?", "broken"),
    "throughput of 0": (_edit("1000.0", "0"), "0 is not valid: it must be above 0.", "broken"),
    "key and identity": (_edit('"isl": 64', '"isl": 65'), "the key does not fit its identity", "broken"),
    "duplicate key": (_edit('"model": "tiny",', '"model": "tiny", "model": "x",'), "duplicate key 'model'", "broken"),
    "no date": (
        lambda: write_speed(64, recorded="yesterday"),
        f"{SPEED}: NVFP4-isl64-osl32-c1: recorded 'yesterday' is not a date (ISO 8601)",
        "date",
    ),
    "a wrong clock": (
        lambda: write_speed(64, recorded="2999-01-01T00:00:00Z"),
        "recorded 2999-01-01T00:00:00Z has not come yet: a wrong clock, or an edit",
        "date",
    ),
    "wild sessions": (
        lambda: write_speed(64, sessions=((1000.0,), (10.0,))),
        "output_throughput: sessions from 10 to 1000 are no repetitions of one run",
        "degenerate",
    ),
    "wide tolerance": (
        lambda: write_speed(64, tolerance=0.9),
        "output_throughput: a tolerance of 90 % gates next to nothing",
        "degenerate",
    ),
    "all wrong": (
        lambda: write_scores("BF16", outcomes=(0.0,) * 10, score=0.0),
        f"{SCORES}: sums-exact_match BF16: a score of 0: nothing can be lost against it",
        "degenerate",
    ),
    "unreadable": (lambda: write_scores("BF16", unread=True), "no answer could be read", "degenerate"),
    "edited score": (
        lambda: write_scores("BF16", score=0.6),
        "sums-exact_match BF16: the score is 0.6, but its outcomes give 0.9",
        "edited",
    ),
    "edited score of tasks that weigh alike": (
        lambda: write_scores("BF16", score=0.9, task_sizes=(8, 2)),
        "sums-exact_match BF16: the score is 0.9, but its outcomes give 0.75",
        "edited",
    ),
    "tasks of other documents": (
        lambda: write_scores("BF16", score=0.75, task_sizes=(8, 3)),
        'scores["BF16"].task_sizes: 11 for 10 documents. Each is of one task.',
        "broken",
    ),
    "another folder": (
        lambda: write_speed(64, path=Path("baselines/performance/b200/tiny.json")),
        f"baselines/performance/b200/tiny.json: no run finds it here; it belongs into {SPEED}",
        "misplaced",
    ),
    "a copy": (
        _twice,
        f"tiny..copy.json: holds what belongs into {SPEED}, which exists too; merge the two",
        "duplicate",
    ),
    "stray": (lambda: _write("baselines/tiny.json", "{}"), "baselines/tiny.json: no run looks for it here", "stray"),
    "leftover": (lambda: _write("baselines/accuracy/.tiny.json.00ff.tmp", ""), ".tiny.json.00ff.tmp: no run", "stray"),
}


@pytest.mark.parametrize(("make", "message", "rule"), FINDINGS.values(), ids=FINDINGS)
def test_findings(capsys: Capture, make: Callable[[], None], message: str, rule: str) -> None:
    make()
    assert check() == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert message in line
    assert line.endswith(f"[{rule}]")
    assert line.startswith("baselines/")
    assert summary.endswith("1 finding.")


def test_tasks_that_weigh_alike_give_the_mean_of_their_means(capsys: Capture) -> None:
    """Eight right of eight and one right of two: 0.75, and 0.9 over all documents."""
    write_scores("BF16", score=0.75, task_sizes=(8, 2))
    assert check() == 0, capsys.readouterr().out


def test_every_rule_has_a_test() -> None:
    assert {rule for _, _, rule in FINDINGS.values()} | {"stale", "unreachable"} == set(RULES)


def test_a_link_out_of_the_folder(capsys: Capture, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (Path("baselines") / "accuracy").mkdir()
    (Path("baselines") / "accuracy/x.json").symlink_to(outside)
    assert check() == 2
    assert "Baselines stay inside their root folder." in capsys.readouterr().err


def test_stale_by_age_and_by_version(capsys: Capture) -> None:
    write_speed(64, recorded="2020-01-01T00:00:00+00:00", context={"torch": "2.9.1+cpu", "driver": "abc"})
    assert check() == 0
    assert check("--min-version", "torch=2.9") == 0
    capsys.readouterr()
    assert check("--max-age-days", "365", "--min-version", "torch=2.10", "--min-version", "driver=570") == 1
    out = re.sub(r"\d{4,} days", "N days", capsys.readouterr().out)
    where = f"{SPEED}: NVFP4-isl64-osl32-c1: recorded"
    assert out == (
        f"{where} N days ago; at most 365 are allowed [stale]\n"
        f"{where} with torch 2.9.1+cpu; 2.10 or newer is asked for [stale]\n"
        f"{where} with driver abc; 570 or newer is asked for [stale]\n"
        "1 file in baselines: 3 findings.\n"
    )


def test_unreachable_with_the_cases_of_a_full_selection(capsys: Capture) -> None:
    write_speed(64, 128)
    assert check("--cases", collected(load(64))) == 1
    assert f"{SPEED}: NVFP4-isl128-osl32-c1: no collected case looks it up [unreachable]\n" in capsys.readouterr().out
    assert check("--cases", collected(load(64), load(128))) == 0
    assert check("--cases", collected(load(64), partial="-m was given")) == 2
    assert "-m was given: what is unreachable is known of a full selection only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-version", "torch"), "--min-version 'torch': write NAME=VERSION, such as torch=2.13."),
        (("--min-version", "torch=new"), "--min-version 'torch=new': write NAME=VERSION, such as torch=2.13."),
        (("--max-age-days", "0"), "--max-age-days 0 must be above 0."),
        (("--root", "nowhere"), "nowhere: no such folder. Name the root folder of the baselines with --root."),
    ],
)
def test_bad_usage(capsys: Capture, arguments: tuple[str, ...], message: str) -> None:
    assert check(*arguments) == 2
    assert capsys.readouterr() == ("", f"inferperf: {message}\n")


@pytest.mark.newest
def test_ten_thousand_entries_are_checked_in_bounded_time() -> None:
    write_speed(*range(1, 10_001))
    start = time.monotonic()
    assert check() == 0
    # A fraction of it on an idle machine; the limit is there to find what grows with the square.
    assert time.monotonic() - start < 120


def test_a_file_that_may_not_be_read(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the operating system says it; root, who may run the tests, reads everything."""
    write_speed(64)

    def denied(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert check() == 1
    assert f"{SPEED}: cannot be read: Permission denied. [broken]\n" in capsys.readouterr().out


def test_the_pre_commit_hook_is_the_command() -> None:
    (hook,) = yaml.safe_load((Path(__file__).parents[1] / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "inferperf baseline check"
    assert hook["pass_filenames"] is False
    assert re.search(hook["files"], str(SPEED))
    assert re.search(hook["files"], f"tests/{SCORES}")
    assert not re.search(hook["files"], "package.json")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b/c", "Größe", "模型", "..", ".hidden"])
def test_whatever_a_model_is_called_its_file_stays_in_the_folder(capsys: Capture, name: str) -> None:
    case = replace(load(64), engine=replace(engine(), served_model_name=name))
    path = performance_path(Path("baselines"), Hardware(name="AMD EPYC", count=2, kind="cpu"), case)
    assert path.parent == SPEED.parent
    write_speed(64, path=path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": name}))
    assert check() == 0
    assert main(["baseline", "show", name]) == 0
    assert f"  {name} on 2 x AMD EPYC\n" in capsys.readouterr().out
