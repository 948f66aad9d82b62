"""`inferperf init` makes what runs and overwrites nothing; `inferperf doctor` says what to do about what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from pytest_inferperf import doctor
from pytest_inferperf.cli import main
from pytest_inferperf.engines.hardware import Gpu
from tests.plugin.conftest import PROJECT

Capture = pytest.CaptureFixture[str]
SUITE = Path("suites/test_inference.py")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFERPERF_CACHE_DIR", str(tmp_path / "cache"))
    for name in doctor.CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# Init.


def test_init_makes_a_suite_baselines_settings_and_a_job(capsys: Capture) -> None:
    assert main(["init", "--model", "org/name"]) == 0
    assert capsys.readouterr() == (
        """\
made  suites/test_inference.py
made  baselines/README.md
made  pytest.ini
made  .github/workflows/inference.yml

Next:
  inferperf doctor
  inferperf plan
  pytest --inferperf-update=new
  git add suites baselines
""",
        "",
    )
    assert 'inferperf(model="org/name")' in SUITE.read_text()
    assert main(["baseline", "check"]) == 0


def test_init_overwrites_nothing(capsys: Capture) -> None:
    main(["init"])
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["init", "--model", "org/other"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "kept  suites/test_inference.py  (it exists)\n"
        "kept  baselines/README.md  (it exists)\n"
        "kept  pytest.ini  (it holds pytest's settings; add: inferperf_baselines = baselines, inferperf_tolerance = 0.05)\n"
        "kept  .github/workflows/inference.yml  (it exists; copy what it lacks from the documentation (docs/ci.md))\n"
    )
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("pyproject.toml", "[tool.pytest.ini_options]\n", True),
        ("pyproject.toml", "[project]\nname = 'x'\n", False),
        ("tox.ini", "[pytest]\n", True),
        ("setup.cfg", "[tool:pytest]\n", True),
        ("setup.cfg", "[metadata]\n", False),
    ],
)
def test_settings_go_where_pytest_reads_them(capsys: Capture, name: str, text: str, kept: bool) -> None:
    """pytest reads one file alone: a second would switch the first off."""
    Path(name).write_text(text)
    assert main(["init", "--ci", "none"]) == 0
    assert Path("pytest.ini").exists() is not kept
    assert (f"kept  {name}  (it holds pytest's settings; add: " in capsys.readouterr().out) is kept
    assert Path(name).read_text() == text


@pytest.mark.parametrize(
    ("ci", "path"), [("github", ".github/workflows/inference.yml"), ("gitlab", ".gitlab-ci.yml"), ("none", "")]
)
def test_the_job_runs_the_suite_and_keeps_its_results(ci: str, path: str) -> None:
    assert main(["init", "new repository", "--ci", ci]) == 0
    made = Path("new repository")
    if not path:
        assert not (made / ".github").exists()
        return
    text = (made / path).read_text()
    job = next(item for name, item in yaml.safe_load(text).items() if name in ("jobs", "inference"))
    assert job
    assert "pytest suites --junitxml=junit.xml --inferperf-json=results.json" in text
    assert "inferperf baseline check" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("file",), "file: is not a folder. Name the folder of your repository."),
        (("--model", 'x"; import os'), "no such folder, and no hub id, such as org/name."),
        (("--model", ""), "--model is empty."),
    ],
)
def test_init_that_cannot_be(capsys: Capture, arguments: tuple[str, ...], message: str) -> None:
    Path("file").touch()
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not SUITE.exists()


def test_what_init_makes_runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Red without baselines, green with them, and red again once the engine is slower or answers worse."""
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(pytester.path)
    (pytester.path / "tiny-llama").mkdir()
    (pytester.path / "tiny-llama/config.json").write_text("{}")
    assert main(["init", "--model", "tiny-llama"]) == 0
    assert 'model="../tiny-llama"' in SUITE.read_text()
    shutil.copy(PROJECT / "conftest.py", pytester.path / "conftest.py")
    with Path("pytest.ini").open("a") as settings:
        # Whoever shares the machine is not what is tested.
        settings.write("inferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n")

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider", "-q", *arguments)

    run().assert_outcomes(failed=4)
    run("--inferperf-update=new")
    run().assert_outcomes(passed=4)
    Path("engine.json").write_text(json.dumps({"tpot_ms": 20, "right": {"BF16": 900, "NVFP4": 700}}))
    run().assert_outcomes(passed=1, failed=3)
    assert main(["baseline", "check"]) == 0


# Doctor.


def row(name: str) -> doctor.Diagnosis:
    return next(item for item in doctor.diagnose(Path.cwd()) if item.name == name)


def test_a_machine_that_can_run(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "A run can begin."
    assert any(line.startswith("ok    engines") and "transformers in process" in line for line in lines)


def test_every_line_that_is_not_ok_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    found = doctor.diagnose(Path.cwd())
    assert {item.name for item in found if item.state == "missing"} >= {"pytest", "engines"}
    assert all(bool(item.next_step) is (item.state != "ok") for item in found), found


def test_an_extra_lacks_what_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: "" if package == "lm-eval" else real(package))
    found = row("extra embedded")
    assert (found.found, found.next_step) == ("without lm-eval", 'pip install "pytest-inferperf[embedded]"')
    assert row("extra server").state == "ok"


def test_json_and_the_exit_status(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {"name", "state", "found", "next_step"} == set(report["checks"][0])
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.parametrize(
    ("gpus", "driver", "module", "state", "step"),
    [
        ((Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0),), True, True, "ok", ""),
        ((), False, True, "note", "add --inferperf-require-gpu where tests must not skip for want of one"),
        ((), True, False, "missing", 'pip install "nvidia-ml-py>=12"'),
        ((), True, True, "missing", "look at nvidia-smi: the driver and its library may differ in version"),
    ],
)
def test_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], driver: bool, module: bool, state: str, step: str
) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: driver)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real("json") if module else None)
    found = row("GPU")
    assert (found.state, found.next_step) == (state, step)


def test_quantizations_are_native_from_a_generation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: (Gpu(name="NVIDIA L40S", sm=89, memory_gib=45.0),))
    assert row("quantizations").found == "native: FP8, W4A16_NVFP4, INT4_AWQ; simulated: NVFP4, W4A8_NVFP4_FP8"
    monkeypatch.setattr(doctor, "find_gpus", lambda: (Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0),))
    assert row("quantizations").state == "ok"


def test_a_full_disk_and_one_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 2**30))
    assert (row("checkpoint cache").state, row("checkpoint cache").found[-12:]) == ("missing", "1.0 GiB free")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert row("checkpoint cache").found.endswith("cannot be written")


def test_git_ci_and_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert row("git").found == "not a repository"
    subprocess.run(["git", "init", "-q"], check=True)
    assert row("git").state == "ok"
    monkeypatch.setenv("GITHUB_ACTIONS", "secret-value")
    assert row("CI").found == "GITHUB_ACTIONS set: recording is off"
    assert row("baselines").found == "no folder baselines here"
    Path("baselines/accuracy").mkdir(parents=True)
    assert row("baselines").next_step == "pytest --inferperf-update=new records them"
    Path("baselines/accuracy/x.json").write_text("{")
    assert (row("baselines").state, row("baselines").next_step) == ("missing", "inferperf baseline check")


@pytest.mark.parametrize(
    ("environment", "state", "found", "next_step"),
    [
        (
            {
                "TLLM_SPAWN_PROXY_PROCESS": "1",
                "tllm_mpi_size": "16",
                "SLURM_JOB_ID": "4711",
                "SLURM_STEP_NUM_NODES": "2",
            },
            "ok",
            "16 ranks of trtllm-llmapi-launch on 2 nodes, Slurm job 4711: tp x pp = 16",
            "",
        ),
        (
            {"SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "16"},
            "note",
            "one of 16 copies that MPI started, Slurm job 4711",
            "one engine on many GPUs: srun --mpi=pmix … trtllm-llmapi-launch pytest …",
        ),
        (
            {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2"},
            "note",
            "2 nodes, Slurm job 4711",
            "for one engine on all of them: srun --mpi=pmix … trtllm-llmapi-launch pytest …",
        ),
        ({"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1"}, "ok", "1 node, Slurm job 4711", ""),
    ],
)
def test_doctor_says_what_slurm_and_mpi_started(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], state: str, found: str, next_step: str
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMIX_", "TLLM_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = row("launch")
    assert (shown.state, shown.found, shown.next_step) == (state, found, next_step)


def test_doctor_says_nothing_of_a_launch_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "outer_environment", dict)
    monkeypatch.delenv("TLLM_SPAWN_PROXY_PROCESS", raising=False)
    assert "launch" not in {item.name for item in doctor.diagnose(Path.cwd())}
