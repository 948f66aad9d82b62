"""Traces in marks: `trace="mooncake.jsonl"` sends what came to a real service when it came, and latencies count from then."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

importlib.import_module("pytest_inferperf.measure.recorded.traces")

FILES = Path(__file__).parent / "datasets"
ONCE = "rounds=1, warmup_rounds=0"
FLOOR = "throughput_floor(output_throughput=1)"
CACHE = Behaviour(ttft_ms=20.0, itl_ms=1.0, prefix_cache=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, dict[str, Any]]]:
    """Every request that a simulated server of this process got under load, with its time."""
    found: list[tuple[float, dict[str, Any]]] = []
    complete = SimulatedServer._complete

    def listen(self: SimulatedServer, connection: Any, body: bytes, *, chat: bool) -> None:
        request = json.loads(body)
        if request["stream"]:
            found.append((time.perf_counter(), request))
        complete(self, connection, body, chat=chat)

    monkeypatch.setattr(SimulatedServer, "_complete", listen)
    return found


@pytest.fixture
def traced(served: ServedProject) -> ServedProject:
    for name in ("mooncake.jsonl", "azure.csv"):
        shutil.copy(FILES / name, served.path / name)
    return served


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FILES / "mooncake.jsonl").read_text().splitlines()]


def test_requests_go_out_when_the_trace_says_with_its_lengths_and_blocks(
    traced: ServedProject, asked: list[tuple[float, dict[str, Any]]]
) -> None:
    """All twelve are measured, nothing else is sent, and the server finds in its cache what the hashes say."""
    with serve_in_thread(CACHE) as server:
        traced.test(f'{traced.at(server.url)}, trace="mooncake.jsonl", {ONCE}', FLOOR)
        traced.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    known = rows()
    assert [len(request["prompt"]) for _, request in asked] == [row["input_length"] for row in known]
    assert [request["max_tokens"] for _, request in asked] == [row["output_length"] for row in known]
    for (one, first), (other, second) in itertools.combinations(zip(known, asked, strict=True), 2):
        shared = sum(1 for pair in zip(one["hash_ids"], other["hash_ids"], strict=False) if pair[0] == pair[1])
        assert first[1]["prompt"][: 512 * shared] == second[1]["prompt"][: 512 * shared]
    span_s = (known[-1]["timestamp"] - known[0]["timestamp"]) / 1000
    assert 0.9 * span_s <= asked[-1][0] - asked[0][0] <= span_s + 2
    (record,) = json.loads((traced.path / "out.json").read_text())["records"]
    (round_,) = record["result"]["performance"]["sessions"][0]["rounds"]
    assert round_["num_requests"] == 12
    assert round_["input_tokens"] == sum(row["input_length"] for row in known)
    assert round_["output_tokens"] == sum(row["output_length"] for row in known)
    assert round_["duration_s"] >= span_s


def test_a_quarter_of_the_speed_takes_four_times_as_long(
    traced: ServedProject, asked: list[tuple[float, dict[str, Any]]]
) -> None:
    with serve_in_thread(CACHE) as server:
        traced.test(f'{traced.at(server.url)}, trace="azure.csv", trace_speed=0.25, num_requests=6, {ONCE}', FLOOR)
        traced.run().assert_outcomes(passed=1)
    assert len(asked) == 6
    # The first six of the file span 0.19 s.
    assert asked[-1][0] - asked[0][0] >= 4 * 0.17


def test_slow_server_fails_its_ceiling(traced: ServedProject) -> None:
    """Requests that come faster than they are answered are measured from when each was due, and the slow server fails."""
    gate = "latency_ceiling(ttft_ms_p50=100)"
    with serve_in_thread(Behaviour(ttft_ms=20.0, itl_ms=1.0)) as server:
        traced.test(f'{traced.at(server.url)}, trace="azure.csv", num_requests=5, {ONCE}', gate.replace("100", "2000"))
        traced.run().assert_outcomes(passed=1)
    with serve_in_thread(Behaviour(ttft_ms=200.0, itl_ms=1.0)) as server:
        traced.test(f'{traced.at(server.url)}, trace="azure.csv", num_requests=5, {ONCE}', gate)
        result = traced.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ttft_ms.p50 * is above its ceiling 100*"])


def test_blocks_that_the_trace_does_not_share_must_not_be_cached(traced: ServedProject) -> None:
    """The same requests with hashes of their own: a server that finds them in its cache all the same is INVALID."""
    found = rows()
    for number, row in enumerate(found):
        row["hash_ids"] = [100 * number + at for at, _ in enumerate(row["hash_ids"])]
    (traced.path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    with serve_in_thread(CACHE) as server:
        traced.test(f'{traced.at(server.url)}, trace="own.jsonl", {ONCE}', FLOOR)
        traced.run().assert_outcomes(passed=1)


def test_cache_that_knows_more_than_the_trace_is_invalid(
    traced: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_inferperf.simulate.prefix_cache.PrefixCache.look", lambda _, prompt: len(prompt) - 1)
    with serve_in_thread(CACHE) as server:
        traced.test(f'{traced.at(server.url)}, trace="mooncake.jsonl", {ONCE}', FLOOR)
        result = traced.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*prompt tokens came from the server's prefix cache*"])


def test_baseline_is_of_the_content_and_the_speed(traced: ServedProject) -> None:
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.5)'
    with serve_in_thread(Behaviour(ttft_ms=60.0, itl_ms=1.0)) as server:
        traced.test(f'{traced.at(server.url)}, trace="azure.csv", trace_speed=2, {ONCE}', gate)
        traced.run("--inferperf-update=new", "--inferperf-set=sessions=1")
        (path,) = (traced.path / "baselines").rglob("tiny-llama.json")
        (key,) = json.loads(path.read_text())["entries"]
        assert key.startswith("BF16-serve-endpoint-azure-")
        assert key.endswith("-x2-n10")
        traced.run().assert_outcomes(passed=1)
        traced.run("--inferperf-set=trace_speed=3").assert_outcomes(failed=1)


def test_chats_have_a_word_for_each_token(traced: ServedProject, asked: list[tuple[float, dict[str, Any]]]) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0)) as server:
        traced.test(f'{traced.at(server.url)}, trace="azure.csv", endpoint="chat", {ONCE}', FLOOR)
        traced.run("--inferperf-audit").assert_outcomes(passed=1)
    lengths = [int(line.split(",")[1]) for line in (FILES / "azure.csv").read_text().splitlines()[1:]]
    assert [len(request["messages"][0]["content"].split()) for _, request in asked[:10]] == lengths


def test_ids_and_selection(traced: ServedProject) -> None:
    traced.test('serve="vllm", trace=["mooncake.jsonl", "azure.csv"], trace_speed=[1, 2.5]')
    result = traced.run("--collect-only", "-q", "-m", "inferperf(trace_speed='2.5')")
    ids = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert [item.split("-")[1] for item in ids] == ["mooncake", "azure"]
    assert all(item.endswith("-x2.5]") for item in ids)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ('trace="absent.csv"', "trace='absent.csv': no such file, relative to *. Files there: azure.csv."),
        ('trace="azure.csv"', "trace='azure-*': an open loop needs a server, and the engine runs in a process of our own. *"),
        ('trace="azure.csv", concurrency=4', "concurrency=4 and trace='azure.csv': the trace says when requests are due, *"),
        ('trace="azure.csv", osl=4', "osl=4 and trace='azure.csv': the trace says when requests are due, *"),
        ('trace="azure.csv", dataset="a"', "dataset='a' and trace='azure.csv': a workload has one file. Keep one."),
        ('trace="azure.csv", trace_speed=0', "trace_speed=0 must be above 0; 2 is twice as fast."),
        ('trace="azure.csv", num_requests=11', "num_requests=11: trace='azure.csv' has 10. Leave num_requests= out for all."),
        ("isl=1, osl=1, trace_speed=2", "trace_speed=2 says how fast a trace is replayed, and trace= is missing."),
        ('trace="test_it.py"', "trace='test_it.py': *test_it.py, line 1: no column 'TIMESTAMP'; a trace is *"),
    ],
)  # fmt: skip
def test_wrong_trace_is_a_collection_error(served: ServedProject, keywords: str, says: str) -> None:
    shutil.copy(FILES / "azure.csv", served.path / "azure.csv")
    served.test(keywords)
    result = served.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*inferperf: {says}"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_engine_of_a_hook_that_is_no_server_is_told_so(project: Project) -> None:
    shutil.copy(FILES / "azure.csv", project.path / "azure.csv")
    project.test('inferperf(model="tiny-llama", trace="azure.csv", rounds=1)')
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*trace='azure-*': an open loop needs a server, and ScriptedEngine is none.*"])
