"""`inferperf selftest` on the scripted project: gates that work are proven, and gates turned around are caught."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.cli import main

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]

GATES = """\
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", quant=["BF16", "NVFP4"])


@pytest.mark.inferperf(isl=16, osl=8, concurrency=2, rounds=3)
@pytest.mark.throughput_floor("output_throughput_per_user", output_throughput_per_user=50)
@pytest.mark.latency_ceiling("tpot_ms.p50", peak_memory_gib=1.5)
def test_serving(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task="gsm8k")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
@pytest.mark.accuracy_floor(points=80)
def test_gsm8k(inferperf):
    inferperf.evaluate()
"""

MORE = """

@pytest.mark.inferperf(isl=16, osl=4, concurrency=2, sessions=2)
@pytest.mark.throughput_floor("output_throughput_per_user")
@pytest.mark.latency_ceiling("tpot_ms.p50")
def test_uncalibrated(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task="gsm8k", early_stop=False)
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=3.0)
@pytest.mark.accuracy_floor(points=80)
def test_whole(inferperf):
    inferperf.evaluate()
"""

SPEEDUPS = """\
import pytest


@pytest.mark.inferperf(model="tiny-llama", quant=["BF16", "NVFP4"], isl=16, osl=8, concurrency=2)
@pytest.mark.speedup_floor(
    "output_throughput_per_user", "tpot_ms.p50", over={"engine_options": {"use_cache": False}}, ratio=1.5
)
def test_speedup(inferperf):
    inferperf.measure()
"""

SCRIPT = {"by": {"use_cache=false": {"tpot_ms": 20.0}}}


def make_project(folder: Path, gates: str = GATES) -> None:
    (folder / "conftest.py").write_text((ROOT / "tests/plugin/project/conftest.py").read_text())
    # What a run does not need is not loaded: these tests start many.
    plugins = " ".join(f"-p no:{name}" for name in ("cacheprovider", "benchmark", "xdist", "rerunfailures", "anyio"))
    # Whoever shares this machine is not what is tested here.
    watched = "inferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n"
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers --strict-config {plugins}\n{watched}")
    (folder / "tiny-llama").mkdir()
    (folder / "tiny-llama" / "config.json").write_text("{}")
    (folder / "test_gates.py").write_text(gates)
    (folder / "engine.json").write_text(json.dumps(SCRIPT))


def record(folder: Path) -> None:
    """Record every baseline of the project."""
    command = [sys.executable, "-m", "pytest", "-q", "--inferperf-update=new", "--inferperf-update-in-ci"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert (folder / "baselines/accuracy/tiny-llama.json").exists()


def files(folder: Path) -> dict[str, bytes]:
    """Return everything in the project but the logs of its engine and what Python leaves."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log" and "__pycache__" not in path.parts
    }


@pytest.fixture(autouse=True)
def _outside_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose baselines are all recorded; nothing in these tests may change it."""
    folder = tmp_path_factory.mktemp("recorded")
    make_project(folder, GATES + MORE)
    (folder / "test_speedup.py").write_text(SPEEDUPS)
    record(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ready(project: Path, recorded: Path) -> Path:
    """A fresh project with every baseline."""
    shutil.copytree(recorded / "baselines", project / "baselines")
    return project


def selftest(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the self-test here; return its status and its report."""
    path = Path("report.json")
    status = main(["selftest", "--json", str(path), *arguments])
    report: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return status, report


def test_every_gate_is_proven(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(recorded)
    before = files(recorded)
    status, report = selftest("-k", "NVFP4")
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert report["proven"] is True
    assert [(gate["gate"], gate["clean"], gate["found"], gate["problem"]) for gate in report["gates"]] == [
        ("output_throughput_per_user", "PASS", "FAIL", ""),
        ("output_throughput_per_user", "PASS", "FAIL", ""),
        ("tpot_ms.p50", "PASS", "FAIL", ""),
        ("peak_memory_gib", "PASS", "FAIL", ""),
        ("exact_match loss vs BF16", "PASS", "FAIL", ""),
        ("unparseable rise vs BF16", "PASS", "FAIL", ""),
        ("exact_match", "PASS", "FAIL", ""),
        ("output_throughput_per_user", "PASS", "FAIL", ""),
        ("tpot_ms.p50", "PASS", "FAIL", ""),
        ("exact_match loss vs BF16", "PASS", "FAIL", ""),
        ("unparseable rise vs BF16", "PASS", "FAIL", ""),
        ("exact_match", "PASS", "FAIL", ""),
        ("output_throughput_per_user vs engine_options.use_cache=false", "PASS", "FAIL", ""),
        ("tpot_ms.p50 vs engine_options.use_cache=false", "PASS", "FAIL", ""),
    ]
    assert "14 of 14 gates pass clean and fail with a regression" in shown
    assert files(recorded) == before


def test_missing_baselines_are_recorded_in_the_copy_alone(project: Path, capsys: Capture) -> None:
    before = files(project)
    status, report = selftest("--keep", "kept", "-k", "test_serving or BF16")
    assert status == 0, capsys.readouterr().out
    assert len(report["gates"]) == 11
    assert {name for name in files(project) if not name.startswith("kept/")} == set(before)
    names = ("clean", "record", "clean-again", "injected")
    assert {path.name for path in (project / "kept").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("json", "log")
    }
    # Each test gets what its gates need, and no more.
    injected = {
        record.nodeid.partition("::")[2].partition("[")[0]: record.result.context["inferperf_inject"]
        for record in read_result_file(project / "kept" / "injected.json").records
    }
    assert [item.partition(":")[0] for item in injected["test_serving"].split(", ")] == ["slowdown", "memory"]
    assert [item.partition(":")[0] for item in injected["test_gsm8k"].split(", ")] == ["accuracy"]
    assert "record: 3 tests had no baseline on this machine" in capsys.readouterr().out


def test_a_reference_that_nobody_recorded_is_no_proof(project: Path, capsys: Capture) -> None:
    status, report = selftest("-k", "NVFP4 and gsm8k")
    assert status == 1
    problems = {gate["gate"]: gate["problem"] for gate in report["gates"]}
    assert problems["exact_match loss vs BF16"].startswith("does not pass as it is: has no baseline (")
    # The floor beside it is proven all the same.
    assert problems["exact_match"] == ""
    assert "1 of 2 gates pass clean and fail with a regression" in capsys.readouterr().out


def test_a_gate_that_is_red_already_is_no_proof(ready: Path) -> None:
    (ready / "engine.json").write_text(json.dumps({"tpot_ms": 12.0}))
    status, report = selftest("-k", "NVFP4 and serving")
    assert status == 1
    found = {gate["gate"]: (gate["clean"], gate["found"]) for gate in report["gates"]}
    assert found["tpot_ms.p50"] == ("FAIL", "")
    assert found["peak_memory_gib"] == ("PASS", "FAIL")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"failed": 1}, "3 of 6 requests failed"),
        ({"short_by": 1}, "request 0 returned 7 tokens"),
    ],
)
def test_an_invalid_run_is_no_proof(ready: Path, script: dict[str, int], why: str) -> None:
    (ready / "engine.json").write_text(json.dumps(script))
    status, report = selftest("-k", "NVFP4 and serving")
    assert status == 1
    assert {gate["clean"] for gate in report["gates"]} == {"INVALID"}
    assert all(gate["problem"].startswith(f"does not pass as it is: {why}") for gate in report["gates"])


def test_an_engine_that_does_not_build_is_no_proof(ready: Path, capsys: Capture) -> None:
    (ready / "engine.json").write_text(json.dumps({"build_error": "no memory left"}))
    status, report = selftest("-k", "NVFP4 and serving")
    assert status == 1
    assert report["gates"] == []
    assert report["problems"] == ["test_gates.py::test_serving[NVFP4-isl16-osl8-c2]: not judged: no memory left"]
    assert (
        "BAD: test_gates.py::test_serving[NVFP4-isl16-osl8-c2]: not judged: no memory left" in capsys.readouterr().out
    )


def test_a_gate_too_loose_to_catch_anything_is_no_proof(ready: Path) -> None:
    gates = GATES.replace("output_throughput_per_user=50", "output_throughput_per_user=1")
    (ready / "test_gates.py").write_text(gates)
    status, report = selftest("-k", "NVFP4 and serving")
    assert status == 1
    (loose,) = [gate["problem"] for gate in report["gates"] if gate["problem"]]
    assert loose == "100 is 100 times as good as it asks for: such a limit catches nothing"


def test_skipped_tests_are_listed(project: Path, capsys: Capture) -> None:
    skipped = '\n\n@pytest.mark.requires_gpu(count=64)\n@pytest.mark.inferperf(task="mmlu")\n'
    skipped += "@pytest.mark.accuracy_floor(points=80)\ndef test_big(inferperf):\n    inferperf.evaluate()\n"
    (project / "test_gates.py").write_text(GATES + skipped)
    status, report = selftest("-k", "NVFP4 and (big or serving)")
    assert status == 0
    (reason,) = report["skipped"].values()
    assert "64" in reason
    assert "skipped: test_gates.py::test_big[NVFP4-mmlu]: " in capsys.readouterr().out
    status, report = selftest("-k", "NVFP4 and big")
    assert status == 1
    assert "0 of 0 gates" in capsys.readouterr().out


@pytest.mark.newest
def test_strict_wants_gates_that_detect_their_own_tolerance(ready: Path, capsys: Capture) -> None:
    status, report = selftest("-k", "NVFP4 and gsm8k", "--strict")
    shown = capsys.readouterr().out
    assert status == 1
    assert report["proven"] is True
    (loss,) = [gate for gate in report["gates"] if gate["detects_its_tolerance"] is False]
    assert loss["tolerance"] == 3.0
    assert loss["detectable"] == pytest.approx(3.36, abs=0.01)
    assert "cannot detect its own tolerance of 3 points: relies on 3.36 or more; 370 more questions would do" in shown
    (ready / "test_gates.py").write_text(GATES.replace("points=3.0", "points=6.0"))
    assert selftest("-k", "NVFP4 and gsm8k", "--strict")[0] == 0
    assert "       detects its own tolerance of 6 points\n" in capsys.readouterr().out


@pytest.mark.newest
def test_a_lost_passage_is_no_sum_of_independent_questions(ready: Path) -> None:
    together = MORE[MORE.index("@pytest.mark.inferperf(task") :].replace("early_stop=False", 'group_by="passage"')
    (ready / "test_gates.py").write_text((GATES + "\n\n" + together).replace("points=3.0", "points=8.0"))
    # One passage of ten questions is lost.
    (ready / "engine.json").write_text(json.dumps({"right": {"BF16": 900, "NVFP4": 890}}))
    status, report = selftest("-k", "NVFP4 and (gsm8k or whole)")
    assert status == 0
    alone, grouped = (gate["detectable"] for gate in report["gates"] if "loss" in gate["gate"])
    assert grouped > alone == 8.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-k", "no_such_test"], "no test with a gate is selected"),
        (["--no-such-option"], "--no-such-option"),
        (["no_such_file.py"], "no_such_file.py"),
        (["--inferperf-update=new"], "--inferperf-update is not for you to give"),
        (["--inferperf-against=quant=BF16"], "--inferperf-against is not for you to give"),
        (["--inferperf-inject=slowdown:5%"], "--inferperf-inject is not for you to give"),
        (["--", "--inferperf-json=x.json"], "--inferperf-json is not for you to give"),
    ],
)
def test_bad_usage(project: Path, capsys: Capture, arguments: list[str], text: str) -> None:
    assert main(["selftest", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_other_commands_take_no_unknown_arguments(project: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["baseline", "show", "--no-such-option"])
    assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


def test_wrong_marks_are_no_proof(project: Path, capsys: Capture) -> None:
    (project / "test_gates.py").write_text(GATES.replace("tpot_ms.p50", "tpot_ms.p51"))
    assert main(["selftest"]) == 1
    shown = capsys.readouterr().err
    assert "pytest ended with exit status 2 in the clean run" in shown
    assert "unknown statistic 'p51'" in shown


def test_options_of_the_user_reach_pytest_and_stop_at_no_failure(project: Path) -> None:
    (project / "elsewhere").mkdir()
    status, report = selftest("-x", "--inferperf-baselines=elsewhere", "test_gates.py", "-k", "BF16")
    assert status == 0
    assert len(report["gates"]) == 7
    assert list((project / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_self_test_leaves_nothing(
    project: Path, tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    (project / "engine.json").write_text(json.dumps({"round_s": 60.0}))
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "pytest_inferperf.cli", "selftest", "-k", "NVFP4 and serving"]
    run = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and these tests may run there.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (project / "engines.log").exists():
        assert time.monotonic() < deadline, "no engine was built"
        time.sleep(0.05)
    children = psutil.Process(run.pid).children(recursive=True)
    assert list(temporary.glob("inferperf-selftest-*"))
    run.send_signal(number)
    _, shown = run.communicate(timeout=30)
    assert run.returncode == 130
    assert shown == "inferperf: stopped\n"
    assert not list(temporary.glob("inferperf-selftest-*"))
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    # The run was interrupted, not killed: it closed its engine.
    assert (project / "engines.log").read_text().splitlines() == ["build NVFP4", "close NVFP4"]


# What a self-test is for: each line of the package that says which way is worse, turned around. Several at once, each with
# the gates that it alone makes useless.


@dataclass(frozen=True, kw_only=True)
class Mutation:
    module: str
    old: str
    new: str
    gates: frozenset[str]
    """What is not proven any more: parts of `test/gate`."""


CALIBRATED = frozenset({"serving/output_throughput_per_user", "serving/tpot_ms.p50"})
ABSOLUTE = frozenset({"serving/output_throughput_per_user (limit)", "serving/peak_memory_gib"})
UNCALIBRATED = frozenset({"uncalibrated/output_throughput_per_user", "uncalibrated/tpot_ms.p50"})
SPEEDUP = frozenset({"speedup/output_throughput_per_user", "speedup/tpot_ms.p50"})
LOSS = frozenset({"gsm8k/exact_match loss", "whole/exact_match loss"})
ACCURACY_IN_PART = frozenset({"gsm8k/exact_match"})
ACCURACY_WHOLE = frozenset({"whole/exact_match"})
UNPARSEABLE_IN_PART = frozenset({"gsm8k/unparseable rise"})
UNPARSEABLE_WHOLE = frozenset({"whole/unparseable rise"})
DECIDED = "Status.INCONCLUSIVE if found.status is Decision.OPEN else Status(found.status.value)"


def turned(module: str, old: str, new: str, gates: frozenset[str]) -> Mutation:
    return Mutation(module=f"pytest_inferperf.{module}", old=old, new=new, gates=gates)


ROUNDS = {
    "signs and comparisons": (
        turned(
            "gates.sessions",
            "sign = 1.0 if higher_is_better else -1.0\n    mean0",
            "sign = -1.0 if higher_is_better else 1.0\n    mean0",
            CALIBRATED,
        ),
        turned(
            "gates.sessions",
            "sign = 1.0 if higher_is_better else -1.0\n    return",
            "sign = -1.0 if higher_is_better else 1.0\n    return",
            SPEEDUP,
        ),
        turned(
            "gates.performance",
            "baseline * (1 - tolerance if higher else 1 + tolerance)",
            "baseline * (1 + tolerance if higher else 1 - tolerance)",
            UNCALIBRATED,
        ),
        turned(
            "gates.paired",
            "x = (old[:answered] - new) if higher_is_better else (new - old[:answered])",
            "x = (new - old[:answered]) if higher_is_better else (old[:answered] - new)",
            LOSS,
        ),
        turned(
            "gates.accuracy", "passed = measured >= gate.points", "passed = measured <= gate.points", ACCURACY_WHOLE
        ),
        turned(
            "gates.accuracy",
            "Status.PASS if lower >= gate.points else Status.FAIL",
            "Status.FAIL if lower >= gate.points else Status.PASS",
            ACCURACY_IN_PART,
        ),
        turned("gates.accuracy", "sum(rises) / used <= limit", "sum(rises) / used >= limit", UNPARSEABLE_WHOLE),
        turned(
            "gates.accuracy",
            "Status.PASS if upper <= limit else Status.FAIL",
            "Status.FAIL if upper <= limit else Status.PASS",
            UNPARSEABLE_IN_PART,
        ),
    ),
    "directions that are passed on": (
        turned(
            "gates.performance",
            "higher_is_better=higher, tolerance=tolerance",
            "higher_is_better=not higher, tolerance=tolerance",
            CALIBRATED,
        ),
        turned(
            "gates.performance",
            "return measured >= limit if self.higher else measured <= limit",
            "return measured <= limit if self.higher else measured >= limit",
            ABSOLUTE | UNCALIBRATED,
        ),
        turned(
            "gates.speedup",
            "higher_is_better=metric.higher_is_better, tolerance",
            "higher_is_better=not metric.higher_is_better, tolerance",
            SPEEDUP,
        ),
        turned(
            "gates.accuracy",
            "higher_is_better=result.higher_is_better,\n            groups=",
            "higher_is_better=not result.higher_is_better,\n            groups=",
            LOSS,
        ),
        turned("gates.accuracy", "int(new) - int(old)", "int(old) - int(new)", UNPARSEABLE_IN_PART | UNPARSEABLE_WHOLE),
    ),
    "gates that cannot fail": (
        turned("gates.performance", DECIDED, "Status.PASS", CALIBRATED),
        turned("gates.performance", "Status.PASS if passed else Status.FAIL", "Status.PASS", ABSOLUTE | UNCALIBRATED),
        turned("gates.speedup", DECIDED, "Status.PASS", SPEEDUP),
        turned("gates.accuracy", "Decision.FAIL: Status.FAIL", "Decision.FAIL: Status.PASS", LOSS),
        turned("gates.accuracy", "passed = measured >= gate.points", "passed = measured >= 0", ACCURACY_WHOLE),
        turned(
            "gates.accuracy", "Status.PASS if lower >= gate.points else Status.FAIL", "Status.PASS", ACCURACY_IN_PART
        ),
        turned(
            "gates.accuracy",
            "Status.PASS if 100 * sum(rises) / used <= limit else Status.FAIL",
            "Status.PASS",
            UNPARSEABLE_WHOLE,
        ),
        turned("gates.accuracy", "Status.PASS if upper <= limit else Status.FAIL", "Status.PASS", UNPARSEABLE_IN_PART),
    ),
    "what is compared": (
        turned(
            "gates.performance",
            "judge_sessions(stored.sessions, sessions,",
            "judge_sessions(stored.sessions, stored.sessions,",
            CALIBRATED,
        ),
        turned("gates.sessions", "math.log(ratio) + sign", "-math.log(ratio) + sign", SPEEDUP),
        turned(
            "gates.accuracy",
            "_rounded(answers.outcomes),\n            tolerance",
            "[reference.outcomes[document] for document in answers.order],\n            tolerance",
            LOSS,
        ),
    ),
    "the decision itself": (
        turned("gates.looks", "if upper < tolerance:", "if upper > tolerance:", CALIBRATED | SPEEDUP | LOSS),
    ),
}


@pytest.fixture
def _mutations(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def selftest_of(mutations: Sequence[Mutation], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the self-test of the changed package; its report is in `report.json` of the folder above."""
    changes = [[item.module, item.old, item.new] for item in mutations]
    for module, old, _ in changes:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert source.count(old) == 1, f"{module}: {old!r} is not there once"
    monkeypatch.setenv("INFERPERF_MUTATIONS", json.dumps(changes))
    return main(["selftest", "--json", "../report.json", "-p", "mutation_plugin", *arguments])


def unproven() -> set[str]:
    """Return the gates of the last report that a mutation made useless, by the names of `Mutation.gates`."""
    problems: dict[str, str] = {}
    for gate in json.loads(Path("../report.json").read_text())["gates"]:
        name = f"{gate['nodeid'].partition('::test_')[2].partition('[')[0]}/{gate['gate'].partition(' vs ')[0]}"
        # The second gate on a metric is the plain limit.
        problems[f"{name} (limit)" if name in problems else name] = gate["problem"]
    found = {name: problem for name, problem in problems.items() if problem}
    assert all(item.startswith(("does not pass as it is", "does not fail")) for item in found.values()), found
    return set(found)


@pytest.mark.newest
@pytest.mark.usefixtures("_mutations")
@pytest.mark.parametrize("name", ROUNDS)
def test_a_gate_turned_around_is_caught(name: str, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recorded)
    before = files(recorded)
    assert selftest_of(ROUNDS[name], monkeypatch, "-k", "NVFP4") == 1
    assert unproven() == set().union(*(item.gates for item in ROUNDS[name]))
    assert files(recorded) == before


@pytest.mark.newest
@pytest.mark.usefixtures("_mutations")
def test_a_metric_turned_around_is_caught(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(recorded)
    row = 'name="tpot_ms",\n        unit="ms",\n        higher_is_better='
    direction = turned("model.metrics", f"{row}False", f"{row}True", frozenset())
    upside_down = turned("measure.summary", "speeds = [1000 / value for", "speeds = [1000 * value for", frozenset())
    # A ceiling of a metric that is better when higher is refused; a speedup takes either.
    assert selftest_of([direction], monkeypatch, "-k", "NVFP4") == 1
    assert "use throughput_floor" in capsys.readouterr().err
    assert selftest_of([direction, upside_down], monkeypatch, "test_speedup.py", "-k", "NVFP4") == 1
    assert unproven() == SPEEDUP


@pytest.mark.newest
@pytest.mark.usefixtures("_mutations")
def test_a_gate_that_is_not_judged_is_caught(recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(recorded)
    # Of a floor and a loss the rows are as many as the gates all the same: a loss has two.
    fewer = turned("gates.judge", "    for gate in gates:\n", "    for gate in gates[:-1]:\n", frozenset())
    assert selftest_of([fewer], monkeypatch, "-k", "NVFP4 and (gsm8k or serving)") == 1
    problems = json.loads(Path("../report.json").read_text())["problems"]
    assert sorted(item.partition("[")[0].partition("::")[2] for item in problems) == [
        "test_gsm8k",
        "test_serving",
        "test_whole",
    ]
    assert all("not judged" in item for item in problems)


@pytest.mark.newest
@pytest.mark.usefixtures("_mutations")
def test_drift_decides_nothing(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutations are not what fails: drift is a note, and turned around it changes no verdict."""
    monkeypatch.chdir(recorded)
    sign = turned("gates.drift", "sign = 1 if higher", "sign = -1 if higher", frozenset())
    alarm = turned("gates.drift", "    causes = []\n", '    causes = ["always"]\n', frozenset())
    assert selftest_of([sign, alarm], monkeypatch, "-k", "NVFP4 and gsm8k") == 0
