"""Distributed lengths and shared prefixes in marks: what is sent, checked for each request, and how it is filed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.measure.load.round_prompts import _prompts
from pytest_inferperf.measure.workload import draw_requests
from pytest_inferperf.model.case import Workload
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

DRAWN = 'isl="uniform(8,16)", osl="uniform(2,6)", concurrency=2, num_requests=12, rounds=1'
WORKLOAD = Workload(isl="uniform(80,100)", osl="uniform(2,6)", concurrency=8, shared_prefix=0.5)


def test_ids_and_selection(served: ServedProject) -> None:
    served.test('serve="vllm", isl=["uniform(819, 1024)", "normal(1024,100)"], osl=64, shared_prefix=[0, 0.5]')
    ids = [f"BF16-isl{isl}-osl64{prefix}-c1" for isl in ("819-1024", "1024sd100") for prefix in ("", "-prefix0.5")]
    served.collects(*ids)
    served.collects(ids[1], expression="inferperf(isl='uniform(819,1024)', shared_prefix='0.5')")


def test_engine_in_the_process_gets_what_was_drawn(project: Project) -> None:
    project.test(
        f'inferperf(model="tiny-llama", quant="NVFP4", {DRAWN}, shared_prefix=0.5, sessions=1)',
        'throughput_floor("output_throughput", tolerance=0.6)',
    )
    project.run("--inferperf-update=new", "--inferperf-json=out.json")
    (path,) = (project.path / "baselines").rglob("tiny-llama.json")
    (key,) = json.loads(path.read_text())["entries"]
    assert key == "NVFP4-isl8-16-osl2-6-prefix0.5-c2-n12"
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    (round_,) = record["result"]["performance"]["sessions"][0]["rounds"]
    assert 12 * 8 < round_["input_tokens"] < 12 * 16
    assert 12 * 2 < round_["output_tokens"] < 12 * 6
    project.run().assert_outcomes(passed=1)


def test_server_must_send_what_was_drawn_for_each_request(served: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {DRAWN}", "throughput_floor(output_throughput=1)")
        served.run().assert_outcomes(passed=1)


def test_server_that_cuts_some_answers_short_is_invalid(served: ServedProject) -> None:
    """Of answers of 2 to 6 tokens, those of more than 4 are not what was asked for."""
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, max_output_tokens=4)) as server:
        served.test(f"{served.at(server.url)}, {DRAWN}", "throughput_floor(output_throughput=1)")
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID*4 tokens came where ? were asked for*"])


def test_request_that_does_not_fit_at_its_longest(project: Project) -> None:
    project.test('inferperf(model="tiny-llama", quant="NVFP4", isl="uniform(1,4000)", osl="normal(20,30)")')
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*isl 4000 + osl 110 tokens do not fit the engine's context of 4096 tokens."])


def shared(requests: list[GenerationRequest]) -> int:
    """Count the tokens with which all prompts begin."""
    return next(
        (at for at, tokens in enumerate(zip(*(item.prompt for item in requests), strict=False)) if len(set(tokens)) > 1)
    )


def test_prefix_is_shared_by_all_rounds_and_the_rest_by_none() -> None:
    rounds = [draw_requests(range(10_000), WORKLOAD, round_index=index) for index in range(2)]
    assert 40 <= shared(rounds[0] + rounds[1]) <= 50
    tails = {item.prompt[-30:] for item in rounds[0] + rounds[1]}
    assert len(tails) == 16
    assert rounds[0] == draw_requests(range(10_000), WORKLOAD, round_index=0)


@pytest.mark.parametrize("other", [{"concurrency": 8}, {"osl": 99}, {"num_requests": 9}, {"endpoint": "chat"}])
def test_workloads_have_prompts_of_their_own_too(other: dict[str, Any]) -> None:
    """Several tests, and the points of a sweep, share a server: nothing but the prefix may be cached."""
    loads = [replace(WORKLOAD, concurrency=1), replace(WORKLOAD, **{"concurrency": 1, **other})]
    rounds = [draw_requests(range(10_000), load, round_index=0) for load in loads]
    assert 40 <= shared(rounds[0] + rounds[1]) <= 50
    assert not {item.prompt[-30:] for item in rounds[0]} & {item.prompt[-30:] for item in rounds[1]}


@pytest.mark.parametrize("fresh", [False, True])
def test_fillers_share_the_prefix_too(fresh: bool) -> None:
    requests = draw_requests(range(10_000), WORKLOAD, round_index=0)
    prompts = _prompts(requests, WORKLOAD, fresh=fresh)
    sent = [next(prompts) for _ in range(20)]
    assert 40 <= shared(sent) <= 50
    assert {len(item.prompt) for item in sent} == {len(item.prompt) for item in requests}
    assert (sent[:8] == requests) is not fresh


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ('isl="1024", osl=1', "isl='1024' is no distribution of lengths. Write a number of tokens, *"),
        ('isl="uniform(9,1)", osl=1', "isl='uniform(9,1)': both numbers are at least 1, and the least *"),
        ("isl=1.5, osl=1", "isl=1.5 is a float; isl takes an int or a str, or a list of them."),
        ("isl=1, osl=1, shared_prefix=1", "shared_prefix=1 must be from 0 to below 1; 0.5 is half of each prompt."),
    ],
)
def test_wrong_length_is_a_collection_error(project: Project, keywords: str, says: str) -> None:
    project.test(f'inferperf(model="tiny-llama", {keywords})')
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*inferperf: {says}"])
