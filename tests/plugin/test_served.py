"""Engines in servers: marks that name one, and gates on figures of the load generator."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread

for _name in ("engines.launch", "engines.openai.engine", "engines.openai.served", "measure.load.rounds"):
    importlib.import_module(f"pytest_inferperf.{_name}")

TEST = """
import pytest

@pytest.mark.inferperf(model="tiny-llama", {place}, isl=16, osl=8, concurrency=2, num_requests=4, rounds=2)
@pytest.mark.throughput_floor({floor})
def test_it(inferperf):
    inferperf.measure()
"""
OPTIONS = 'engine_options={"request_model": "simulated"}'
QUICK = Behaviour(ttft_ms=50.0, itl_ms=10.0)

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, shared_machine: None) -> Run:
    """Run the test against an engine at `place`, with the shipped backends alone."""
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(
        "[pytest]\naddopts = --strict-markers --strict-config -p no:cacheprovider -p no:xdist\n"
        "inferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n"
    )
    model = pytester.path / "tiny-llama"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def run(place: str, *arguments: str, floor: str = "output_throughput=80") -> pytest.RunResult:
        (pytester.path / "test_it.py").write_text(TEST.format(place=place, floor=floor))
        return pytester.runpytest_inprocess(*arguments)

    return run


def place(url: str) -> str:
    return f"url={url!r}, {OPTIONS}"


def test_floor_on_an_endpoint_passes(run: Run) -> None:
    """2 streams of 8 tokens in 120 ms are 133 tokens/s."""
    with serve_in_thread(QUICK) as server:
        result = run(place(server.url))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*ok*output_throughput*"])


def test_floor_on_an_endpoint_fails_when_its_itl_is_raised(run: Run) -> None:
    """2 streams of 8 tokens in 330 ms are 48 tokens/s."""
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=40.0)) as server:
        result = run(place(server.url))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_throughput*80*"])


def test_failed_requests_are_invalid(run: Run) -> None:
    with serve_in_thread(Behaviour(ttft_ms=5.0, itl_ms=1.0, disconnect_rate=0.5)) as server:
        result = run(place(server.url))
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*INVALID*requests failed, where none may*"])


def test_command_line_points_every_mark_at_an_endpoint(run: Run, pytester: pytest.Pytester) -> None:
    with serve_in_thread(QUICK) as server:
        results = pytester.path / "results.json"
        result = run(f'serve="vllm", {OPTIONS}', f"--inferperf-set=url={server.url}", f"--inferperf-json={results}")
    result.assert_outcomes(passed=1)
    (record,) = json.loads(results.read_text())["records"]
    engine, spec = record["result"]["engine"], record["result"]["case"]["engine"]
    assert (spec["backend"], spec["serve"], spec["url"]) == ("openai", "", server.url)
    assert engine["hardware"] == {"name": "endpoint 127.0.0.1", "count": 1, "kind": "cpu"}
    assert engine["quant_algo"] == "unverified"
    rounds = record["result"]["performance"]["sessions"][0]["rounds"]
    assert [item["num_requests"] for item in rounds] == [4, 4]
    assert all(50 <= item["metrics"]["ttft_ms.p50"] < 80 for item in rounds)


def test_server_is_started_anew_for_each_session(run: Run, pytester: pytest.Pytester) -> None:
    """A command line of one's own, on a port that it is given; nothing of it is left."""
    command = f"{sys.executable} -m pytest_inferperf.cli simulate-server --port {{port}} --ttft-ms 50 --itl-ms 10"
    results = pytester.path / "results.json"
    arguments = ("--inferperf-set=sessions=2", f"--inferperf-json={results}")
    result = run(f'serve="{command} --model {{served_model_name}}"', *arguments)
    result.assert_outcomes(passed=1)
    (record,) = json.loads(results.read_text())["records"]
    assert len(record["result"]["performance"]["sessions"]) == 2
    assert record["result"]["engine"]["versions"]["server"].startswith(sys.executable)
    assert not psutil.Process().children(recursive=True)


def test_injected_slowdown_of_an_endpoint_is_caught(run: Run) -> None:
    """Half of 133 tokens/s; what is injected goes through the engine's own methods, not the load generator."""
    with serve_in_thread(QUICK) as server:
        result = run(place(server.url), "--inferperf-inject=slowdown:50%")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_throughput*80*"])


def test_baseline_of_an_endpoint_is_its_own(run: Run, pytester: pytest.Pytester) -> None:
    """A file under the endpoint's name, and a slower server behind the same mark fails against it."""
    floor = '"output_throughput", tolerance=0.2'
    with serve_in_thread(QUICK) as server:
        here = place(server.url)
        run(here, "--inferperf-update=new", "--inferperf-set=sessions=1", floor=floor)
    (path,) = (pytester.path / "baselines").rglob("tiny-llama.json")
    assert path.parent.name == "endpoint-127.0.0.1-1x"
    (key,) = json.loads(path.read_text())["entries"]
    assert key == "BF16-serve-endpoint-isl16-osl8-c2-n4"
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=60.0)) as server:
        result = run(place(server.url), floor=floor)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_throughput*"])


def test_plan_says_where_the_engine_runs(run: Run) -> None:
    result = run('url="http://127.0.0.1:9"', "--inferperf-plan")
    result.stdout.fnmatch_lines(["*endpoint http://127.0.0.1:9: what it has loaded cannot be verified*"])
    result = run('serve="vllm"', "--inferperf-plan")
    result.stdout.fnmatch_lines(["*served by vllm; used in place: *"])


def test_endpoint_that_is_not_there(run: Run) -> None:
    result = run('url="http://127.0.0.1:9"')
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*http://127.0.0.1:9/v1/completions: Connection refused. Is the server running?*"])


def test_api_key_that_is_not_set(run: Run) -> None:
    """Said when the endpoint is opened: collecting needs no secret."""
    result = run('url="http://127.0.0.1:9", api_key_env="NOT_SET_ANYWHERE"')
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*NOT_SET_ANYWHERE is not set*"])


def test_model_that_is_not_served(run: Run) -> None:
    with serve_in_thread(QUICK) as server:
        result = run(f"url={server.url!r}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*does not serve*'tiny-llama'*Models there: simulated*request_model*"])


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ('serve="vllm", url="http://h"', "Keep one."),
        ('serve="vlm"', "*Did you mean 'vllm'?"),
        ('url="ftp://h"', "not an http or https URL"),
        ('api_key_env="KEY"', "url= is missing"),
        ('serve="vllm", hardware="NVIDIA B200 x8"', "is about an endpoint"),
        ('backend="openai"', "say which to start"),
        ('backend="transformers", url="http://h"', "Leave backend out"),
        ('serve="transformers", quant="W4A16_NVFP4"', "cannot load a checkpoint in W4A16_NVFP4"),
    ],
)
def test_wrong_place_is_a_collection_error(run: Run, where: str, says: str) -> None:
    result = run(where)
    assert result.ret == 2
    result.stdout.fnmatch_lines([f"*{says}*"])


def test_server_is_part_of_the_id_where_it_varies(run: Run, tmp_path: Path) -> None:
    result = run('serve=["vllm", "sglang"]', "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*BF16-isl16-osl8-c2-vllm*", "*BF16-isl16-osl8-c2-sglang*"])
