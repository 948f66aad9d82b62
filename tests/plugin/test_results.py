"""`--inferperf-results`: every run is kept under a name of its own, in a folder or a bucket, and is never lost on the way."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from pytest_inferperf import cli, keeping
from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.storage import open_storage
from tests.object_store import ObjectStore
from tests.plugin.conftest import PERFORMANCE, Project

GATE = "throughput_floor(output_throughput_per_user=10)"
NAME = r"\d{4}-\d\d-\d\d/\d{6}-[a-z0-9.-]+-[0-9a-f]{8}\.json"


@pytest.fixture
def measured(project: Project) -> Project:
    project.test(PERFORMANCE, GATE)
    return project


def shown(result: pytest.RunResult) -> str:
    return result.stdout.str() + result.stderr.str()


def test_a_folder_keeps_every_run(measured: Project) -> None:
    first = measured.run("--inferperf-results=kept")
    measured.run("--inferperf-results=kept")
    found = sorted((measured.path / "kept").rglob("*.json"))
    assert first.ret == 0
    assert len(found) == 2
    assert all(re.fullmatch(NAME, path.relative_to(measured.path / "kept").as_posix()) for path in found)
    assert re.search(rf"results kept in kept/{NAME}", shown(first))
    assert [record.nodeid for record in read_result_file(found[0]).records] == [
        "test_it.py::test_it[NVFP4-isl16-osl8-c2]"
    ]


def test_the_ini_names_a_bucket_and_the_history_reads_it(
    measured: Project, s3: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    ini = measured.path / "tox.ini"
    ini.write_text(f"{ini.read_text()}\ninferperf_results = {s3.address}/results\n")
    result = measured.run("--inferperf-json=here.json")
    assert result.ret == 0
    assert re.search(rf"results kept in s3://bucket/results/{NAME}", shown(result))
    (name,) = open_storage(f"{s3.address}/results", what="test").list()
    assert re.fullmatch(NAME, name)
    assert not (measured.path / "inferperf-unsent").exists()
    assert (measured.path / "here.json").exists()
    capsys.readouterr()
    assert cli.main(["query", "SELECT file, tests FROM runs", f"{s3.address}/results"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [name, "1"]


def test_nothing_is_kept_of_plans_replays_and_runs_without_results(measured: Project) -> None:
    measured.run("--inferperf-json=first.json")
    measured.run("--inferperf-results=kept", "--inferperf-plan")
    measured.run("--inferperf-results=kept", "--collect-only")
    measured.run("--inferperf-results=kept", "--inferperf-replay=first.json")
    measured.run("--inferperf-results=kept", "-k", "nothing")
    assert not (measured.path / "kept").exists()


def test_an_upload_that_fails_keeps_the_results_and_says_how_to_send_them(
    measured: Project, lost_s3: ObjectStore
) -> None:
    result = measured.run(f"--inferperf-results={lost_s3.address}/results")
    assert result.ret == 1
    assert result.parseoutcomes() == {"passed": 1}
    (left,) = (measured.path / "inferperf-unsent").iterdir()
    text = shown(result)
    assert re.search(rf"ERROR: s3://bucket/results/{NAME}: cannot be written: EndpointConnectionError", text)
    assert (
        f"The results are in inferperf-unsent/{left.name}. To send them later: inferperf history send inferperf-unsent/{left.name} s3://bucket/results"
        in text
    )
    assert len(read_result_file(left).records) == 1


def test_what_was_left_is_sent(
    measured: Project, s3: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(measured.path)
    measured.run("--inferperf-json=left.json")
    place = f"{s3.address}/results"
    capsys.readouterr()
    assert cli.main(["history", "send", "left.json", place]) == 0
    (name,) = open_storage(place, what="test").list()
    assert capsys.readouterr().out == f"left.json is now {place}/{name}\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/left\.json", name)
    assert cli.main(["history", "send", "left.json", place]) == 0
    open_storage(place, what="test").write(name, b"{}")
    assert cli.main(["history", "send", "left.json", place]) == 2
    assert "another file of this name is there. Rename left.json" in capsys.readouterr().err
    Path("cut.json").write_text("{")
    assert cli.main(["history", "send", "cut.json", place]) == 2
    assert "cut.json" in capsys.readouterr().err
    assert cli.main(["history", "send", "left.json"]) == 2
    assert "inferperf history send FILE STORE" in capsys.readouterr().err


def test_a_rootdir_that_is_read_only_costs_no_results(
    measured: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (measured.path / "inferperf-unsent").write_text("no folder can be made here")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store = tmp_path / "store"
    result = measured.run(f"--inferperf-results=file://{store}")
    assert result.ret == 0
    assert len(list(store.rglob("*.json"))) == 1
    assert not list(temporary.glob("inferperf-unsent-*"))
    shutil.rmtree(store)
    store.write_text("nor here")
    result = measured.run(f"--inferperf-results=file://{store}")
    assert result.ret == 1
    (left,) = temporary.glob("inferperf-unsent-*/*.json")
    assert f"history send {left} file://{store}" in shown(result)
    assert len(read_result_file(left).records) == 1


def test_what_arrived_and_stays_here_too_is_no_error(measured: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "inferperf-unsent":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = measured.run(f"--inferperf-results=file://{measured.path}/store")
    assert result.ret == 0
    assert "results kept in file://" in shown(result)


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("a storage of its own mind")])
def test_results_that_cannot_be_kept_cost_no_baselines(
    measured: Project, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise problem

    monkeypatch.setattr(keeping, "keep_results", fail)
    result = measured.run("--inferperf-results=kept", "--inferperf-update=new")
    assert result.ret == 1
    assert f"ERROR: {type(problem).__name__}: {problem}" in shown(result)
    assert re.search(r"recorded in .*\.json; review with git diff", shown(result))


@pytest.mark.parametrize("name", ["run.json.bak", ".run.json"])
def test_a_name_that_no_store_reads_is_not_sent(
    measured: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(measured.path)
    measured.run("--inferperf-json=run.json")
    Path("run.json").rename(name)
    capsys.readouterr()
    assert cli.main(["history", "send", name, f"file://{measured.path}/store"]) == 2
    assert f"Rename it first: mv {name} run.json" in capsys.readouterr().err
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--inferperf-results=s4://bucket/x", r"--inferperf-results: s4:// is unknown\. Did you mean 's3'"),
        ("--inferperf-results=s3://me:hunter2@b/x", r"--inferperf-results: the address holds a password"),
        ("--inferperf-results=s3://bucket/../x", r"--inferperf-results: .*'\.\.' cannot be part of an address"),
        (
            "--inferperf-json=s3://bucket/x.json",
            r"s3://bucket/x\.json: a path is asked for, not an address\. Addresses are taken by --inferperf-results",
        ),
        ("--inferperf-replay=s3://bucket/x.json", r"s3://bucket/x\.json: a path is asked for, not an address"),
    ],
)
def test_wrong_addresses_end_the_run_before_it_begins(measured: Project, option: str, message: str) -> None:
    result = measured.run(option)
    assert result.ret == 4
    assert re.search(f"ERROR: {message}", shown(result))
    assert "hunter2" not in shown(result)
    assert measured.engines() == []


def test_a_wrong_address_in_the_ini_is_an_error_of_collection(measured: Project) -> None:
    ini = measured.path / "tox.ini"
    ini.write_text(f"{ini.read_text()}\ninferperf_results = s4://bucket/x\n")
    result = measured.run()
    assert result.ret == 2
    assert "inferperf_results in the ini file: s4:// is unknown" in shown(result)
    ini.write_text(ini.read_text().replace("s4://bucket/x", "s3://bucket/x"))
    assert measured.run("--inferperf-results=", "--inferperf-plan").ret == 0
