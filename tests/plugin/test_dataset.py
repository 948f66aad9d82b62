"""Workloads from files: `dataset="prompts.jsonl"` sends its records, each once, and files figures under its content."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.measure.load import round_prompts
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import SimulatedServer, serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

importlib.import_module("pytest_inferperf.measure.recorded.requests")

FILES = Path(__file__).parent / "datasets"
QUICK = Behaviour(ttft_ms=5.0, itl_ms=1.0)
LOAD = "concurrency=2, num_requests=8, rounds=2"
ONCE = "concurrency=2, num_requests=8, rounds=1, warmup_rounds=0"
FLOOR = "throughput_floor(output_throughput=1)"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every request that a simulated server of this process got."""
    found: list[dict[str, Any]] = []
    complete = SimulatedServer._complete

    def listen(self: SimulatedServer, connection: Any, body: bytes, *, chat: bool) -> None:
        found.append(json.loads(body))
        complete(self, connection, body, chat=chat)

    monkeypatch.setattr(SimulatedServer, "_complete", listen)
    return found


def take(path: Path, *names: str) -> None:
    for name in names:
        shutil.copy(FILES / name, path / name)


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FILES / name).read_text().splitlines()]


def rounds(served: ServedProject) -> list[dict[str, Any]]:
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    (session,) = record["result"]["performance"]["sessions"]
    return list(session["rounds"])


def test_every_record_is_sent_once_as_text_with_its_own_output_length(
    served: ServedProject, asked: list[dict[str, Any]]
) -> None:
    """A warm-up round and two others of 8 take all 24 records; warm-up requests and fillers are none of them."""
    take(served.path, "prompts.jsonl")
    with serve_in_thread(QUICK) as server:
        served.test(f'{served.at(server.url)}, dataset="prompts.jsonl", {LOAD}', FLOOR)
        served.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    # An endpoint may have seen the file before: a mark of the process makes the prompts new.
    streamed = [request for request in asked if request["stream"]]
    sent = [(request["prompt"].partition(" ")[2], request["max_tokens"]) for request in streamed]
    known = [(line["prompt"], line["output_tokens"]) for line in lines("prompts.jsonl")]
    assert sorted(item for item in sent if item in known) == sorted(known)
    found = rounds(served)
    assert sum(item["num_requests"] for item in found) == 16
    assert 16 * 3 <= sum(item["output_tokens"] for item in found) <= 16 * 8
    # Words are the tokens of the simulated server, and the mark is one.
    words = [len(prompt.split()) + 1 for prompt, _ in known]
    assert 16 * min(words) <= sum(item["input_tokens"] for item in found) <= 16 * max(words)


def test_chats_are_sent_as_they_are(served: ServedProject, asked: list[dict[str, Any]]) -> None:
    take(served.path, "chats.jsonl")
    load = 'endpoint="chat", osl=4, num_requests=6, rounds=1'
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, prefix_cache=True)) as server:
        served.test(f'{served.at(server.url)}, dataset="chats.jsonl", {load}', FLOOR)
        served.run().assert_outcomes(passed=1)
    chats = [request["messages"] for request in asked if request["stream"]]
    first = [line["messages"][:2] for line in lines("chats.jsonl")]
    sent = [[{**chat[0], "content": chat[0]["content"].partition(" ")[2]}, *chat[1:]] for chat in chats]
    assert all(chat in sent for chat in first)
    # Fillers keep the system message that all have in common.
    assert {chat[0]["content"] for chat in sent} - {first[0][0]["content"]} <= {
        first[0][0]["content"].partition(" ")[2]
    }


def test_cached_prompts_that_the_file_does_not_share_are_invalid(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's records have nothing in common: only a second run with the same mark finds them in the cache."""
    texts = [f"{number} " + " ".join(f"w{number}x{at}" for at in range(40)) for number in range(11, 23)]
    (served.path / "own.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, prefix_cache=True)) as server:
        served.test(f'{served.at(server.url)}, dataset="own.jsonl", osl=4, num_requests=4, rounds=2', FLOOR)
        served.run().assert_outcomes(passed=1)
        again = served.run()
        again.assert_outcomes(failed=1)
        again.stdout.fnmatch_lines(["*INVALID*prompt tokens came from the server's prefix cache*"])
        monkeypatch.setattr(round_prompts, "_THIS_PROCESS", 0.5)
        served.run().assert_outcomes(passed=1)


def test_loads_of_one_file_do_not_find_each_others_prompts_in_the_cache(served: ServedProject) -> None:
    texts = [f"{number} " + " ".join(f"w{number}x{at}" for at in range(40)) for number in range(11, 19)]
    (served.path / "own.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    load = 'dataset="own.jsonl", osl=4, concurrency=[1, 2, 4], num_requests=8, rounds=1, warmup_rounds=0'
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, prefix_cache=True)) as server:
        served.test(f"{served.at(server.url)}, {load}", FLOOR)
        served.run().assert_outcomes(passed=3)


def test_server_that_cuts_answers_short_is_invalid(served: ServedProject) -> None:
    take(served.path, "prompts.jsonl")
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, max_output_tokens=4)) as server:
        served.test(f'{served.at(server.url)}, dataset="prompts.jsonl", {LOAD}', FLOOR)
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*4 tokens came where ? were asked for*"])


def test_input_that_nobody_counts_is_invalid(served: ServedProject) -> None:
    take(served.path, "prompts.jsonl")
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, usage=False)) as server:
        served.test(f'{served.at(server.url)}, dataset="prompts.jsonl", {LOAD}', FLOOR)
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*the server counts no prompt tokens (usage), and there is no tokenizer*"])


def test_latency_of_records_fails_when_the_server_is_slower(served: ServedProject) -> None:
    take(served.path, "prompts.jsonl")
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.5)'
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=1.0)) as server:
        served.test(f'{served.at(server.url)}, dataset="prompts.jsonl", {ONCE}', gate)
        served.run("--inferperf-update=new", "--inferperf-set=sessions=1")
        (path,) = (served.path / "baselines").rglob("tiny-llama.json")
        (key,) = json.loads(path.read_text())["entries"]
        assert key.startswith("BF16-serve-endpoint-prompts-")
        assert key.endswith("-c2-n8")
        served.run().assert_outcomes(passed=1)
    with serve_in_thread(Behaviour(ttft_ms=140.0, itl_ms=1.0)) as server:
        served.test(f'{served.at(server.url)}, dataset="prompts.jsonl", {ONCE}', gate)
        served.run().assert_outcomes(failed=1)


def test_baseline_is_of_the_content_wherever_the_file_is(project: Project) -> None:
    take(project.path, "prompts.jsonl")
    (project.path / "deeper").mkdir()
    take(project.path / "deeper", "prompts.jsonl")
    mark = f'inferperf(model="tiny-llama", quant="NVFP4", dataset="prompts.jsonl", {LOAD}, sessions=1)'
    project.test(mark, 'throughput_floor("output_throughput", tolerance=0.6)')
    project.run("--inferperf-update=new")
    project.run().assert_outcomes(passed=1)
    project.run("--inferperf-set=dataset=deeper/prompts.jsonl").assert_outcomes(passed=1)
    changed = project.path / "deeper" / "prompts.jsonl"
    changed.write_text(changed.read_text().replace("Explain to", "Explain for"))
    result = project.run("--inferperf-set=dataset=deeper/prompts.jsonl")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no baseline*"])


def test_engine_in_the_process_gets_the_records_as_its_own_tokens(project: Project) -> None:
    """The scripted engine's tokens are bytes: a ShareGPT answer of n bytes asks for n of them."""
    take(project.path, "sharegpt.json")
    mark = 'inferperf(model="tiny-llama", quant="NVFP4", dataset="sharegpt.json", num_requests=14, rounds=1, warmup_rounds=0'
    project.test(f"{mark})", FLOOR)
    project.run("--inferperf-json=out.json", "--inferperf-audit").assert_outcomes(passed=1)
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    (round_,) = record["result"]["performance"]["sessions"][0]["rounds"]
    talks = [
        item["conversations"] for item in json.loads((FILES / "sharegpt.json").read_text()) if item["conversations"]
    ]
    assert round_["input_tokens"] == sum(len(talk[0]["value"].encode()) for talk in talks)
    assert round_["output_tokens"] == sum(len(talk[1]["value"].encode()) for talk in talks)
    assert record["result"]["case"]["workload"]["dataset_path"] == str(project.path / "sharegpt.json")


def test_engines_that_are_compared_get_the_same_records_and_never_one_twice(project: Project) -> None:
    """Blocks take two rounds each: with eight requests a round, 24 records are enough for one block and no more."""
    take(project.path, "prompts.jsonl")
    project.engine(by={"BF16": {"tpot_ms": 20.0}})
    mark = 'inferperf(model="tiny-llama", quant="NVFP4", dataset="prompts.jsonl", rounds=1, num_requests={})'
    gate = 'speedup_floor(over="BF16", ratio=1.2)'
    project.test(mark.format(1), gate)
    project.run().assert_outcomes(passed=1)
    project.test(mark.format(8), gate)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*INVALID*round 4, warm-up rounds counted, needs the records 25 to 32 of prompts-*, and it has 24 usable ones*"
        ]
    )


def test_record_that_does_not_fit_is_invalid(project: Project) -> None:
    (project.path / "long.jsonl").write_text(json.dumps({"prompt": "long " * 900}) + "\n")
    project.test('inferperf(model="tiny-llama", quant="NVFP4", dataset="long.jsonl", osl=9, rounds=1, warmup_rounds=0)')
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*a prompt of 4500 tokens and an output of 9 do not fit the engine's context of 4096 *"]
    )


def test_ids_and_selection(served: ServedProject) -> None:
    take(served.path, "prompts.jsonl", "chats.jsonl")
    served.test('serve="vllm", dataset=["prompts.jsonl", "chats.jsonl"], osl="uniform(3,8)", rounds=1')
    result = served.run("--collect-only", "-q")
    ids = [line.partition("::")[2] for line in result.outlines if "::" in line]
    labels = [item.removeprefix("test_it[BF16-").removesuffix("-osl3-8-c1]") for item in ids]
    assert [label.rpartition("-")[0] for label in labels] == ["prompts", "chats"]
    served.collects(f"BF16-{labels[1]}-osl3-8-c1", expression=f"inferperf(dataset='{labels[1]}')")


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        (
            'dataset="prompts.json"',
            "dataset='prompts.json': no such file, relative to *. Files there: *prompts.jsonl*.",
        ),
        (
            'dataset="../outside.jsonl"',
            "dataset='../outside.jsonl': * lies outside of the rootdir *. Copy it to the tests.",
        ),
        ('dataset="link.jsonl"', "dataset='link.jsonl': * lies outside of the rootdir *. Copy it to the tests."),
        ('dataset="prompts.jsonl", isl=9', "isl=9 and dataset='prompts.jsonl': prompts are drawn, or those of *"),
        ('dataset="prompts.jsonl", shared_prefix=0.5', "shared_prefix=0.5 and dataset='prompts.jsonl': prompts are *"),
        ('dataset="bare.jsonl"', "dataset='bare.jsonl': none of its 7 records says how long the output is, by *osl=*"),
        ('dataset="broken.jsonl"', "dataset='broken.jsonl': *broken.jsonl, line 1: not JSON (*"),
        ("dataset=3", "dataset=3 is an int; dataset takes a str, or a list of them."),
        (
            'dataset="prompts.jsonl", concurrency=2, num_requests=8',
            "dataset='prompts.jsonl' has 24 usable records, and 6 rounds (1 of warm-up) of 8 requests, none of them "
            "twice, need 48. num_requests=4 would do, or fewer rounds=, or a longer file.",
        ),
        ('dataset="prompts.jsonl", concurrency=8', "*need 48. concurrency=4 would do, or fewer rounds=, or a longer *"),
        ('dataset="prompts.jsonl", rounds=30', "*need 31. Give at most 24 rounds= and warmup_rounds= together, or *"),
    ],
)
def test_wrong_dataset_is_a_collection_error(project: Project, keywords: str, says: str) -> None:
    take(project.path, "prompts.jsonl")
    outside = project.path.parent / "outside.jsonl"
    take(project.path.parent, "prompts.jsonl")
    (project.path.parent / "prompts.jsonl").rename(outside)
    (project.path / "link.jsonl").symlink_to(outside)
    (project.path / "bare.jsonl").write_text('{"prompt": "Why?"}\n' * 7)
    (project.path / "broken.jsonl").write_text("{")
    project.test(f'inferperf(model="tiny-llama", {keywords})')
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*inferperf: {says}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert project.engines() == []
