"""Servers are started, waited for, and gone with everything they started."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_inferperf.engines.servers import guardian
from pytest_inferperf.engines.servers.process import ManagedServer, free_port
from pytest_inferperf.errors import EngineError

SERVER = """
import http.server, os, subprocess, sys, threading, time
port, mode, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
print("loading shards 1/2", flush=True)
if mode == "dies":
    sys.exit("no such model")
if mode == "killed":
    os.kill(os.getpid(), 9)
# A child in a session of its own, deaf to polite requests.
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True,
)
open(folder + "/child", "w").write(str(child.pid))
begin = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = mode != "slow" and time.monotonic() - begin > 0.3
        self.send_response(200 if ready else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
if mode == "orphan":
    # The server itself ends; its child would live on.
    threading.Timer(2.0, lambda: os._exit(3)).start()
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

Start = Callable[..., ManagedServer]


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian, which soon kills what is deaf to its request."""
    patient = f"GRACE_S = {guardian.GRACE_S}"
    source = Path(guardian.__file__).read_text()
    assert source.count(patient) == 1
    copy = tmp_path / "guardian.py"
    copy.write_text(source.replace(patient, "GRACE_S = 0.5"))
    monkeypatch.setattr(guardian, "__file__", str(copy))


@pytest.fixture
def start(tmp_path: Path, impatient: None) -> Iterator[Start]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    running: list[ManagedServer] = []

    def begin(mode: str = "ready", **options: object) -> ManagedServer:
        port = free_port()
        settings: dict[str, object] = {"ready_timeout_s": 30.0, "log_dir": tmp_path / "logs"} | options
        server = ManagedServer(
            [sys.executable, str(script), str(port), mode, str(tmp_path)],
            what="server toy",
            ready_url=f"http://127.0.0.1:{port}/health",
            **settings,  # type: ignore[arg-type]
        )
        running.append(server)
        return server

    yield begin
    for server in running:
        server.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie is dead; whoever adopted it in this container may be slow to collect it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def soon(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_server_is_ready_when_started_and_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    lines: list[str] = []
    server = start(progress=lines.append)
    server.check()
    child = int((tmp_path / "child").read_text())
    assert not gone(child)
    server.stop()
    server.stop()
    assert gone(child), "a child in a session of its own, deaf to SIGTERM, outlived the server"
    assert gone(server.pid)
    assert "ready after" in lines[-1]
    with pytest.raises(EngineError, match="server toy is stopped"):
        server.check()


def test_an_own_log_is_removed_unless_something_went_wrong(start: Start) -> None:
    server = start(log_dir=None)
    assert server.log.exists()
    server.stop()
    assert not server.log.exists()


def test_a_server_that_dies_shows_the_end_of_its_log(start: Start) -> None:
    with pytest.raises(EngineError) as caught:
        start("dies")
    message = str(caught.value)
    assert "server toy ended with exit status 1." in message
    assert "loading shards 1/2" in message
    assert "no such model" in message


def test_a_server_that_is_killed_says_by_what(start: Start) -> None:
    with pytest.raises(EngineError, match=r"killed by signal 9 \(SIGKILL\): out of memory\?"):
        start("killed")


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)could not be started.*cannot start no-such-server: No such file"):
        ManagedServer(
            ["no-such-server"], what="server x", ready_url="http://127.0.0.1:1/health", log_dir=tmp_path / "logs"
        )


def test_a_program_beside_the_interpreter_is_found_without_activation(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.venv/bin/pytest` runs with nothing of `.venv/bin` in the PATH."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    program = folder / "toy-serve"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    port = free_port()
    with ManagedServer(
        ["toy-serve", str(port), "ready", str(tmp_path)],
        what="server toy",
        ready_url=f"http://127.0.0.1:{port}/health",
        ready_timeout_s=30,
        log_dir=tmp_path / "logs",
    ) as server:
        server.check()


def test_a_server_that_is_never_ready_is_stopped_with_its_children(start: Start, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        start("slow", ready_timeout_s=2.0)
    assert "was not ready within 2 s and was stopped" in str(caught.value)
    assert "gave HTTP 503" in str(caught.value)
    assert gone(int((tmp_path / "child").read_text()))


def test_a_death_in_mid_run_is_an_error_and_its_children_end(start: Start, tmp_path: Path) -> None:
    server = start("orphan")
    child = int((tmp_path / "child").read_text())
    assert soon(lambda: gone(child)), "the dead server's child lives on"

    def dead() -> bool:
        try:
            server.check()
        except EngineError as error:
            return "ended with exit status 3" in str(error)
        return False

    assert soon(dead)


def test_a_killed_pytest_takes_the_server_along(start: Start, tmp_path: Path) -> None:
    """The parent of a server is killed with SIGKILL: nobody can clean up but the guardian."""
    port = free_port()
    script = tmp_path / "server.py"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\n"
            "from pathlib import Path\n"
            "from pytest_inferperf.engines.devices import lease_devices\n"
            "from pytest_inferperf.engines.hardware import Gpu\n"
            "from pytest_inferperf.engines.servers.process import ManagedServer\n"
            "from pytest_inferperf.model.case import GpuRequirement\n"
            "gpu = Gpu(name='NVIDIA B200', sm=100, memory_gib=178.0, uuid='GPU-a')\n"
            f"lease = lease_devices(GpuRequirement(), [gpu], holder='toy', timeout_s=1, folder=Path({str(tmp_path)!r}))\n"
            f"s = ManagedServer({[sys.executable, str(script), str(port), 'ready', str(tmp_path)]!r},"
            f" what='toy', ready_url='http://127.0.0.1:{port}/health', ready_timeout_s=30, descriptors=lease.descriptors)\n"
            "print('up', flush=True)\ntime.sleep(600)\n",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        child = int((tmp_path / "child").read_text())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()

    def card_is_free() -> bool:
        with (tmp_path / "GPU-a.lock").open() as card:
            try:
                fcntl.flock(card, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    assert soon(card_is_free)
    assert gone(child), "the card was given away while a process of the server still computed on it"

    def refused() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
        except OSError:
            return True
        return False

    assert soon(refused)


def test_two_servers_have_ports_of_their_own(start: Start) -> None:
    first, second = start(), start()
    assert first.pid != second.pid
    first.stop()
    second.check()
