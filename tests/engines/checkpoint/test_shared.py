"""Many machines share their checkpoints: built on one, copied whole by the others, and never taken when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf import storage
from pytest_inferperf.engines.checkpoint import leases
from pytest_inferperf.engines.checkpoint.cache import MANIFEST, checkpoint_hash, ensure_checkpoint
from pytest_inferperf.engines.checkpoint.leases import Watch, take_lease
from pytest_inferperf.engines.checkpoint.outlook import foresee_checkpoint
from pytest_inferperf.engines.interface import Progress
from pytest_inferperf.errors import CheckpointError, StorageError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.storage import Storage, open_storage

Build = Callable[..., tuple[EngineSpec, Path]]


class Cluster:
    """Machines with a cache each, and one storage for all."""

    def __init__(self, folder: Path, built: Build, address: str) -> None:
        self.folder = folder
        self.address = address
        self.spec, self.finished = built("NVFP4")
        self.lines: list[str] = []
        self.builds: list[str] = []

    @property
    def storage(self) -> Storage:
        return open_storage(self.address, what="test")

    def cache(self, machine: str) -> Path:
        return self.folder / machine

    def ensure(self, machine: str, *, build: Callable[[Path], None] | None = None) -> Path:
        """Ask for the checkpoint on a machine; `build` does more to what is built."""

        def copy(spec: EngineSpec, source: Path, destination: Path, progress: Progress) -> None:
            self.builds.append(machine)
            shutil.copytree(self.finished, destination, dirs_exist_ok=True)
            if build is not None:
                build(destination)

        return ensure_checkpoint(
            self.spec, cache_dir=self.cache(machine), shared=self.address, build=copy, progress=self.lines.append
        )

    def objects(self) -> dict[str, int]:
        return {name.partition("/")[2]: size for name, size in self.storage.list().items()}

    def inside(self) -> Storage:
        """Return the folder of the one checkpoint in the storage."""
        (name,) = {name.partition("/")[0] for name in self.storage.list()}
        return self.storage.within(name)

    def folders(self, machine: str) -> list[str]:
        return [path.name for path in self.cache(machine).iterdir() if path.is_dir()]


@pytest.fixture
def cluster(built: Build, tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, built, f"file://{tmp_path}/shared")


@pytest.fixture(params=["file", "s3"])
def any_cluster(request: pytest.FixtureRequest, built: Build, tmp_path: Path) -> Cluster:
    if request.param == "s3":
        return Cluster(tmp_path, built, f"{request.getfixturevalue('s3').address}/checkpoints")
    return Cluster(tmp_path, built, f"file://{tmp_path}/shared")


def test_built_on_one_machine_and_copied_by_another(any_cluster: Cluster) -> None:
    first, second = any_cluster.ensure("a"), any_cluster.ensure("b")
    assert any_cluster.builds == ["a"]
    assert first.name == second.name
    assert checkpoint_hash(first) == checkpoint_hash(second)
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert any_cluster.folders("b") == [second.name]
    assert "lease.json" not in any_cluster.objects()
    assert any(line.startswith(f"copying {any_cluster.address}/{first.name}") for line in any_cluster.lines)
    # From here on the machine has its own.
    any_cluster.ensure("b")
    assert any_cluster.builds == ["a"]


def test_what_was_built_before_is_shared(cluster: Cluster) -> None:
    address, cluster.address = cluster.address, ""
    cluster.ensure("a")
    cluster.address = address
    cluster.ensure("a")
    cluster.ensure("b")
    assert cluster.builds == ["a"]


# Faults.


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def largest(cluster: Cluster) -> str:
    return max(cluster.objects().items(), key=lambda item: item[1])[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("tampered", "the hash of model.safetensors differs"),
        ("cut short", r"model.safetensors has \d+ bytes instead of \d+"),
        ("missing", "model.safetensors is missing"),
        ("manifest cut short", "inferperf.json is no JSON object"),
        ("manifest of nothing", "inferperf.json is not of version 1"),
        ("manifest without a bottom", "inferperf.json is no JSON object"),
        ("another checkpoint's", "inferperf.json is of another checkpoint"),
    ],
)
def test_what_is_damaged_is_refused_built_again_and_mended(cluster: Cluster, damage: str, message: str) -> None:
    cluster.ensure("a")
    inside, weights = cluster.inside(), largest(cluster)
    whole, manifest = inside.read(weights), inside.read(MANIFEST)
    assert whole is not None
    assert manifest is not None
    if damage == "missing":
        inside.remove(weights)
    elif damage in ("tampered", "cut short"):
        inside.write(weights, flip(whole) if damage == "tampered" else whole[:-100])
    else:
        other = {**json.loads(manifest), "key": {}}
        inside.write(
            MANIFEST,
            {
                "manifest cut short": manifest[:-20],
                "manifest of nothing": b"{}",
                "manifest without a bottom": b"[" * 200_000,
                "another checkpoint's": json.dumps(other).encode(),
            }[damage],
        )
    cluster.ensure("b")
    assert cluster.builds == ["a", "b"]
    assert any(re.search(rf"is damaged \({message}\); building it again", line) for line in cluster.lines)
    assert cluster.folders("b") == [cluster.folders("a")[0]]
    cluster.ensure("c")
    assert cluster.builds == ["a", "b"], "the storage was not mended"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../escaped.json", "leads out of the folder"),
        ("a/../../escaped.json", "leads out of the folder"),
        ("{outside}/escaped.json", "leads out of the folder"),
        ("a\\..\\escaped.json", "leads out of the folder"),
        ("./escaped.json", "leads out of the folder"),
        ("config.json/escaped.json", "in a folder that is also a file"),
        (f"{'a' * 300}.json", "longer than a file's name can be"),
        ("pytorch_model.bin", "of a kind that is not taken from shared storage"),
        ("modeling.py", "of a kind that is not taken from shared storage"),
        ("inferperf.json", "of a kind that is not taken from shared storage"),
    ],
)
def test_no_manifest_writes_elsewhere_or_brings_what_runs(
    cluster: Cluster, tmp_path: Path, name: str, message: str
) -> None:
    cluster.ensure("a")
    inside = cluster.inside()
    manifest = json.loads(inside.read(MANIFEST) or b"")
    manifest["files"][name.format(outside=tmp_path)] = manifest["files"]["config.json"]
    inside.write(MANIFEST, json.dumps(manifest).encode())
    cluster.ensure("b")
    assert any("is damaged" in line and message in line for line in cluster.lines)
    assert cluster.builds == ["a", "b"]
    assert not list(tmp_path.rglob("escaped*"))
    assert not list(tmp_path.rglob("pytorch_model.bin"))


def test_a_checkpoint_that_fits_its_hashes_and_not_the_mark_is_refused(cluster: Cluster, built: Build) -> None:
    _, other = built("FP8")
    cluster.ensure("a")
    inside = cluster.inside()
    manifest = json.loads(inside.read(MANIFEST) or b"")
    for name in manifest["files"]:
        data = (other / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"sha256": digest, "size": len(data)}
        inside.write(digest, data)
    inside.write(MANIFEST, json.dumps(manifest).encode())
    cluster.ensure("b")
    assert cluster.builds == ["a", "b"]
    refusals = [line for line in cluster.lines if "is damaged" in line]
    assert [("quant_algo is 'FP8', but quant='NVFP4'" in line) for line in refusals] == [True], refusals


def test_a_storage_that_is_lost_in_the_middle_leaves_nothing_by_half(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.ensure("a")
    weights, files = largest(cluster), cluster.storage.files
    real = files.open

    def lose(path: str, *arguments: object, **keywords: object) -> Any:
        if path.endswith(weights):
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        return real(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", lose)
        with pytest.raises(
            CheckpointError, match=r"cannot be read: Connection reset by peer\. It is where machines share .*its own\.$"
        ):
            cluster.ensure("b")
    assert cluster.folders("b") == []
    cluster.ensure("b")
    assert cluster.builds == ["a"]


def test_a_machine_that_has_its_copy_needs_no_storage(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cluster.ensure("a")

    def lose(_: str) -> None:
        raise OSError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(cluster.storage.files, "cat_file", lose)
    assert cluster.ensure("a") == entry
    assert cluster.builds == ["a"]
    assert cluster.lines[-1].startswith(f"warning: the checkpoint {entry.name} stays on this machine alone: ")
    with pytest.raises(CheckpointError, match=r"cannot be read: Connection reset by peer\. It is where machines share"):
        cluster.ensure("b")
    assert cluster.builds == ["a"]


def test_an_upload_that_is_cut_short_is_a_warning_and_is_made_up_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cluster.storage.files.put_file

    def lose(source: str, target: str, **keywords: object) -> None:
        if source.endswith(".safetensors"):
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        real(source, target, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(cluster.storage.files, "put_file", lose)
        entry = cluster.ensure("a")
    assert (entry / MANIFEST).is_file()
    assert any(
        line.startswith(f"warning: the checkpoint {entry.name} stays on this machine alone: {cluster.address}/")
        and line.endswith("cannot be written: Connection reset by peer.")
        for line in cluster.lines
    )
    assert MANIFEST not in cluster.objects()
    assert "lease.json" not in cluster.objects()
    cluster.ensure("a")
    cluster.ensure("b")
    assert cluster.builds == ["a"]


def test_a_storage_that_denies_to_write_is_known_before_hours_of_work(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(storage, "_make_file", deny)
    with pytest.raises(CheckpointError, match=r"lease\.json: cannot be written: permission denied \(Access Denied\)"):
        cluster.ensure("a")
    assert cluster.builds == []


def test_a_build_that_fails_gives_the_lease_back(cluster: Cluster) -> None:
    def fail(_: Path) -> None:
        raise CheckpointError("no memory")

    with pytest.raises(CheckpointError, match="no memory"):
        cluster.ensure("a", build=fail)
    assert cluster.objects() == {}
    cluster.ensure("b")
    assert cluster.builds == ["a", "b"]


def test_of_two_that_build_at_once_after_all_the_first_counts(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two take over a dead lease in one moment: what they built may differ in its bits."""

    def other(folder: Path) -> None:
        (folder / "generation_config.json").write_text('{"other": 1}')

    def slow(_: Path) -> None:
        cluster.inside().remove("lease.json")
        cluster.ensure("b", build=other)

    mine = cluster.ensure("a", build=slow)
    theirs = cluster.cache("b") / mine.name
    assert cluster.builds == ["a", "b"]
    assert checkpoint_hash(mine) == checkpoint_hash(theirs)
    assert (mine / "generation_config.json").read_text() == '{"other": 1}'
    assert any("at the same time; its checkpoint is taken" in line for line in cluster.lines)
    assert checkpoint_hash(cluster.ensure("c")) == checkpoint_hash(theirs)


def test_a_machine_with_bytes_of_its_own_is_told(cluster: Cluster) -> None:
    def own(folder: Path) -> None:
        (folder / "generation_config.json").write_text("{}")

    address, cluster.address = cluster.address, ""
    cluster.ensure("a", build=own)
    cluster.address = address
    cluster.ensure("b")
    cluster.ensure("a")
    assert any("holds other bytes than" in line and "delete the folder" in line for line in cluster.lines)


# Leases.


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}/leases", what="test").within("tiny")


def test_one_has_the_lease_and_gives_it_back(folder: Storage) -> None:
    lease = take_lease(folder)
    assert lease is not None
    with lease:
        assert take_lease(folder) is None
        assert f"process {os.getpid()}" in Watch(folder).look()
    assert Watch(folder).look() == ""
    assert folder.list() == {}


def test_a_lease_is_renewed_and_one_that_is_not_is_taken(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lease = take_lease(folder)
    assert lease is not None
    watch = Watch(folder)
    assert watch.look()
    clock[0] = leases.DEAD_S
    assert watch.look(), "not longer than that"
    folder.write("lease.json", b'{"owner": "node\\u001b[31m7", "beats": 1}')
    clock[0] += 1
    assert watch.look() == "node[31m7"
    clock[0] += leases.DEAD_S + 1
    assert watch.look() == ""
    assert folder.list() == {}


def test_who_waits_leaves_a_lease_that_another_has_just_taken_over(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder.write("lease.json", b'{"owner": "dead"}')
    watch = Watch(folder)
    assert watch.look() == "dead"
    clock[0] += leases.DEAD_S + 1
    read = folder.read

    def read_and_be_late(name: str) -> bytes | None:
        found = read(name)
        folder.write(name, b'{"owner": "new"}')
        return found

    monkeypatch.setattr(folder, "read", read_and_be_late)
    watch.look()
    assert read("lease.json") == b'{"owner": "new"}'


def test_a_lease_that_was_taken_over_is_left_to_its_new_owner(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    lease = take_lease(folder)
    assert lease is not None
    with lease:
        folder.write("lease.json", b'{"owner": "another"}')
    assert folder.read("lease.json") == b'{"owner": "another"}'


def test_a_storage_that_does_not_answer_is_waited_for_but_not_for_ever(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder.write("lease.json", b'{"owner": "node7"}')
    watch = Watch(folder)
    assert watch.look() == "node7"

    def lose(_: str) -> None:
        raise OSError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(folder.files, "cat_file", lose)
    assert watch.look() == "node7"
    clock[0] += leases.DEAD_S + 1
    with pytest.raises(StorageError, match="Connection reset by peer"):
        watch.look()


# Processes.

SCRIPT = """
import sys, time, shutil
sys.path[:0] = [{root!r}]
from pathlib import Path
from pytest_inferperf.engines.checkpoint import leases, shared
from pytest_inferperf.engines.checkpoint.cache import checkpoint_hash, ensure_checkpoint
from pytest_inferperf.model.case import EngineSpec

leases.BEAT_S, leases.DEAD_S, shared.POLL_S = 0.2, {dead}, 0.1
machine = sys.argv[1]

def build(spec, source, destination, progress):
    with open({log!r}, "a") as log:
        log.write(machine + "\\n")
    shutil.copytree({finished!r}, destination, dirs_exist_ok=True)
    (destination / "generation_config.json").write_text('{{"built_by": "' + machine + '"}}')
    print("building", flush=True)
    time.sleep({pause})

spec = EngineSpec(model={model!r}, served_model_name="tiny", quant="NVFP4", calib_dataset={calib!r})
cache = Path({folder!r}) / machine
entry = ensure_checkpoint(
    spec, cache_dir=cache, shared={address!r}, build=build, progress=lambda line: print(line, flush=True)
)
print(checkpoint_hash(entry))
"""


def start(cluster: Cluster, machine: str, *, pause: float, dead: float = 30) -> subprocess.Popen[str]:
    code = SCRIPT.format(
        root=str(Path(__file__).parents[3]),
        dead=dead,
        log=str(cluster.folder / "builds"),
        finished=str(cluster.finished),
        pause=pause,
        model=cluster.spec.model,
        calib=cluster.spec.calib_dataset,
        folder=str(cluster.folder),
        address=cluster.address,
    )
    return subprocess.Popen([sys.executable, "-c", code, machine], stdout=subprocess.PIPE, text=True)


def test_two_machines_at_once_build_once(any_cluster: Cluster) -> None:
    both = [start(any_cluster, machine, pause=1) for machine in "ab"]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len((any_cluster.folder / "builds").read_text().split()) == 1
    assert outputs[0][-1] == outputs[1][-1]
    assert "lease.json" not in any_cluster.objects()


def test_the_build_of_a_machine_that_died_is_taken_over(cluster: Cluster) -> None:
    with start(cluster, "a", pause=600) as first:
        assert first.stdout is not None
        assert any("building" in line for line in first.stdout)
        with start(cluster, "b", pause=0, dead=1.5) as second:
            assert second.stdout is not None
            assert any(line.startswith("waiting: ") and "process" in line for line in second.stdout)
            os.kill(first.pid, signal.SIGKILL)
            assert second.wait(timeout=120) == 0
    assert (cluster.folder / "builds").read_text() == "a\nb\n"
    assert "lease.json" not in cluster.objects()
    assert MANIFEST in cluster.objects()


def test_a_plan_says_where_it_may_come_from(cluster: Cluster) -> None:
    found = foresee_checkpoint(cluster.spec, cache_dir=cluster.cache("a"), shared=cluster.address)
    assert found.state == "build"
    assert found.text == f"to be built from {Path(cluster.spec.model).resolve()}, unless it is in {cluster.address}"
