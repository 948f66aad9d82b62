"""`share_node=True`: a PASS is worth what it is on a whole node, a FAIL names the neighbour, a comparison needs the whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_inferperf import placement
from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.cluster.rules import Node
from pytest_inferperf.model.results import CaseResult
from tests.plugin.conftest import PERFORMANCE, TASK, Project

USER = "output_throughput_per_user"
SHARED = PERFORMANCE.replace("rounds=3", "rounds=3, share_node=True")
FASTER = f'speedup_floor("{USER}", over="BF16", ratio=1.5)'

ON_A_NODE = """

from contextlib import contextmanager

from pytest_inferperf.engines.interface import Watched
from pytest_inferperf.model.results import Placement
from pytest_inferperf.session import state_of


@contextmanager
def watch(engine):
    yield Watched(figures=json.loads((engine.root / "neighbours.json").read_text()))


def pytest_collection_finish(session):
    ScriptedEngine.watch = watch
    place = Placement(
        engine="NVFP4 tiny-llama", node="a (3f2a)", gpus=0, asked="22:00", granted="22:01", waited_s=60.0,
        shared=(session.config.rootpath / "shared").exists(),
    )
    state_of(session.config).placement = lambda: place
"""
"""Stands in for a seat on a cluster, and for its node, which says what Ray has handed out to others there."""

TWO = '{"node.cpus_of_others": 2, "node.gpus_of_others": 1}'
NOBODY = '{"node.cpus_of_others": 0, "node.gpus_of_others": 0}'
WORDS = "it shared its node with others, who had 2 CPUs and 1 GPU of it"
ALONE = "Next: run it again on a node of its own, with --inferperf-set=share_node=false"


@pytest.fixture
def on_node(project: Project) -> Project:
    """Return a project whose engine has a part of a node, others the rest, and a baseline of a whole node, 100 tok/s/user."""
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(ON_A_NODE)
    (project.path / "neighbours.json").write_text(NOBODY)
    project.test(SHARED, f'throughput_floor("{USER}")')
    project.engine(tpot_ms=10)
    project.run("--inferperf-update=new")
    (project.path / "neighbours.json").write_text(TWO)
    (project.path / "shared").touch()
    return project


def result_of(project: Project, *arguments: str) -> tuple[pytest.RunResult, CaseResult]:
    result = project.run("--inferperf-json=found.json", *arguments)
    (record,) = read_result_file(project.path / "found.json").records
    return result, record.result


def test_a_clean_run_passes_and_its_result_says_who_was_there(on_node: Project) -> None:
    result, found = result_of(on_node)
    result.assert_outcomes(passed=1)
    assert found.placement is not None
    assert found.placement.shared
    assert found.notes == (f"NVFP4 tiny-llama: {WORDS}",)
    assert found.performance is not None
    assert {session.telemetry["node.cpus_of_others"] for session in found.performance.sessions} == {2}


@pytest.mark.parametrize(
    ("neighbours", "words"),
    [
        (TWO, WORDS),
        (NOBODY, "others were let onto its node, and had nothing of it whenever a session began or ended"),
        ("{}", "others were let onto its node, and nobody knows whether any came"),
    ],
    ids=["others", "nobody", "unknown"],
)
def test_a_regression_fails_and_names_the_neighbour(on_node: Project, neighbours: str, words: str) -> None:
    (on_node.path / "neighbours.json").write_text(neighbours)
    on_node.engine(tpot_ms=12)
    result, found = result_of(on_node)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{USER} * is below its floor 95 *; {words}; 1 of 1 gate failed", ALONE])
    result.stdout.no_fnmatch_line("*To accept*")
    assert found.notes == (f"NVFP4 tiny-llama: {words}",)
    # Judged again from its result file, it is the same failure.
    again = on_node.run("--inferperf-replay=found.json")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines([f"{USER} * is below its floor 95 *; {words}; 1 of 1 gate failed"])


def test_a_whole_node_is_judged_as_ever(on_node: Project) -> None:
    (on_node.path / "shared").unlink()
    on_node.engine(tpot_ms=12)
    result, found = result_of(on_node)
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*share*")
    result.stdout.fnmatch_lines(["To accept: *"])
    assert not found.notes


def test_a_reference_that_a_neighbour_may_have_slowed_lets_nothing_pass(on_node: Project) -> None:
    """Twice as good as the reference, which may only be because of who was there: on a whole node it passes."""
    on_node.test(SHARED, FASTER)
    on_node.engine(tpot_ms=10, by={"BF16": {"tpot_ms": 20}})
    result = on_node.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"INVALID: the run is invalid: {WORDS}, and a neighbour of the reference makes *"])
    (on_node.path / "shared").unlink()
    on_node.run().assert_outcomes(passed=1)


def test_another_run_that_a_neighbour_may_have_slowed_is_no_reference(on_node: Project) -> None:
    on_node.engine(tpot_ms=20)
    on_node.run("--inferperf-json=slow.json").assert_outcomes(failed=1)
    (on_node.path / "shared").unlink()
    on_node.engine(tpot_ms=15)
    result = on_node.run("--inferperf-against=slow.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [f"*its result of this case is no reference: {WORDS}, and a neighbour may have slowed it*"]
    )
    # The same run on a whole node is one.
    on_node.engine(tpot_ms=20)
    on_node.run("--inferperf-json=slow.json").assert_outcomes(failed=1)
    on_node.engine(tpot_ms=15)
    on_node.run("--inferperf-against=slow.json").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marks", "option", "whole"),
    [
        ((SHARED, f'throughput_floor("{USER}")'), "", False),
        ((TASK,), "", False),
        ((PERFORMANCE,), "", True),
        ((SHARED,), "--inferperf-update=new", True),
        ((SHARED, FASTER), "", True),
        ((SHARED, f'throughput_floor("{USER}")'), "--inferperf-against=quant=BF16", True),
        ((SHARED,), "--inferperf-set=share_node=false", True),
    ],
    ids=["may share", "evaluation", "says nothing", "records", "speedup", "against", "set"],
)
def test_what_records_or_compares_takes_the_whole_node_whatever_its_mark_says(
    project: Project, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...], option: str, whole: bool
) -> None:
    node = Node(node_id="a", name="a", cpus=2, cpu_name="cpu", cores=2)
    monkeypatch.setattr(placement, "_connection", lambda _: SimpleNamespace(nodes=lambda: (node,), known=(node,)))
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write(
            "\n\ndef pytest_collection_finish(session):\n"
            "    from pytest_inferperf import collection, placement\n\n"
            "    (item,) = session.items\n"
            "    print('WHOLE', placement._request(session, collection.spec_of(item)).whole_node)\n"
        )
    project.test(*marks)
    result = project.run("--collect-only", *([option] if option else []))
    assert f"WHOLE {whole}" in result.outlines
