"""Open loop in marks: `request_rate`, `arrival` and `burstiness`."""

from __future__ import annotations

import json

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import Project
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

RATE = "isl=16, osl=4, request_rate={rate}, num_requests=20, rounds=2"


def test_ids_and_selection(served: ServedProject) -> None:
    served.test('serve="vllm", isl=1024, osl=1024, request_rate=[2.5, 20], arrival="gamma", burstiness=0.5')
    served.collects("BF16-isl1024-osl1024-r2.5-gamma0.5", "BF16-isl1024-osl1024-r20-gamma0.5")
    served.collects("BF16-isl1024-osl1024-r2.5-gamma0.5", expression="inferperf(request_rate='2.5')")


def test_requests_are_sent_at_the_rate_whatever_the_server_does(served: ServedProject) -> None:
    """20 requests at 100 a second take 0.2 s, though an answer takes 0.25 s."""
    with serve_in_thread(Behaviour(ttft_ms=200.0, itl_ms=15.0)) as server:
        served.test(f"{served.at(server.url)}, {RATE.format(rate=100)}", "latency_ceiling(ttft_ms_p50=260)")
        result = served.run("--inferperf-json=out.json")
    result.assert_outcomes(passed=1)
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    assert record["result"]["case"]["workload"]["request_rate"] == 100
    (session,) = record["result"]["performance"]["sessions"]
    assert all(item["duration_s"] < 1.0 for item in session["rounds"])
    assert all(item["num_requests"] == 20 for item in session["rounds"])


def test_latency_at_the_rate_fails_when_the_server_is_slower(served: ServedProject) -> None:
    with serve_in_thread(Behaviour(ttft_ms=400.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {RATE.format(rate=100)}", "latency_ceiling(ttft_ms_p50=260)")
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ttft_ms.p50 4* ms is above its ceiling 260*"])


def test_baseline_is_filed_under_the_rate(served: ServedProject) -> None:
    gate = 'latency_ceiling("ttft_ms.p50", tolerance=0.3)'
    with serve_in_thread(Behaviour(ttft_ms=50.0, itl_ms=1.0)) as server:
        served.test(f"{served.at(server.url)}, {RATE.format(rate=100.5)}", gate)
        served.run("--inferperf-update=new", "--inferperf-set=sessions=1")
        (path,) = (served.path / "baselines").rglob("tiny-llama.json")
        (key,) = json.loads(path.read_text())["entries"]
        assert key == "BF16-serve-endpoint-isl16-osl4-r100.5-n20"
        served.run().assert_outcomes(passed=1)
        # Another rate is another case.
        served.run("--inferperf-set=request_rate=90").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ("request_rate=20, concurrency=8", "*concurrency=8 and request_rate=20: *Keep one."),
        ("request_rate=0", "*request_rate 0.0: must be a number above 0."),
        ("request_rate=-1", "*request_rate=-1 is below its minimum 0."),
        ('request_rate="20"', "*request_rate='20' is a str; request_rate takes a float or an int, or a list of them."),
        ('request_rate=20, arrival="poison"', "*arrival 'poison' is unknown. Did you mean 'poisson'?*"),
        ("request_rate=20, burstiness=0.5", "*burstiness 0.5 goes with arrival 'gamma', not 'poisson'."),
        (
            'arrival="constant"',
            "*arrival='constant' says how requests arrive under open loop, and request_rate= is miss*",
        ),
    ],
)
def test_wrong_rate_is_a_collection_error(served: ServedProject, keywords: str, says: str) -> None:
    served.test(f'serve="vllm", isl=1, osl=1, {keywords}')
    result = served.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([says])


def test_open_loop_needs_a_server(served: ServedProject) -> None:
    served.test("isl=1, osl=1, request_rate=20")
    result = served.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*request_rate=20: an open loop needs a server, and the engine runs in a process of *"]
    )


def test_engine_of_a_hook_that_is_no_server_is_told_so(project: Project) -> None:
    """Only the engine itself knows, so it is said when it is measured."""
    project.test('inferperf(model="tiny-llama", isl=1, osl=1, request_rate=20)')
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*an open loop needs a server, and ScriptedEngine is none*"])
