"""Tests of one case share the launch of their server: each sends prompts of its own, of the same lengths."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.measure.load.round_prompts import _prompts, _renamed
from pytest_inferperf.measure.occasions import Occasions
from pytest_inferperf.measure.workload import draw_requests
from pytest_inferperf.model.case import Case, EngineSpec, Workload
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.servers import ServedProject

CACHE = Behaviour(ttft_ms=5.0, itl_ms=1.0, prefix_cache=True)
TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", {keywords})

@pytest.mark.throughput_floor(output_throughput=1)
def test_speed(inferperf):
    inferperf.measure()

@pytest.mark.latency_ceiling(ttft_ms_p99=20_000)
def test_latency(inferperf):
    inferperf.measure()
"""


def run(served: ServedProject, keywords: str) -> tuple[pytest.RunResult, list[dict[str, Any]]]:
    """Run two tests of one case; return what pytest says, and the telemetry of each."""
    (served.path / "test_it.py").write_text(TESTS.format(keywords=keywords))
    result = served.run("--inferperf-json=out.json")
    records = json.loads((served.path / "out.json").read_text())["records"]
    found = [record["result"]["performance"] for record in records]
    return result, [item["sessions"][0]["telemetry"] for item in found if item is not None]


def managed() -> str:
    """Keywords of a server that is launched for the tests, so that its prompts are drawn from the seed."""
    command = f"{sys.executable} -m pytest_inferperf.cli simulate-server --port {{port}} --ttft-ms 5 --itl-ms 1"
    return f'serve="{command} --prefix-cache --model {{served_model_name}}"'


def test_second_test_of_a_launch_finds_no_prompt_in_the_cache(served: ServedProject) -> None:
    result, telemetry = run(served, f"{managed()}, isl=64, osl=2, concurrency=2, num_requests=4, rounds=1")
    result.assert_outcomes(passed=2)
    assert [item.get("prompts.occasion") for item in telemetry] == [None, 1.0]


def own_records(served: ServedProject) -> str:
    texts = [f"{number} " + " ".join(f"w{number}x{at}" for at in range(40)) for number in range(11, 19)]
    (served.path / "own.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return 'dataset="own.jsonl", osl=2, num_requests=8, rounds=1, warmup_rounds=0'


def test_records_of_a_file_are_new_to_the_server_in_the_second_test_too(served: ServedProject) -> None:
    with serve_in_thread(CACHE) as server:
        result, telemetry = run(served, f"{served.at(server.url)}, {own_records(served)}")
    result.assert_outcomes(passed=2)
    assert [item.get("prompts.occasion") for item in telemetry] == [None, 1.0]


def test_the_same_prompts_twice_are_invalid(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Occasions, "take", lambda self, case: 0)
    with serve_in_thread(CACHE) as server:
        result, _ = run(served, f"{served.at(server.url)}, {own_records(served)}")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*INVALID*prompt tokens came from the server's prefix cache*"])


WORKLOAD = Workload(isl="uniform(80,100)", osl="uniform(2,6)", concurrency=8, shared_prefix=0.5)


def lengths(requests: Sequence[GenerationRequest]) -> list[tuple[int, int]]:
    return [(len(item.prompt), item.max_tokens) for item in requests]


def test_lengths_and_what_is_shared_are_the_same_on_each_occasion() -> None:
    drawn = draw_requests(range(10_000), WORKLOAD, round_index=0)

    def sent(occasion: int) -> list[GenerationRequest]:
        prompts = _prompts(drawn, WORKLOAD, fresh=False, occasion=occasion)
        return [next(prompts) for _ in range(3 * len(drawn))]

    first, second, third = map(sent, range(3))
    assert lengths(first) == lengths(second) == lengths(third)
    assert second == sent(1), "what was sent can be sent again"
    assert {item.prompt[:40] for item in first + second + third} == {first[0].prompt[:40]}
    tails = [{item.prompt[-30:] for item in requests} for requests in (first, second, third)]
    assert len(set.union(*tails)) == sum(map(len, tails)), "and nothing else, fillers included"


def test_blocks_of_a_trace_stay_equal_under_other_names() -> None:
    block = tuple(range(100, 120))
    drawn = [GenerationRequest(prompt=(*block, end), max_tokens=1, ignore_eos=True) for end in (7, 8)]
    first, second = _renamed(drawn, random.Random("1/"))
    assert first.prompt[:-1] == second.prompt[:-1] != block
    assert first.prompt[-1] != second.prompt[-1]
    assert [first, second] == _renamed(drawn, random.Random("1/"))


SPEC = EngineSpec(model="/models/it", served_model_name="it")


def case(**workload: Any) -> Case:
    return Case(engine=SPEC, workload=Workload(**{"isl": 8, "osl": 2, "concurrency": 1, **workload}))


def test_measurements_are_counted_by_engine_and_load() -> None:
    occasions = Occasions()
    other = replace(case(), engine=replace(SPEC, quant="NVFP4"))
    assert [occasions.take(item) for item in (case(), case(), case(concurrency=2), other, case())] == [0, 1, 0, 0, 2]


def test_a_sweep_has_a_number_that_none_of_its_points_had() -> None:
    occasions = Occasions()
    swept = case(concurrency=0, swept="concurrency", sweep=(1, 2, 4))
    assert [occasions.take(case(concurrency=2)), occasions.take(swept), occasions.take(case(concurrency=4))] == [
        0,
        1,
        2,
    ]
