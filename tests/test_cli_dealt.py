"""`inferperf measure` of what a file holds, by several processes and hosts: what one process measures, and each request once."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_inferperf.cli import main
from pytest_inferperf.cluster import load_hosts
from pytest_inferperf.measure.load import round_prompts, round_spread, rounds, spread, summary
from pytest_inferperf.measure.load.clock import ClockMeter
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.measure.load.machines import Machines

pytestmark = pytest.mark.newest

Capture = pytest.CaptureFixture[str]
FILES = Path(__file__).parent / "plugin" / "datasets"
QUICK = Behaviour(ttft_ms=20.0, itl_ms=1.0, prefix_cache=True)
CHATS = (
    "--dataset", str(FILES / "chats.jsonl"), "--chat", "--turns", "3", "--osl", "20", "--num-requests", "12",
    "--concurrency", "4", "--compare", "0",
)  # fmt: skip
TRACE = ("--trace", str(FILES / "mooncake.jsonl"), "--compare", "0")


@pytest.fixture(autouse=True)
def _shared_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the client was late or held less is not what these tests are about."""
    lenient = functools.partial(summary.check_load, min_held_share=0.01)
    monkeypatch.setattr(summary, "client_bound", lambda *_, **__: "")
    monkeypatch.setattr(summary, "out_of_step", lambda *_, **__: "")
    monkeypatch.setattr(summary, "check_load", lenient)
    monkeypatch.setattr(rounds, "check_load", lenient)
    monkeypatch.setattr(spread, "_needed", {})


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


class Measurement:
    """Runs `inferperf measure` on a server of its own, and keeps what it wrote."""

    def __init__(self, folder: Path, asked: list[dict[str, Any]]) -> None:
        self._folder, self._asked = folder, asked

    def __call__(self, *options: str, behaviour: Behaviour = QUICK) -> int:
        """Measure; return the exit status."""
        self._asked.clear()
        json_path, records_path = self._folder / "out.json", self._folder / "out.jsonl"
        with serve_in_thread(behaviour) as server:
            load = ("--url", server.url, "--model", "simulated", "--seed", "7", *options)
            status = main(["measure", *load, "--json", str(json_path), "--records", str(records_path)])
        self.sent = list(self._asked)
        if records_path.exists():
            self.found = json.loads(json_path.read_text())
            self.rows = [json.loads(line) for line in records_path.read_text().splitlines()]
            self.measured = [row for row in self.rows if row["kind"] == "measured"]
        return status

    def columns(self, *names: str) -> list[tuple[Any, ...]]:
        """Return these columns of the measured requests."""
        return [tuple(row[name] for name in names) for row in self.measured]

    @property
    def processes(self) -> int:
        return len(self.found["clock"]["processes"])


@pytest.fixture
def measure(tmp_path: Path, asked: list[dict[str, Any]]) -> Measurement:
    return Measurement(tmp_path, asked)


def questions() -> set[str]:
    talks = [json.loads(line)["messages"] for line in (FILES / "chats.jsonl").read_text().splitlines()]
    return {message["content"] for talk in talks for message in talk if message["role"] == "user"}


def own(requests: Iterable[dict[str, Any]]) -> Counter[str]:
    """Count the requests whose user says what the file says: fillers say it in another order."""
    known = questions()
    return Counter(json.dumps(request) for request in requests if request["messages"][-1]["content"] in known)


SAME = ("request", "turn", "ok", "output_tokens", "prompt_tokens")


def test_conversations_are_those_of_one_process(measure: Measurement) -> None:
    assert measure(*CHATS) == 0
    alone, counted, turns = own(measure.sent), measure.columns(*SAME), measure.found["turns"]
    assert measure.processes == 1
    assert max(alone.values()) == 1
    assert measure(*CHATS, "--processes", "3") == 0
    assert measure.processes == 3
    assert own(measure.sent) == alone
    # In the order of the plan, whoever sent them.
    assert measure.columns(*SAME) == counted
    assert [row[:2] for row in counted] == sorted(row[:2] for row in counted)
    assert {row[0] for row in counted} == set(range(1, 13))
    assert [turn["requests"] for turn in measure.found["turns"]] == [turn["requests"] for turn in turns]
    assert measure.found["excluded"]["warmup"] == 4
    assert [row["kind"] for row in measure.rows] == sorted(
        (row["kind"] for row in measure.rows), key=["warmup", "measured", "filler"].index
    )
    # The same turns have the same history, and a prefix cache knows no more of it.
    assert measure.found["cached_tokens"] > 0


def test_each_turn_waits_for_its_answer_and_the_think_time(measure: Measurement) -> None:
    assert measure(*CHATS, "--think-time", "0.1", "--processes", "2") == 0
    ends = {(row["request"], row["turn"]): row["due_s"] + row["e2e_latency_ms"] / 1000 for row in measure.measured}
    later = [row for row in measure.measured if row["turn"] > 1]
    assert later
    for row in later:
        assert row["sent_s"] >= ends[row["request"], row["turn"] - 1] + 0.1 - 1e-6


def test_an_open_loop_begins_conversations_from_all_processes(measure: Measurement) -> None:
    rate = ("--request-rate", "40", "--arrival", "constant", "--think-time", "0.05")
    assert measure(*CHATS[:-4], "--compare", "0", *rate, "--processes", "3") == 0
    sent = own(measure.sent)
    assert (max(sent.values()), sent.total()) == (1, len(measure.measured))
    begun = [row["due_s"] / 0.025 for row in measure.rows if row["turn"] in (None, 1)]
    assert begun == pytest.approx([round(place) for place in begun], abs=1e-3)
    assert len({round(place) for place in begun}) == len(begun)


def test_a_request_of_a_trace_is_due_at_its_time_whoever_sends_it(measure: Measurement) -> None:
    rows = [json.loads(line) for line in (FILES / "mooncake.jsonl").read_text().splitlines()]
    times_s = [(row["timestamp"] - rows[0]["timestamp"]) / 1000 for row in rows]
    lengths = Counter((row["input_length"], row["output_length"]) for row in rows)
    for count in (1, 4):
        assert measure(*TRACE, "--processes", str(count)) == 0
        assert measure.processes == count
        assert [row["due_s"] for row in measure.rows] == pytest.approx(times_s, abs=1e-5)
        assert Counter((len(request["prompt"]), request["max_tokens"]) for request in measure.sent) == lengths
        assert measure.columns("request", "prompt_tokens") == [
            (place, row["input_length"]) for place, row in enumerate(rows, 1)
        ]
        assert measure.found["excluded"] == {"warmup": 0, "fillers": 0, "cut": 0}
        # From the first request on, and not from when the last process has had one.
        assert measure.found["window"]["duration_s"] >= times_s[-1]


def test_hosts_are_dealt_to_as_processes_are(
    measure: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        load_hosts, "ClusterLoadHosts", lambda _connect, **options: Machines(tmp_path, wanted=options["wanted"])
    )
    there = ("--ray", "auto", "--hosts", "2")
    assert measure(*CHATS) == 0
    alone, counted = own(measure.sent), measure.columns(*SAME)
    assert measure(*CHATS, *there) == 0
    assert [host["processes"] for host in measure.found["hosts"]] == [1, 1]
    assert (own(measure.sent), measure.columns(*SAME)) == (alone, counted)
    assert measure(*TRACE, *there, "--processes", "2") == 0
    assert measure.processes == 4
    assert [row["request"] for row in measure.rows] == list(range(1, 13))
    due_s = [row["due_s"] for row in measure.rows]
    assert due_s == sorted(due_s)


def test_turns_that_fail_are_counted_as_those_of_one_process_are(measure: Measurement) -> None:
    faulty = Behaviour(ttft_ms=5.0, itl_ms=0.5, malformed_rate=0.25)
    assert measure(*CHATS, "--processes", "2", "--allow-failed", "0.9", behaviour=faulty) == 0
    turns = len(measure.measured)
    assert turns == sum(item["requests"] for item in measure.found["turns"])
    failures = {cause: item["count"] for cause, item in measure.found["failures"].items()}
    assert set(failures) == {"malformed", "unasked"}
    assert sum(failures.values()) == sum(not row["ok"] for row in measure.measured)
    # A conversation that has failed once has no answer after that.
    for number in range(1, 13):
        good = [row["ok"] for row in measure.measured if row["request"] == number]
        assert good == sorted(good, reverse=True)
    assert measure(*CHATS, "--processes", "2", behaviour=faulty) == 1


def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a machine of four cores, whose processes say that they have too much to do."""
    monkeypatch.setattr(ClockMeter, "path_share", property(lambda _: 0.9))
    monkeypatch.setattr(spread, "_SETTLE_S", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))


SLOW = Behaviour(ttft_ms=120.0, itl_ms=1.0, prefix_cache=True)


@pytest.fixture(params=["conversations", "prompts", "trace"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Options of a load; prompts have nothing in common."""
    path = tmp_path / "prompts.jsonl"
    prompts = [" ".join(f"w{number}x{place}" for place in range(60)) for number in range(24)]
    path.write_text("".join(json.dumps({"prompt": prompt, "output_tokens": 4}) + "\n" for prompt in prompts))
    own = ("--dataset", str(path), "--num-requests", "24", "--concurrency", "3", "--compare", "0")
    return {"conversations": CHATS, "prompts": own, "trace": TRACE}[request.param]


def test_where_one_process_is_too_few_others_begin_anew_with_prompts_that_no_cache_knows(
    measure: Measurement, monkeypatch: pytest.MonkeyPatch, load: tuple[str, ...]
) -> None:
    busy(monkeypatch)
    assert measure(*load, behaviour=SLOW) == 0
    assert measure.processes == 3
    # More went out than the run measured, none of it twice.
    said = [json.dumps(request.get("prompt") or request["messages"]) for request in measure.sent]
    assert len(said) > len(measure.rows)
    assert len(set(said)) == len(said)
    numbers = sorted({row["request"] for row in measure.measured})
    assert numbers == list(range(1, len(numbers) + 1))


# Conversations have so much in common that a few of them twice are within what may be known.
@pytest.mark.parametrize("load", ["prompts", "trace"], indirect=True)
def test_an_attempt_that_said_the_same_again_would_be_invalid(
    measure: Measurement, monkeypatch: pytest.MonkeyPatch, load: tuple[str, ...], capsys: Capture
) -> None:
    busy(monkeypatch)
    written = round_prompts.prompts_of

    def again(*arguments: Any, attempt: int, **options: Any) -> Any:
        return written(*arguments, **options)

    monkeypatch.setattr(round_spread, "prompts_of", again)
    assert measure(*load, behaviour=SLOW) == 1
    assert "prompt tokens came from the server's prefix cache" in capsys.readouterr().err


def test_a_process_that_has_too_much_to_do_says_how_there_are_more(
    measure: Measurement, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(summary, "client_bound", lambda *_, **__: "client-bound: too much.")
    more = r" Where there are cores for more processes, write --processes {}; on other machines, --ray ADDRESS --hosts N\.$"
    for count in (1, 2):
        assert measure(*CHATS, "--processes", str(count)) == 1
        said = capsys.readouterr().err.strip()
        assert re.search(rf"^INVALID: .*client-bound: too much\.{more.format(2 * count)}", said), said
    assert measure(*CHATS, "--processes", "4") == 1
    assert capsys.readouterr().err.endswith("client-bound: too much.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*CHATS, "--processes", "5"),
            "5 processes: must be from 1 to 4, so that each has a conversation to send: 4 are in flight. Ask for fewer.",
        ),
        (
            (*TRACE, "--processes", "13"),
            "13 processes: must be from 1 to 12, so that each has a request to send: there are 12. Ask for fewer.",
        ),
        ((*TRACE, "--processes", "0"), "--processes 0: must be at least 1."),
    ],
)
def test_more_than_there_is_to_send(
    measure: Measurement, options: tuple[str, ...], message: str, capsys: Capture
) -> None:
    assert measure(*options) == 2
    assert capsys.readouterr().err == f"inferperf: {message}\n"
    assert not measure.sent


def test_more_hosts_than_there_is_to_send(
    measure: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    hosts = Machines(tmp_path, count=3, wanted=3)
    monkeypatch.setattr(load_hosts, "ClusterLoadHosts", lambda _connect, **_: hosts)
    assert measure(*CHATS, "--ray", "auto", "--hosts", "3", "--processes", "2") == 2
    assert capsys.readouterr().err == (
        "inferperf: 3 hosts with 2 processes each: there may be 4 processes at most, so that each has a conversation to send: "
        "4 are in flight. Ask for 2 hosts.\n"
    )
    assert hosts.taken_so_far == []
