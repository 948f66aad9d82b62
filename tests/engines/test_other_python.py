"""An engine under another interpreter: its packages are those of its own environment, and of none else."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_inferperf import __version__
from pytest_inferperf.engines import supervisor
from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare virtual environment."""
    folder = tmp_path_factory.mktemp("other") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


def install(environment: Path, *folders: Path) -> str:
    """Make folders importable in an environment; return its interpreter."""
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "installed.pth").write_text("".join(f"{folder}\n" for folder in folders))
    return str(environment / "bin" / "python")


Start = Callable[[str], EngineProcess]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    # What the parent sees must not show it the package.
    monkeypatch.chdir(ROOT)
    engines: list[EngineProcess] = []

    def start(python: str) -> EngineProcess:
        engine = EngineProcess(
            EngineSpec(model="m", served_model_name="good"),
            class_path="fake_backend:FakeEngine",
            checkpoint=tmp_path,
            load_timeout_s=30,
            call_timeout_s=30,
            log_dir=tmp_path / "logs",
            python=python,
        )
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def test_it_runs_on_its_own_packages(start: Start, environment: Path) -> None:
    engine = start(install(environment, ROOT, HERE))
    (answer,) = engine.generate([GenerationRequest(prompt=(5, 6, 7), max_tokens=3)], concurrency=1)
    assert answer.token_ids == (5, 6, 7)
    assert engine.info.versions["prefix"] == str(environment)
    path = engine.info.versions["path"].split(os.pathsep)
    assert sysconfig.get_path("purelib") not in path
    assert "" not in path


def test_it_stays_there_when_it_is_launched_again(start: Start, environment: Path) -> None:
    engine = start(install(environment, ROOT, HERE))
    engine.relaunch()
    assert engine.info.versions["prefix"] == str(environment)


def test_an_environment_without_the_plugin(start: Start, environment: Path) -> None:
    python = install(environment, HERE)
    with pytest.raises(EngineError) as caught:
        start(python)
    first, *rest = str(caught.value).splitlines()
    assert first == (
        f"{python} does not run pytest-inferperf {__version__}. "
        f"Install it there: {python} -m pip install pytest-inferperf=={__version__}"
    )
    assert "No module named" in rest[-1]


def test_an_environment_with_another_version(start: Start, environment: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pytest_inferperf", tmp_path / "old" / "pytest_inferperf")
    (tmp_path / "old" / "pytest_inferperf" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    python = install(environment, tmp_path / "old", HERE)
    with pytest.raises(EngineError) as caught:
        start(python)
    assert str(caught.value) == (
        f"{python} has pytest-inferperf 0.0.9, and this run is {__version__}. "
        f"Install it there: {python} -m pip install pytest-inferperf=={__version__}"
    )


def test_a_program_that_is_no_interpreter(start: Start) -> None:
    true = shutil.which("true")
    assert true is not None
    with pytest.raises(EngineError, match=f"^{true} does not run pytest-inferperf"):
        start(true)


def test_without_one_it_is_this_interpreter(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    assert start("").info.versions["prefix"] == sys.prefix
