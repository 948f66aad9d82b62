"""Fixtures of the plugin tests: a project with a scripted engine, run by pytester."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.evaluate import run as evaluate_run
from pytest_inferperf.measure.load import rounds, summary
from tests.plugin.servers import ServedProject

# pytester takes modules that a run imported out of sys.modules again; a second import would make second classes.
for _name in (
    "baselines.against",
    "baselines.past",
    "baselines.result_file",
    "baselines.store",
    "baselines.update",
    "engines.hardware",
    "engines.injected",
    "baselines.replay",
    "engines.interface",
    "engines.needs",
    "engines.replayed",
    "evaluate.interim",
    "evaluate.run",
    "collection",
    "fitness",
    "fixture",
    "flips",
    "gates.asking",
    "gates.drift",
    "judging",
    "gates.speedup",
    "marks.against",
    "marks.cases",
    "marks.gates",
    "measure.blocks",
    "measure.cpu",
    "measure.environment",
    "measure.gpu",
    "measure.session",
    "measure.telemetry",
    "measure.validity",
    "model.injection",
    "model.limits",
    "opening",
    "ordering",
    "planning.order",
    "planning.plan",
    "replay",
    "report.ci",
    "report.junit",
    "report.lines",
    "report.page.content",
    "report.page.write",
    "report.plan",
    "report.progress",
    "report.run",
    "running",
    "hiding",
    "html",
    "launching",
    "placement",
    "session",
    "settings",
    "terminal",
    "waivers",
    "waiving",
):
    importlib.import_module(f"pytest_inferperf.{_name}")
# C extensions refuse to be loaded twice, and DuckDB keeps what it found in zoneinfo.
for _name in ("numpy", "scipy.special", "scipy.stats", "jsonschema", "markupsafe", "duckdb", "zoneinfo", "pynvml"):
    importlib.import_module(_name)

# As it is before any test has run.
REAL_EVALUATION = evaluate_run.evaluate

PROJECT = Path(__file__).parent / "project"


class Project:
    """A user's project in pytester's folder."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        pytester.makeconftest((PROJECT / "conftest.py").read_text())
        # These tests share a machine with each other: what disturbs their runs is not what they are about.
        pytester.makeini(
            "[pytest]\naddopts = --strict-markers --strict-config -p no:cacheprovider\n"
            "inferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n"
        )
        model = self.path / "tiny-llama"
        model.mkdir()
        (model / "config.json").write_text("{}")

    def engine(self, **script: Any) -> None:
        """Script the engine and its answers; see `project/conftest.py` for the keys."""
        (self.path / "engine.json").write_text(json.dumps(script))

    def test(
        self, *marks: str, body: str = "inferperf.measure()", fixture: str = "inferperf", name: str = "test_it"
    ) -> None:
        """Write a test module with one test."""
        decorators = "\n".join(f"@pytest.mark.{mark}" for mark in marks)
        self.pytester.makepyfile(
            **{f"{name}_module": f"import pytest\n\n{decorators}\ndef {name}({fixture}):\n    {body}\n"}
        )
        source = self.path / f"{name}_module.py"
        source.rename(self.path / f"{name}.py")

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process."""
        return self.pytester.runpytest_inprocess("-p", "no:xdist", *arguments)

    def asked(self) -> str:
        """Return how many questions the last evaluation asked: `250`, `1000 and 250 twice`."""
        return (self.path / "asked.log").read_text()

    def engines(self) -> list[str]:
        """Return what happened to engines: `build NVFP4`, `close NVFP4`."""
        log = self.path / "engines.log"
        return log.read_text().splitlines() if log.exists() else []


PERFORMANCE = 'inferperf(model="tiny-llama", quant="NVFP4", isl=16, osl=8, concurrency=2, rounds=3)'
"""A performance case of the scripted engine."""

TASK = 'inferperf(model="tiny-llama", quant="NVFP4", task="gsm8k")'
"""An accuracy case of the scripted engine."""


def record_reference(project: Project, mark: str) -> None:
    """Store BF16 answers, 900 of 1,000 right, and write the test that judges NVFP4 by them."""
    evaluate = "inferperf.evaluate()"
    project.test('inferperf(model="tiny-llama", quant="BF16", task="gsm8k")', mark, body=evaluate)
    project.run("--inferperf-update=new").assert_outcomes(failed=1)
    project.test(TASK, mark, body=evaluate)


@pytest.fixture(scope="module", autouse=True)
def heap_set_aside() -> None:
    """Leave what is loaded out of collections: pytest 8.4.0 collects five times at the end of every run inside a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def installed_once() -> Iterator[None]:
    """Read what is installed once: every run inside a test would read and parse 200 distributions again."""
    distribution: Any = metadata.PathDistribution
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "read_text", cached(distribution.read_text))
        for name in ("metadata", "entry_points", "files"):
            kept = cached(getattr(distribution, name).fget)
            patch.setattr(distribution, name, property(kept), raising=False)
        yield


def cached(read: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what is read of a folder of this environment; what a test installs elsewhere is read each time."""
    kept: dict[tuple[object, ...], Any] = {}
    environment = sysconfig.get_path("purelib")

    def once(distribution: Any, *names: str) -> Any:
        key = (str(distribution._path), *names)
        if not key[0].startswith(environment):
            return read(distribution, *names)
        if key not in kept:
            kept[key] = read(distribution, *names)
        return kept[key]

    return once


@pytest.fixture(autouse=True)
def real_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate for real where a test does not say otherwise: a run that broke off may not have put the real one back."""
    monkeypatch.setattr(evaluate_run, "evaluate", REAL_EVALUATION)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, outside CI."""
    monkeypatch.delenv("CI", raising=False)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITLAB_CI"):
        # What is run here is not what the CI of this project reads.
        monkeypatch.delenv(name, raising=False)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        # These tests may run under xdist; the runs inside them do not.
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)


@pytest.fixture
def shared_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests share a machine with each other: that the client was late or held less is not what they are about."""
    monkeypatch.setattr(summary, "client_bound", lambda *_, **__: "")
    monkeypatch.setattr(rounds, "check_load", functools.partial(summary.check_load, min_held_share=0.1))


@pytest.fixture
def served(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, shared_machine: None) -> ServedProject:
    """A fresh project whose engine is a server, outside CI."""
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return ServedProject(pytester)
