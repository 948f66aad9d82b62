"""What happened to an engine is said once: in the result of the test it happened in, or of the next one that has any."""

from __future__ import annotations

import json

from tests.plugin.conftest import Project

NOTES = """

_open = ScriptedEngine.__init__


def _lost_while_it_loaded(self, *args, **keywords):
    _open(self, *args, **keywords)
    self.notes = ("lost while it loaded",)


ScriptedEngine.__init__, ScriptedEngine.notes = _lost_while_it_loaded, ()
"""

TESTS = """
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", quant="NVFP4")
MEASURED = dict(isl=16, osl=8, concurrency=2, rounds=3)


@pytest.mark.inferperf(**MEASURED)
@pytest.mark.throughput_floor(output_throughput=0.1)
def test_measured(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task="gsm8k")
@pytest.mark.accuracy_floor(points=1.0)
def test_answered(inferperf, inferperf_engine):
    inferperf_engine.notes = (*inferperf_engine.notes, "lost before it answered")
    inferperf.evaluate()


@pytest.mark.inferperf(**MEASURED)
@pytest.mark.throughput_floor(output_throughput=0.1)
def test_measured_again(inferperf):
    inferperf.measure()
"""


def test_every_sentence_is_said_once_and_none_is_dropped(project: Project) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + NOTES)
    (project.path / "test_it.py").write_text(TESTS)
    for arguments in ([], ["--inferperf-inject=slowdown:1%"]):
        project.run("--inferperf-json=found.json", *arguments).assert_outcomes(passed=3)
        records = json.loads((project.path / "found.json").read_text())["records"]
        said = {record["nodeid"].partition("[")[0]: record["result"].get("notes") for record in records}
        assert said == {
            "test_it.py::test_measured": ["lost while it loaded"],
            "test_it.py::test_measured_again": None,
            "test_it.py::test_answered": ["lost before it answered"],
        }
