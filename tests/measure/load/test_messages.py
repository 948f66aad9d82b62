"""What load processes, and the hosts that they run on, say to each other: JSON, of which nothing is ever run."""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import re
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pytest_inferperf
from pytest_inferperf.errors import EngineError, NodeLost, SettingsError
from pytest_inferperf.measure.load.arrivals import Arrivals, TraceTimes
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.measure.load.framing import frames, send_frame
from pytest_inferperf.measure.load.letters import Letter, read_letter, write_letter
from pytest_inferperf.measure.load.messages import Trouble, read_message, say
from pytest_inferperf.measure.load.outputs import Output
from pytest_inferperf.measure.load.parcels import WrittenParcel, pack
from pytest_inferperf.measure.load.parts import Part
from pytest_inferperf.measure.load.plain import write
from pytest_inferperf.measure.load.plan import Failure, LoadPlan
from pytest_inferperf.measure.load.prompts import SyntheticBodies
from pytest_inferperf.measure.load.records import MEASURED, Records, Sample
from pytest_inferperf.measure.load.state import LoadState
from tests.measure.load.conftest import endpoint

WHO = "load process 1 of 2, on node a"


def sample(*values_ms: float) -> Sample:
    found = Sample()
    found.extend(values_ms)
    return found


def part(**changes: Any) -> Part:
    records = Records()
    records.add(
        kind=MEASURED,
        ok=True,
        intended=1.5,
        sent=1.5,
        done=2.25,
        first=1.75,
        last=2.25,
        tokens=3,
        prompt_tokens=9,
        turn=2,
        number=70_000,
    )
    records.add(kind=MEASURED, ok=False, intended=1.5, sent=0.0, done=2.5)
    meter = ClockMeter()
    meter.late(0.25)
    meter.bound(0.125)
    values: dict[str, Any] = {
        "records": records,
        "itl_ms": sample(0.0, 0.001, 20, 20, 5_000, 5_000, 70_000),
        "chunk_gap_ms": sample(20.25),
        "failures": {"http_503": Failure(count=1, example="overloaded: “warm”")},
        "count_sources": {"usage": 1},
        "cached_tokens": 2,
        "outputs": (Output(body=b"\x00\xff{}", text="a\ud800b", first="a", tokens=3, finish_reason=""),),
        "meter": meter,
        "issued": (1, 2, 0),
        "flying": (1.25, 0.0),
        "warmed": 1.0,
        "first_measured": 1.5,
        "last": 2.5,
        "retries": 1,
        "reconnects": 0,
    }
    return Part(**(values | changes))


EMPTY = {
    "records": Records(),
    "itl_ms": Sample(),
    "chunk_gap_ms": Sample(),
    "failures": {},
    "count_sources": {},
    "outputs": (),
    "meter": ClockMeter(),
    "flying": (),
    "warmed": None,
    "first_measured": None,
}


def through(what: str, value: object = None) -> Any:
    """Say something over a socket, and return it as it is heard."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        say(ours, what, value)
        ours.close()
        received = bytearray()
        while data := theirs.recv(1 << 20):
            received += data
    (message,) = frames(received)
    word, found = read_message(message, who=WHO)
    assert word == what
    return found


def state(done: int = 3, **changes: float) -> LoadState:
    return LoadState(
        done=done,
        requests=9,
        in_flight=2,
        tokens_per_s=changes.get("tokens_per_s", 12.5),
        ttft_p50_ms=changes.get("ttft_p50_ms", 50.0),
        ttft_p99_ms=60.0,
        errors=0,
        left_s=changes.get("left_s", 4.0),
    )


@pytest.mark.parametrize("word", ["ready", "ended"])
def test_a_word_without_a_value(word: str) -> None:
    assert through(word) is None


def test_how_far_a_process_is() -> None:
    assert through("at", (0.25, None)) == (0.25, None)
    assert through("at", (0.0, state())) == (0.0, state())


def test_numbers_that_are_not_there_yet() -> None:
    share, found = through("at", (math.inf, state(tokens_per_s=math.nan, left_s=-math.inf)))
    assert share == math.inf
    assert math.isnan(found.tokens_per_s)
    assert (found.left_s, found.ttft_p50_ms) == (-math.inf, 50.0)


@pytest.mark.parametrize("changes", [{}, EMPTY], ids=["full", "empty"])
def test_what_came_of_it(changes: dict[str, Any]) -> None:
    said = part(**changes)
    found = through("part", said)
    # All that it has, to the last bit.
    assert write(found) == write(said)
    assert vars(found.records) == vars(said.records)
    for mine, theirs in ((found.itl_ms, said.itl_ms), (found.chunk_gap_ms, said.chunk_gap_ms)):
        assert len(mine) == len(theirs)
        if len(mine):
            assert mine.percentiles(0, 50, 90, 100) == theirs.percentiles(0, 50, 90, 100)
            assert mine.mean == theirs.mean
    assert found.meter.report() == said.meter.report()
    for name in ("failures", "count_sources", "outputs", "issued", "flying", "warmed", "first_measured", "last"):
        assert getattr(found, name) == getattr(said, name)


def test_moments_that_are_no_numbers_stay_so() -> None:
    records = Records()
    records.add(kind=MEASURED, ok=True, intended=math.nan, sent=-0.0, done=math.inf)
    found = through("part", part(records=records)).records
    assert found.intended.tobytes() == records.intended.tobytes()
    assert found.sent.tobytes() == records.sent.tobytes()
    assert found.done[0] == math.inf


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (EngineError("the server is gone"), EngineError, "the server is gone"),
        (NodeLost("one kind of it"), EngineError, "one kind of it"),
        (SettingsError("no key"), SettingsError, "no key"),
        (KeyError("x"), RuntimeError, f"{WHO}: KeyError('x')"),
    ],
)
def test_why_a_process_cannot_go_on(error: Exception, kind: type[Exception], text: str) -> None:
    found = through("error", Trouble.of(error, who=WHO))
    assert type(found.error()) is kind
    assert str(found.error()) == text
    assert str(found.error(where="node b")) == f"node b: {text}"


BODIES = WrittenParcel(bodies=(b'{"prompt":[1,2]}', b'{"prompt":[1,3]}'), sizes=((2, 4), (2, 5)))


def letter(**changes: Any) -> Letter:
    values: dict[str, Any] = {
        "endpoint": endpoint(8000),
        "plan": LoadPlan(num_requests=7, osl=4, concurrency=2),
        "index": 0,
        "processes": 2,
        "parcel": BODIES,
        "is_shown": False,
    }
    return Letter(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"plan": LoadPlan(num_requests=7, osl=4, arrivals=Arrivals(rate=2.5, kind="gamma", burstiness=0.5, seed=3))},
        {"plan": LoadPlan(num_requests=2, osl=4, arrivals=TraceTimes((0.0, 1.5)))},
        {"parcel": replace(BODIES, sizes=None)},
        {"parcel": pack(SyntheticBodies(endpoint(1), isl=3, osl=4, seed=1).slice(1, 2), 4)},
        {"parcel": pack(SyntheticBodies(endpoint(1, chat=True), isl=3, osl=4, seed=1).slice(0, 1), 4)},
    ],
    ids=["closed", "open", "trace", "no sizes", "drawn", "drawn alone"],
)
def test_letters(changes: dict[str, Any]) -> None:
    assert read_letter(write_letter(letter(**changes))) == letter(**changes)


def _spoilt(change: Any) -> bytes:
    said = json.loads(write(["part", part()]))
    change(said[1])
    return json.dumps(said).encode()


def _put(path: str, value: Any) -> Any:
    def change(found: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for name in way:
            found = found[name]
        found[last] = value

    return change


def column(kind: str, *values: float, dtype: str = "") -> dict[str, str]:
    dtype = dtype or {"b": "<i1", "q": "<i8", "d": "<f8"}[kind]
    return {"dtype": dtype, "data": base64.b64encode(array(kind, values).tobytes()).decode()}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x05K\x01.", r"the message is not JSON \(.*\): '\\\\x80"),
        (b"[" * 100_000, r"the message is not JSON \("),
        (b"NaN and so on", r"the message is not JSON \("),
        (b'{"ready": null}', r'the message: \{"ready": null\} is no tuple'),
        (b'["ready"]', r'the message: \["ready"\] is no tuple'),
        (b'[["ready"], null]', r'the message\[0\]: \["ready"\] is no str'),
        (b'["run", "rm"]', r"'run' is no word of a load process \(ready, at, ended, part, error\)"),
        (b'["ready", 1]', r"ready: 1 is no NoneType"),
        (b'["at", [true, null]]', r"at\[0\]: true is no float"),
        (b'["at", ["1.0", null]]', r'at\[0\]: "1.0" is no float'),
        (b'["at", [0.5, {"is": "Popen", "args": "rm"}]]', r'at\[1\]: \{"is": "Popen", .* is no LoadState'),
        (b'["at", [0.5, {"is": "LoadState"}]]', r"at\[1\]: lacks 'done'"),
        (b'["error", {"is": "Trouble", "type": "SystemExit", "message": "x"}]', r'error.type: "SystemExit" is no '),
        (_spoilt(_put("extra", 1)), r"part: has no 'extra'"),
        (_spoilt(_put("retries", 1.0)), r"part.retries: 1.0 is no int"),
        (_spoilt(_put("issued", [1, "2"])), r'part.issued\[1\]: "2" is no int'),
        (_spoilt(_put("failures.http_503", None)), r"part.failures\['http_503'\]: null is no Failure"),
        (_spoilt(_put("outputs", [{"is": "Output", "body": "*", "text": "", "first": "", "tokens": 1, "finish_reason": ""}])),
         r"part.outputs\[0\].body: not base64"),
        (_spoilt(_put("records.sent", column("d", 1.0))), r"part.records.sent: 1 values for 2 requests"),
        (_spoilt(_put("records.sent", column("d", 1.0, 2.0, dtype="<f4"))), r"part.records.sent: .* is no column of <f8"),
        (_spoilt(_put("records.number", column("q", 1, 2))), r"part.records.number: .* is no column of <i4"),
        (_spoilt(_put("records.sent", {"dtype": "<f8", "data": "AAAA"})), r"part.records.sent: bytes length"),
        (_spoilt(_put("records.sent", {"dtype": "<f8", "data": 3})), r"part.records.sent: 3 is no bytes"),
        (_spoilt(_put("itl_ms.ticks", column("q", 4))), r"part.itl_ms: 1 values with 5 counts are no sample"),
        (_spoilt(_put("chunk_gap_ms.counts", column("q", -1))), r"part.chunk_gap_ms: no sample has a count below 1"),
        (_spoilt(_put("meter.lag", None)), r"part.meter.lag: null is no Sample"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_an_error_that_says_so(data: bytes, why: str) -> None:
    with pytest.raises(EngineError, match=f"^{WHO} said something that is no message of a load: {why}") as caught:
        read_message(data, who=WHO)
    assert str(caught.value).endswith(". Install the same pytest-inferperf on all hosts.")


class Deed:
    """Pickle would run it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(Deed(tmp_path / "done"))
    for read in (lambda: read_message(data, who=WHO), lambda: read_letter(data)):
        with pytest.raises(EngineError, match=r"is not JSON"):
            read()
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"index": 2}, r"letter.index: 2 of 2 processes"),
        ({"parcel": {"is": "Bodies"}}, r'letter.parcel: \{"is": "Bodies"\} is no DrawnParcel or WrittenParcel or Hand'),
        ({"plan": {"is": "LoadPlan"}}, r"letter.plan: lacks 'arrivals'"),
        ({"is": "Trouble"}, r'letter: \{"is": "Trouble", .* is no Letter'),
    ],
)
def test_what_is_no_letter_is_an_error_that_says_so(change: dict[str, Any], why: str) -> None:
    data = json.dumps(json.loads(write_letter(letter())) | change).encode()
    with pytest.raises(EngineError, match=f"^what this host was given is no letter to a load process: {why}"):
        read_letter(data)


def test_a_plan_that_is_out_of_range_is_no_letter() -> None:
    plan = json.loads(write_letter(letter()))
    plan["plan"]["num_requests"] = 0
    with pytest.raises(EngineError, match=r"num_requests 0: must be at least 1"):
        read_letter(json.dumps(plan).encode())


@pytest.mark.parametrize("bodies", [(b"{}", b"{}"), (b"GET", b"{}"), (b"[]", b"[]"), (BODIES.bodies[0],)])
def test_requests_that_are_none_do_not_go_out(bodies: tuple[bytes, ...]) -> None:
    with pytest.raises(EngineError, match=r"^requests of a load that are none: "):
        WrittenParcel(bodies=bodies, sizes=None).open(endpoint(1))


@pytest.fixture
def hosted() -> Iterator[socket.socket]:
    """A load process, by the socket to it."""
    ours, theirs = socket.socketpair()
    with ours:
        command = [sys.executable, "-m", "pytest_inferperf.measure.load.hosted", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        ours.settimeout(60)
        yield ours
        process.wait(60)
    assert process.returncode == 0


def test_a_load_process_says_that_its_letter_is_none(hosted: socket.socket, tmp_path: Path) -> None:
    send_frame(hosted, pickle.dumps(Deed(tmp_path / "done")))
    received = bytearray()
    while data := hosted.recv(1 << 20):
        received += data
    (message,) = frames(received)
    word, trouble = read_message(message, who=WHO)
    assert word == "error"
    assert str(trouble.error()).startswith(
        "what this host was given is no letter to a load process: letter is not JSON"
    )
    assert not (tmp_path / "done").exists()


def test_what_does_not_travel_is_not_sent() -> None:
    with pytest.raises(TypeError, match=r"PosixPath does not travel\.$"):
        write(Path("x"))
    with pytest.raises(TypeError, match=r"^3: only text can be a key\.$"):
        write({3: 1})


def test_nothing_that_sends_a_load_reads_pickles() -> None:
    package = Path(pytest_inferperf.__file__).parent
    files = [*package.glob("measure/load/*.py"), *package.glob("cluster/*.py")]
    assert len(files) > 40
    for path in files:
        assert not re.search(
            r"^\s*(import|from) (\w*pickle|marshal|shelve|dill)\b|pickle\.\w|\bpipe\.(send|recv)\(",
            path.read_text(),
            re.M,
        ), path
