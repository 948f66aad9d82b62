"""The `inferperf` command, in full text."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf import __version__
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

Capture = pytest.CaptureFixture[str]
ENGINE = EngineSpec(model="/m/Tiny", served_model_name="tiny", quant="NVFP4")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("baselines").mkdir()


def speed(throughput: float, ttft_ms: float, *, failed: int = 0, nodeid: str = "t.py::test_speed") -> ResultRecord:
    item = one_round(
        {"output_throughput": throughput, "ttft_ms.p99": ttft_ms},
        num_failed_requests=failed,
        input_tokens=64,
        output_tokens=32,
    )
    info = engine_info(
        backend="transformers",
        hardware=Hardware(name="AMD EPYC", count=2, kind="cpu"),
        quant_algo="NVFP4",
        simulated=True,
    )
    result = CaseResult(
        case=Case(engine=ENGINE, workload=Workload(isl=64, osl=32, sessions=1)),
        engine=info,
        performance=PerformanceResult(sessions=(Session(rounds=(item,), warmup_rounds=1),)),
    )
    return ResultRecord(nodeid=nodeid, result=result)


def score(right: int, *, unparseable: int = 0) -> ResultRecord:
    outcomes = (1.0,) * right + (0.0,) * (10 - right)
    accuracy = AccuracyResult(
        task="sums",
        metric="exact_match",
        higher_is_better=True,
        score=right / 10,
        outcomes=outcomes,
        documents_digest="d1",
        unparseable=(True,) * unparseable + (False,) * (10 - unparseable),
    )
    return ResultRecord(
        nodeid="t.py::test_sums", result=CaseResult(case=Case(engine=ENGINE, task=Task(name="sums")), accuracy=accuracy)
    )


def results(*records: ResultRecord, root: str | None = None, **environment: str) -> str:
    if root is not None:
        environment["inferperf_baselines"] = root
    write_result_file(Path("r.json"), ResultFile(created="", environment=environment, records=records))
    return "r.json"


def record(capsys: Capture, *records: ResultRecord) -> None:
    assert main(["baseline", "update", results(*records)]) == 0
    capsys.readouterr()


def test_update_new(capsys: Capture) -> None:
    assert main(["baseline", "update", results(speed(1234.5, 20.0), score(8))]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert (
        out
        == """\
baselines/performance/amd-epyc-2x/tiny.json
  NVFP4-isl64-osl32-c1  output_throughput  1234.5  tok/s  new
  NVFP4-isl64-osl32-c1  ttft_ms.p99         20.00  ms     new
baselines/accuracy/tiny.json
  sums-exact_match  NVFP4  0.8000  exact_match  new

3 values recorded in 2 files.
uncalibrated: 1 session recorded; with 5 or more the false alarm rate is known. pytest --inferperf-update=… measures 10.
Review with git diff baselines, then commit.
"""
    )
    assert main(["baseline", "update", "r.json"]) == 0
    assert capsys.readouterr() == ("Nothing recorded in baselines.\n", "")


def test_update_tighten(capsys: Capture) -> None:
    record(capsys, speed(1000.0, 20.0))
    assert main(["baseline", "update", results(speed(1100.0, 25.0)), "--mode", "tighten"]) == 0
    assert capsys.readouterr() == (
        """\
baselines/performance/amd-epyc-2x/tiny.json
  NVFP4-isl64-osl32-c1  output_throughput  1000.0  ->  1100.0  tok/s  +10.0 % better

1 value recorded in 1 file.
uncalibrated: 1 session recorded; with 5 or more the false alarm rate is known. pytest --inferperf-update=… measures 10.
Review with git diff baselines, then commit.
""",
        "",
    )


def test_update_refused(capsys: Capture) -> None:
    record(capsys, speed(1000.0, 20.0))
    arguments = ["baseline", "update", results(speed(800.0, 20.0)), "--mode", "all"]
    assert main(arguments) == 1
    assert capsys.readouterr() == (
        "Nothing recorded in baselines; 1 refused.\n",
        'refused: mode "all" may loosen baselines and needs a reason: add --reason "…"\n',
    )
    assert main([*arguments, "--reason", "slower on purpose"]) == 1
    assert capsys.readouterr() == (
        "Nothing recorded in baselines; 1 refused.\n",
        "refused: t.py::test_speed: worse beyond the tolerance: output_throughput\n"
        "  baselines/performance/amd-epyc-2x/tiny.json: NVFP4-isl64-osl32-c1\n"
        "  output_throughput  1000 -> 800 tok/s (-20.0 %, allowed 5 %)\n"
        "  To accept: add --accept-regression (in pytest: --inferperf-accept-regression)\n",
    )
    assert main([*arguments, "--reason", "slower on purpose", "--accept-regression"]) == 0
    assert "1000.0  ->  800.00  tok/s  -20.0 % worse" in capsys.readouterr().out


def test_accept_regression_goes_with_all(capsys: Capture) -> None:
    assert main(["baseline", "update", "r.json", "--accept-regression"]) == 2
    assert capsys.readouterr() == (
        "",
        'inferperf: --accept-regression goes with --mode all --reason "…"; --mode new never records a worse value.\n',
    )


@pytest.mark.parametrize("name", ["engine_options.use_cache", "quant", "warmup_rounds"])
def test_an_override_is_no_baseline(capsys: Capture, name: str) -> None:
    """As --inferperf-update refuses it in the run itself."""
    assert main(["baseline", "update", results(speed(100.0, 20.0), **{f"--inferperf-set {name}": "x"})]) == 2
    assert (
        f"r.json: measured with --inferperf-set {name}=x; an override is an experiment, not a "
        in capsys.readouterr().err
    )
    assert not list(Path("baselines").rglob("*.json"))


def test_an_override_of_what_is_measured_is_recorded(capsys: Capture) -> None:
    assert main(["baseline", "update", results(speed(100.0, 20.0), **{"--inferperf-set sessions": "10"})]) == 0
    assert "2 values recorded" in capsys.readouterr().out


def test_diff(capsys: Capture) -> None:
    record(capsys, speed(1000.0, 20.0))
    assert main(["baseline", "diff", results(speed(900.0, 20.0), score(8), speed(1.0, 1.0, failed=1, nodeid="b"))]) == 0
    assert capsys.readouterr() == (
        """\
baselines/performance/amd-epyc-2x/tiny.json
  NVFP4-isl64-osl32-c1  output_throughput  1000.0  ->  900.00  tok/s  -10.0 % worse  no interval  1 -> 1 session
  NVFP4-isl64-osl32-c1  ttft_ms.p99         20.00  ->   20.00  ms     same           no interval  1 -> 1 session
baselines/accuracy/tiny.json
  sums-exact_match  NVFP4  0.8000  exact_match  new  10 questions

3 values compared with baselines: 0 better, 1 worse, 1 without a baseline.
b: not compared: 1 request failed
To record what is missing: inferperf baseline update r.json
""",
        "",
    )


def test_diff_of_nothing(capsys: Capture) -> None:
    assert main(["baseline", "diff", results()]) == 0
    assert capsys.readouterr() == ("0 values compared with baselines: 0 better, 0 worse, 0 without a baseline.\n", "")


def test_show(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    record(capsys, speed(1000.0, 20.0), score(8))
    for path in Path("baselines").glob("**/*.json"):
        text = path.read_text().split('"recorded": "')
        path.write_text("".join([text[0], *('"recorded": "2026-11-21' + part[part.index('"') :] for part in text[1:])]))
    expected = """\
baselines/performance/amd-epyc-2x/tiny.json
  tiny on 2 x AMD EPYC
  NVFP4-isl64-osl32-c1  (measured 2026-11-21; 1 session, uncalibrated)
    output_throughput  1000.0  tok/s
    ttft_ms.p99         20.00  ms

baselines/accuracy/tiny.json
  tiny
  sums-exact_match  (exact_match; 10 documents)
    NVFP4  0.8000  measured 2026-11-21
"""
    assert main(["baseline", "show"]) == 0
    assert capsys.readouterr() == (expected, "")
    assert main(["baseline", "show", "tiny"]) == 0
    assert capsys.readouterr() == (expected, "")


def test_show_unknown_model(capsys: Capture) -> None:
    record(capsys, score(8))
    assert main(["baseline", "show", "tinny"]) == 2
    assert capsys.readouterr() == (
        "",
        "inferperf: baselines: no baselines of model 'tinny'. Did you mean 'tiny'? Models: tiny.\n",
    )


def test_show_without_baselines(capsys: Capture) -> None:
    Path("baselines").rmdir()
    assert main(["baseline", "show"]) == 2
    assert capsys.readouterr() == (
        "",
        "inferperf: baselines: no such folder. Name the root folder of the baselines with --root.\n",
    )
    Path("baselines").mkdir()
    assert main(["baseline", "show"]) == 0
    assert capsys.readouterr() == ("No baselines in baselines. A run with --inferperf-update=new records them.\n", "")


def test_show_a_damaged_file_beside_a_good_one(capsys: Capture) -> None:
    record(capsys, score(8))
    Path("baselines/accuracy/bad.json").write_text("{")
    assert main(["baseline", "show"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("baselines/accuracy/tiny.json\n  tiny\n")
    assert err == (
        "inferperf: baselines/accuracy/bad.json: line 1, column 2: not JSON: Expecting property name enclosed in double"
        " quotes. Restore it (git restore baselines/accuracy/bad.json) or delete it and record it again.\n"
    )


@pytest.mark.parametrize("command", ["diff", "update"])
def test_bad_result_files(capsys: Capture, command: str) -> None:
    assert main(["baseline", command, "r.json"]) == 2
    assert capsys.readouterr().err == (
        "inferperf: r.json: no such file. A run writes one with --inferperf-json=FILE.\n"
    )
    Path("r.json").write_text('{"records": [')
    assert main(["baseline", command, "r.json"]) == 2
    assert capsys.readouterr().err == (
        "inferperf: r.json: line 1, column 14: not JSON: Expecting value. The run was interrupted or the copy is"
        " incomplete: copy the file again, or repeat the run.\n"
    )


def test_other_root(capsys: Capture, tmp_path: Path) -> None:
    assert main(["baseline", "update", results(score(8)), "--root", str(tmp_path / "x" / "base")]) == 0
    assert capsys.readouterr().out.startswith("base/accuracy/tiny.json\n")
    assert (tmp_path / "x/base/accuracy/tiny.json").is_file()


@pytest.mark.parametrize("command", ["diff", "update"])
def test_the_root_that_the_run_used(capsys: Capture, command: str) -> None:
    Path("sub/base").mkdir(parents=True)
    assert main(["baseline", command, results(score(8), root="sub/base")]) == 0
    shown = {"diff": "1 value compared with sub/base: ", "update": "\nReview with git diff sub/base, then commit.\n"}
    assert shown[command] in capsys.readouterr().out
    assert not list(Path("baselines").iterdir())
    assert Path("sub/base/accuracy/tiny.json").is_file() is (command == "update")
    # What was asked for goes before what the file names.
    assert main(["baseline", command, "r.json", "--root", "baselines"]) == 0
    assert shown[command].replace("sub/base", "baselines") in capsys.readouterr().out


@pytest.mark.parametrize("command", ["diff", "update"])
@pytest.mark.parametrize("root", [None, "sub/base"])
def test_a_root_is_not_made_unasked(capsys: Capture, tmp_path: Path, command: str, root: str | None) -> None:
    Path("baselines").rmdir()
    assert main(["baseline", command, results(score(8), root=root)]) == 2
    named = "baselines" if root is None else "sub/base (the folder that r.json names)"
    assert capsys.readouterr() == (
        "",
        f"inferperf: {named}: no such folder in {tmp_path}. Run the command in the project's root folder, or name the"
        f" root folder of the baselines, also a new one: --root {root or 'baselines'}\n",
    )
    assert [item.name for item in tmp_path.iterdir()] == ["r.json"]
    assert main(["baseline", command, "r.json", "--root", "new"]) == 0
    if command == "diff":
        assert capsys.readouterr().out.endswith("missing: inferperf baseline update r.json --root new\n")
    assert Path("new").is_dir() is (command == "update")


def test_more_unparseable_answers_are_shown(capsys: Capture) -> None:
    record(capsys, score(8))
    assert main(["baseline", "diff", results(score(9, unparseable=1))]) == 0
    assert (
        "0.8000  ->  0.9000  exact_match  +12.5 % worse (unparseable 0.00 % -> 10.00 %)  95 % "
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("command", ["diff", "update"])
def test_an_unknown_metric_in_a_result_file(capsys: Capture, command: str) -> None:
    path = Path(results(speed(1000.0, 20.0)))
    path.write_text(path.read_text().replace("output_throughput", "output_troughput"))
    assert main(["baseline", command, "r.json"]) == 2
    assert capsys.readouterr().err.startswith(
        "inferperf: r.json: $.records[0].result.performance: unknown metric 'output_troughput'.\n"
        "Did you mean 'output_throughput'? "
    )


@pytest.mark.parametrize("mode", ["new", "tighten", "all"])
def test_an_edited_result_file(capsys: Capture, mode: str) -> None:
    path = Path(results(speed(1000.0, 20.0)))
    path.write_text(path.read_text().replace("1000.0", "-5.0"))
    assert main(["baseline", "update", "r.json", "--mode", mode, "--reason", "r"]) == 1
    assert capsys.readouterr().err == (
        "refused: t.py::test_speed: figures must be finite and above 0: output_throughput\n"
        "  baselines/performance/amd-epyc-2x/tiny.json: NVFP4-isl64-osl32-c1\n"
        "  output_throughput  -5 tok/s\n"
        "  Repeat the run\n"
    )


def test_engine_options_clash(capsys: Capture) -> None:
    second = score(8)
    engine = replace(ENGINE, engine_options=(("use_cache", False),))
    second = replace(second, nodeid="b", result=replace(second.result, case=replace(second.result.case, engine=engine)))
    assert main(["baseline", "update", results(score(8), second)]) == 1
    assert capsys.readouterr().err == (
        "refused: t.py::test_sums and b: they share the key 'sums-exact_match NVFP4' but measure engines with different"
        " options\n  Give one of them another served_model_name\n"
    )


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"inferperf {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["baseline"], ["baseline", "update"], ["baseline", "update", "r", "--mode", "x"]]
)
def test_bad_usage(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="argparse of 3.14 wraps and colours usage lines in its own way")
def test_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["baseline", "update", "--help"])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Record the results of a run as baselines. What is refused is left as it was.")
    text = " ".join(" ".join(lines[start:]).split())
    assert text == (
        "Record the results of a run as baselines. What is refused is left as it was."
        " positional arguments: RESULTS.json What --inferperf-json wrote"
        " options: -h, --help show this help message and exit"
        " --reason TEXT Why, kept in the file; --mode all needs it"
        " --accept-uncalibrated Record fewer than 5 sessions, of which the plain tolerance judges"
        " --patch FILE Write what would change to FILE, for git apply; record nothing"
        " --root ROOT Root folder of the baselines (default: the one that the results name, else baselines)"
        " --mode {new,tighten,all} Record what is missing, replace what got better, or replace all (default: new)"
        " --accept-regression Record values that are worse beyond the tolerance"
        " exit status: 0 done, or nothing to do 1 an update was refused"
        " 2 bad usage, or a file that cannot be read or written"
    )


def test_a_reader_that_stops_and_a_poor_terminal(capsys: Capture) -> None:
    record(capsys, score(8))
    command = [sys.executable, "-m", "pytest_inferperf.cli", "baseline"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "show"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*command, "update", "r.json", "--mode", "all"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.endswith('add --reason "\\u2026"\n')


def test_reads_no_pytest() -> None:
    code = (
        "import sys, pytest_inferperf.cli; sys.exit(any(name in sys.modules for name in ('pytest', 'torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_plan_runs_pytest(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument after `plan` is pytest's, and so is the exit status."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    mark = 'pytest.mark.inferperf(model="org/name", isl=8, osl=8, concurrency=[1, 2])'
    Path("test_it.py").write_text(f"import pytest\n\n@{mark}\ndef test_it(inferperf):\n    raise AssertionError\n")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", "-q", "-k", "c2", "-p", "no:cacheprovider", "test_it.py"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "  checkpoint  org/name to be downloaded from the hub" in out
    assert "test_it.py::test_it[BF16-isl8-osl8-c2]" in out
    assert "test_it.py::test_it[BF16-isl8-osl8-c1]" not in out
    assert main(["plan", "-q", "--inferperf-power=2", "test_it.py"]) == 4
    assert "ERROR: --inferperf-power=2 must be a number between 0 and 1" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_plan(capsys: Capture, option: str) -> None:
    assert main(["plan", option]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: inferperf plan [-h] [PYTEST ARGUMENTS]\n")
    assert "The same as: pytest --inferperf-plan" in shown


def test_a_wrong_argument_is_named_without_its_secret(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["report", "r.json", "--login", "hf_" + "x" * 30])
    assert "unrecognized arguments: --login [hidden]" in capsys.readouterr().err
