"""Whatever interrupts, floods or kills a worker: a clear error, nothing left running, and no wait without an end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_inferperf.engines import supervisor
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess, build_in_process
from pytest_inferperf.errors import CheckpointError, EngineError
from pytest_inferperf.model.case import EngineSpec
from tests.engines.processes import REQUEST, Start


def is_there(pid: int) -> bool:
    """Whether a process is left, also one that ended and was never waited for."""
    return Path(f"/proc/{pid}").exists()


def wait_gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_there(pid)


def wait_for(path: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


@contextlib.contextmanager
def ctrl_c(when: Callable[[], object]) -> Iterator[list[int]]:
    """Interrupt this thread once `when` returns; the list holds the workers alive at that moment."""
    pids: list[int] = []

    def strike() -> None:
        when()
        pids.extend(worker.pid for worker in supervisor._alive)
        os.kill(os.getpid(), signal.SIGINT)

    # A job that a shell put into the background ignores SIGINT; a user's Ctrl-C goes to one that does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield pids
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_loading_leaves_nothing(start: Start, tmp_path: Path) -> None:
    began = time.monotonic()
    with ctrl_c(lambda: wait_for(tmp_path / "grandchild")) as pids:
        start("hangs-loading")
    assert time.monotonic() - began < 25, "the load ran into its timeout of 30 s"
    assert pids
    assert not any(is_there(pid) for pid in pids)
    assert wait_gone(wait_for(tmp_path / "grandchild"))
    assert not list(supervisor._alive)


def test_ctrl_c_while_generating_leaves_nothing(start: Start, tmp_path: Path) -> None:
    engine = start("hang")
    with ctrl_c(lambda: wait_for(tmp_path / "grandchild")):
        engine.generate([REQUEST], concurrency=1)
    assert not is_there(engine.pid)
    assert wait_gone(wait_for(tmp_path / "grandchild"))
    with pytest.raises(EngineError, match="engine hang BF16 is closed"):
        engine.generate([REQUEST], concurrency=1)


def test_ctrl_c_while_building_leaves_nothing(tmp_path: Path) -> None:
    # A pipe that nobody writes to: the build waits for its calibration texts, if it gets that far.
    os.mkfifo(tmp_path / "calibration.jsonl")
    spec = EngineSpec(
        model="m", served_model_name="slow", quant="NVFP4", calib_dataset=str(tmp_path / "calibration.jsonl")
    )
    with ctrl_c(lambda: time.sleep(0.5)) as pids:
        build_in_process(spec, tmp_path, tmp_path / "out", lambda _line: None, timeout_s=60, log_dir=tmp_path / "logs")
    assert len(pids) == 1
    assert not is_there(pids[0])


def test_interrupt_of_any_kind_ends_the_worker(start: Start, tmp_path: Path) -> None:
    """pytest-timeout raises an exception of its own, which is no `Exception`, anywhere."""

    class Outcome(BaseException):
        pass

    def strike(_number: int, _frame: object) -> None:
        raise Outcome

    engine = start("hang")
    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Outcome):
            engine.generate([REQUEST], concurrency=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not is_there(engine.pid)


def test_killed_between_two_calls_is_said_and_remembered(start: Start) -> None:
    engine = start("good")
    engine.generate([REQUEST], concurrency=1)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"engine good BF16 was killed by signal 9 \(SIGKILL\): out of memory\?"):
        engine.generate([REQUEST], concurrency=1)
    with pytest.raises(EngineError, match=r"engine good BF16 is gone: it was killed by signal 9 \(SIGKILL\)"):
        engine.generate([REQUEST], concurrency=1)
    engine.close()
    engine.close()
    assert not is_there(engine.pid)


def test_babble_does_not_outlast_the_deadline(start: Start) -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"gave no answer to 'load' within 1 s and was killed"):
        start("babbles-loading", load_timeout_s=1.0)
    assert time.monotonic() - began < 8


def test_flooded_log_is_quoted_in_few_words(start: Start) -> None:
    with pytest.raises(EngineError, match=r"ended with exit status 5\.\n(.*\n)*  step") as caught:
        start("floods").generate([REQUEST], concurrency=1)
    assert len(str(caught.value)) < 10_000


def test_long_stream_that_is_left_does_not_block_a_large_request(start: Start) -> None:
    engine = start("good", call_timeout_s=20.0)
    stream = engine.stream(GenerationRequest(prompt=(1,), max_tokens=5000))
    next(stream)
    del stream
    # Both pipes would be full: 5000 chunks one way, a request of 500 kB the other.
    (answer,) = engine.generate([GenerationRequest(prompt=(1,) * 250_000, max_tokens=1)], concurrency=1)
    assert len(answer.token_ids) == 250_000


def test_two_streams_at_once_are_refused(start: Start) -> None:
    engine = start("good")
    first, second = engine.stream(REQUEST), engine.stream(REQUEST)
    next(first)
    next(second)
    with pytest.raises(EngineError, match="was asked something else before its stream had ended"):
        next(first)
    assert [chunk.text for chunk in second] == ["1", "2"]
    assert engine.peak_memory_bytes() == 12345


def test_stream_of_a_closed_engine_ends_with_an_error(start: Start) -> None:
    engine = start("good")
    stream = engine.stream(REQUEST)
    next(stream)
    engine.close()
    with pytest.raises(EngineError, match="engine good BF16 is closed"):
        next(stream)


def test_log_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"engine x BF16: cannot write its log into .*file/logs: Not a directory"):
        EngineProcess(
            EngineSpec(model="m", served_model_name="x"),
            class_path="fake_backend:FakeEngine",
            checkpoint=tmp_path,
            log_dir=tmp_path / "file" / "logs",
        )


def test_crash_of_a_build_is_a_checkpoint_error(tmp_path: Path) -> None:
    spec = EngineSpec(model="m", served_model_name="x", quant="NVFP4")
    with pytest.raises(CheckpointError, match=r"the build of x NVFP4 gave no answer to 'build' within 0\.01 s"):
        build_in_process(spec, tmp_path, tmp_path, lambda _line: None, timeout_s=0.01, log_dir=tmp_path)
