"""Fast because wrong is not fast: what is answered under load must be what is answered alone."""

from __future__ import annotations

import importlib
import json

import pytest

from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread
from tests.plugin.conftest import PERFORMANCE, Project

for _name in ("launch", "openai.engine", "openai.served"):
    importlib.import_module(f"pytest_inferperf.engines.{_name}")
for _name in ("load.rounds", "load.honesty", "agreement", "witness"):
    importlib.import_module(f"pytest_inferperf.measure.{_name}")

AGREES = "throughput_floor(output_agreement=0.9)"


@pytest.fixture
def served(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose engines are the shipped ones, on a machine that holds every load."""
    (project.path / "conftest.py").unlink()
    monkeypatch.setattr("pytest_inferperf.measure.load.rounds.check_load", lambda run, **_: "")
    return project


def on(url: str) -> str:
    return (
        f'inferperf(model="tiny-llama", url={url!r}, engine_options={{"request_model": "simulated"}}, isl=16, osl=8, '
        "concurrency=4, num_requests=12, rounds=2)"
    )


def test_scripted_engine_agrees_with_itself(project: Project) -> None:
    project.test(PERFORMANCE, AGREES)
    result = project.run("--inferperf-json=out.json")
    result.assert_outcomes(passed=1)
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    (session,) = record["result"]["performance"]["sessions"]
    assert [item["metrics"].get("output_agreement") for item in session["rounds"]] == [None, None, 1.0]
    assert session["telemetry"]["outputs.compared"] == 6
    assert session["telemetry"]["outputs.identical"] == 1.0


def test_server_that_answers_honestly_passes(served: Project) -> None:
    with serve_in_thread(Behaviour(ttft_ms=10.0, itl_ms=4.0)) as server:
        served.test(on(server.url), AGREES)
        served.run().assert_outcomes(passed=1)


def test_the_clock_of_the_client_is_kept_with_the_session(served: Project) -> None:
    with serve_in_thread(Behaviour(ttft_ms=10.0, itl_ms=4.0)) as server:
        served.test(on(server.url), AGREES)
        served.run("--inferperf-json=out.json").assert_outcomes(passed=1)
    (record,) = json.loads((served.path / "out.json").read_text())["records"]
    (session,) = record["result"]["performance"]["sessions"]
    client = {name: value for name, value in session["telemetry"].items() if name.startswith("client.")}
    assert {"client.late_ms", "client.lag_ms"} <= client.keys()
    assert client["client.processes"] == client["client.kernel_times"] == 1
    assert 0 <= client["client.idle_share"] < client["client.cpu_share"] <= 1.05


def test_server_that_answers_garbage_under_load_is_invalid(served: Project) -> None:
    """No gate names the agreement, and still no figure of it is judged."""
    with serve_in_thread(Behaviour(ttft_ms=10.0, itl_ms=4.0, jitter_ms=30.0, garble_rate=1.0)) as server:
        served.test(on(server.url), "throughput_floor(output_throughput=0.1)")
        result = served.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*INVALID: the run is invalid: the first token that was streamed is not the first of*"]
    )


def test_limit_of_the_ini_file(project: Project) -> None:
    """All but the first of eight tokens differ: the first token is right, and an eighth agrees."""
    conftest = project.path / "conftest.py"
    flip = "token_ids=(65,) + (66 if concurrency > 1 else 65,) * (tokens - 1) if tokens else (),"
    source = conftest.read_text()
    assert "token_ids=(65,) * tokens," in source
    conftest.write_text(source.replace("token_ids=(65,) * tokens,", flip))
    project.test(PERFORMANCE, "throughput_floor(output_throughput=0.1)")
    result = project.run("--inferperf-json=out.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*INVALID: *the answers under load begin as those at concurrency 1 for 12.5 % of*where 25 % is the least*"]
    )
    (record,) = json.loads((project.path / "out.json").read_text())["records"]
    assert record["result"]["performance"]["sessions"][0]["rounds"][-1]["metrics"]["output_agreement"] == 0.125
    project.run("-o", "inferperf_min_agreement=0.1").assert_outcomes(passed=1)
    project.test(PERFORMANCE, AGREES)
    result = project.run("-o", "inferperf_min_agreement=0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_agreement 0.125 share is below its floor 0.9*"])


def test_speedup_gate_alone_looks_at_the_candidate_too(project: Project) -> None:
    conftest = project.path / "conftest.py"
    wrong = "token_ids=(66 if concurrency > 1 else 65,) * tokens,"
    project.test(PERFORMANCE, 'speedup_floor("output_throughput", over="BF16", ratio=0.5)')
    project.run().assert_outcomes(passed=1)
    conftest.write_text(conftest.read_text().replace("token_ids=(65,) * tokens,", wrong))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*INVALID: *the answers under load begin as those at concurrency 1 for 0 % of*"])


def test_server_that_counts_what_it_does_not_send_is_invalid(served: Project) -> None:
    with serve_in_thread(Behaviour(ttft_ms=10.0, itl_ms=4.0, unsent=0.9)) as server:
        served.test(on(server.url), "throughput_floor(output_throughput=0.1)")
        result = served.run()
        result.stdout.fnmatch_lines(["*INVALID: *the server counts 128 tokens in 16 answers whose text has*bytes*"])
        served.run("-o", "inferperf_max_count_error=1").assert_outcomes(passed=1)
