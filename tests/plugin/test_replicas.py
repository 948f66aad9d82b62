"""`replicas=`: how many engines answer a task is asked of the engine, and what it has to say of them is kept."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import Project

EVALUATORS = """

from contextlib import contextmanager


@contextmanager
def _evaluators(self, replicas):
    (self.root / "replicas.log").write_text(str(replicas))
    yield self


ScriptedEngine.evaluators = _evaluators
ScriptedEngine.notes = ("node a was lost; b took over",)
"""


@pytest.mark.parametrize(("keywords", "replicas"), [("", "1"), (", replicas=3", "3")])
def test_replicas_of_an_evaluation(project: Project, keywords: str, replicas: str) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + EVALUATORS)
    project.test(
        f'inferperf(model="tiny-llama", quant="NVFP4", task="gsm8k"{keywords})',
        "accuracy_floor(points=1.0)",
        body="inferperf.evaluate()",
    )
    result = project.run("--inferperf-json=found.json", "--junit-xml=found.xml")
    result.assert_outcomes(passed=1)
    assert (project.path / "replicas.log").read_text() == replicas
    (record,) = json.loads((project.path / "found.json").read_text())["records"]
    assert record["result"]["notes"] == ["node a was lost; b took over"]
    assert "node a was lost; b took over" in (project.path / "found.xml").read_text()
    # What was written can be read and judged again.
    project.run("--inferperf-replay=found.json").assert_outcomes(passed=1)


def test_replicas_start_at_one(project: Project) -> None:
    project.test('inferperf(model="tiny-llama", task="gsm8k", replicas=0)', body="inferperf.evaluate()")
    project.run().stdout.fnmatch_lines(["*inferperf: replicas=0 is below its minimum 1."])
