"""An engine process that crashes, hangs or babbles is an `EngineError`, and leaves nothing running."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_inferperf.engines import worker
from pytest_inferperf.engines.interface import LogLikelihoodRequest
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.engines.servers import guardian
from pytest_inferperf.errors import EngineError, InvalidRun
from pytest_inferperf.model.case import EngineSpec
from tests.engines.fake_backend import FakeEngine
from tests.engines.processes import REQUEST, Start


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_answers_travel_whole(start: Start) -> None:
    engine = start("good")
    assert engine.encode(["ab"]) == [(97, 98)]
    assert engine.decode([[97, 98]]) == ["ab"]
    (answer,) = engine.generate([REQUEST], concurrency=1)
    assert (answer.token_ids, answer.token_times_s) == ((5, 6, 7), (0.5, 0.5, 0.5))
    found = engine.loglikelihood([LogLikelihoodRequest(context=(1,), continuation=(2, 3))], concurrency=1)
    assert (found[0].logprob, found[0].is_greedy) == (-2.0, True)
    assert engine.peak_memory_bytes() == 12345
    assert (engine.vocab_size, engine.special_token_ids) == (100, frozenset({1, 2}))
    assert engine.info.hardware.name == "CPU"


def test_stream_can_be_left_early(start: Start) -> None:
    engine = start("good")
    stream = engine.stream(REQUEST)
    assert next(stream).token_ids == (0,)
    del stream
    assert [chunk.text for chunk in engine.stream(REQUEST)] == ["0", "1", "2"]


def test_close_is_idempotent_and_leaves_no_process(start: Start, tmp_path: Path) -> None:
    engine = start("good")
    engine.close()
    engine.close()
    assert wait_gone(engine.pid)
    assert (tmp_path / "closed").exists()
    with pytest.raises(EngineError, match="is closed"):
        engine.generate([REQUEST], concurrency=1)


def launches(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "launches").read_text().split()]


@pytest.mark.parametrize("closed_before", [False, True])
def test_relaunch_is_the_same_engine_in_a_new_process(start: Start, tmp_path: Path, closed_before: bool) -> None:
    engine = start("good")
    first = engine.pid
    if closed_before:
        engine.close()
    engine.relaunch()
    assert engine.can_relaunch
    assert launches(tmp_path) == [first, engine.pid]
    assert wait_gone(first)
    assert engine.generate([REQUEST], concurrency=1)[0].token_ids == (5, 6, 7)
    assert engine.info.load_s == 2.0  # read again
    engine.close()
    assert wait_gone(engine.pid)


def test_relaunch_ends_a_dead_engine(start: Start) -> None:
    engine = start("killed")
    with pytest.raises(EngineError, match="SIGKILL"):
        engine.generate([REQUEST], concurrency=1)
    engine.relaunch()
    assert engine.encode(["ab"]) == [(97, 98)]


def test_failed_relaunch_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    engine = start("dies-on-relaunch")
    with pytest.raises(EngineError, match="ended with exit status 4"):
        engine.relaunch()
    assert all(wait_gone(pid) for pid in launches(tmp_path))
    assert wait_gone(int((tmp_path / "grandchild").read_text()))
    with pytest.raises(EngineError, match=r"engine dies-on-relaunch BF16 is gone: it ended with exit status 4"):
        engine.generate([REQUEST], concurrency=1)


def test_an_engine_that_comes_back_different_is_an_invalid_run(start: Start, tmp_path: Path) -> None:
    engine = start("changes")
    message = r"engine changes BF16 is not the same after its relaunch: options {'launches': 1} -> {'launches': 2}"
    with pytest.raises(InvalidRun, match=message):
        engine.relaunch()
    assert all(wait_gone(pid) for pid in launches(tmp_path))
    with pytest.raises(EngineError, match="is closed: it was not the same after its relaunch"):
        engine.generate([REQUEST], concurrency=1)


def test_engine_without_relaunch_says_what_to_implement(tmp_path: Path) -> None:
    engine = FakeEngine(EngineSpec(model="m", served_model_name="good"), checkpoint=str(tmp_path), progress=print)
    assert not engine.can_relaunch
    with pytest.raises(
        EngineError, match=r"FakeEngine cannot be launched again\. Implement relaunch\(\).*can_relaunch"
    ):
        engine.relaunch()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            "crash",
            r"engine crash BF16 was killed by signal 11 \(SIGSEGV\)\.\nLast lines of .*\.log:\n(.*\n)*.*Segmentation",
        ),
        ("killed", r"engine killed BF16 was killed by signal 9 \(SIGKILL\): out of memory\?\."),
        ("oom", r"engine oom BF16 failed: out of memory\nLast lines of (.*\n)*.*MemoryError"),
        ("bug", r"engine bug BF16 failed: ZeroDivisionError: a bug\nLast lines of (.*\n)*.*fake_backend\.py"),
        ("noise", r"engine noise BF16 the engine wrote something that is not a message: 'Loading weights: 100%"),
    ],
)
def test_failure_says_what_happened(start: Start, behaviour: str, message: str) -> None:
    engine = start(behaviour)
    began = time.monotonic()
    with pytest.raises(EngineError, match=message):
        engine.generate([REQUEST], concurrency=1)
    assert time.monotonic() - began < 10
    if behaviour not in ("oom", "bug"):
        assert wait_gone(engine.pid)


def test_death_while_loading_quotes_the_log(start: Start) -> None:
    with pytest.raises(EngineError, match=r"ended with exit status 3\.\nLast lines of (.*\n)*  last words"):
        start("dies-loading")


def test_missing_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No module named 'no_such_backend'"):
        EngineProcess(
            EngineSpec(model="m", served_model_name="x"), class_path="no_such_backend:Engine", checkpoint=tmp_path
        )


def test_prints_do_not_reach_the_protocol(start: Start) -> None:
    engine = start("chatty")
    assert engine.generate([REQUEST], concurrency=1)[0].text == "ok"


def test_hang_is_killed_with_its_children(start: Start, tmp_path: Path) -> None:
    engine = start("hang", call_timeout_s=1.5)
    with pytest.raises(EngineError, match=r"gave no answer to 'generate' within 1\.5 s and was killed"):
        engine.generate([REQUEST], concurrency=1)
    assert wait_gone(engine.pid)
    assert wait_gone(int((tmp_path / "grandchild").read_text()))


def test_engine_dies_with_a_killed_parent(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
from pathlib import Path
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.model.case import EngineSpec
engine = EngineProcess(
    EngineSpec(model="m", served_model_name="hang"), class_path="fake_backend:FakeEngine", checkpoint=Path({str(tmp_path)!r})
)
print(engine.pid, flush=True)
engine.generate([GenerationRequest(prompt=(1,), max_tokens=1)], concurrency=1)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        deadline = time.monotonic() + 20
        while not (tmp_path / "grandchild").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(parent.pid, signal.SIGKILL)
    assert wait_gone(pid)
    assert wait_gone(int((tmp_path / "grandchild").read_text()))


@pytest.mark.parametrize("program", ["worker", "guardian"])
def test_who_looks_too_late_for_its_starter_ends(program: str, tmp_path: Path) -> None:
    """The starter was killed in between, and a fork of it has the other end of the lifeline still."""
    with subprocess.Popen([sys.executable, "-c", ""]) as starter:
        starter.wait()
    lifeline, held = os.pipe()
    said = [str(lifeline), str(starter.pid)]
    command = {
        "worker": ["-m", "pytest_inferperf.engines.worker", *said],
        "guardian": [guardian.__file__, *said, "sleep", "600"],
    }[program]
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[lifeline],
        cwd=tmp_path,
        start_new_session=True,
    ) as late:
        try:
            assert late.wait(30) == 1
        finally:
            os.close(held)
            os.close(lifeline)
            late.kill()


def test_a_parent_that_cannot_be_read_now_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENFILE, "Too many open files in system")

    assert worker._parent(os.getpid()) == os.getppid()
    assert worker._parent(1 << 30) == 0
    monkeypatch.setattr(Path, "read_text", full)
    assert worker._parent(os.getpid()) is None


def test_parent_imports_nothing_heavy() -> None:
    code = (
        "import sys, pytest_inferperf.engines.launch, pytest_inferperf.engines.process, "
        "pytest_inferperf.engines.checkpoint.cache; "
        "print(sorted({'torch', 'numpy', 'transformers', 'modelopt', 'safetensors'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"
