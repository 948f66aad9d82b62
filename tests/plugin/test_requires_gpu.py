"""`requires_gpu` and `--inferperf-require-gpu`."""

from __future__ import annotations

import pytest

from pytest_inferperf.engines import hardware
from pytest_inferperf.engines.hardware import Gpu
from tests.plugin.conftest import PERFORMANCE, Project

H200 = Gpu(name="NVIDIA H200", sm=90, memory_gib=139.8)
NEED = "requires_gpu(sm=100, count=2, memory_gib=150)"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs the plugin finds; tests put some in."""
    found: list[Gpu] = []
    monkeypatch.setattr(hardware, "find_gpus", lambda: tuple(found))
    return found


def test_skips_with_needed_and_found(project: Project, gpus: list[Gpu]) -> None:
    gpus.append(H200)
    project.test(PERFORMANCE, NEED)
    result = project.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED *needs 2 GPUs of SM 100 or later with 150 GiB; found NVIDIA H200 (SM 90, 140 GiB)"]
    )
    assert project.engines() == []


def test_option_turns_the_skip_into_a_failure(project: Project, gpus: list[Gpu]) -> None:
    project.test(PERFORMANCE, NEED)
    result = project.run("--inferperf-require-gpu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["needs 2 GPUs of SM 100 or later with 150 GiB; found no NVIDIA GPU (--inferperf-require-gpu forbids to skip)"]
    )


def test_ini_turns_the_skip_into_a_failure(project: Project, gpus: list[Gpu]) -> None:
    project.test(PERFORMANCE, NEED)
    project.run("-o", "inferperf_require_gpu=true").assert_outcomes(errors=1)


def test_runs_where_the_hardware_is(project: Project, gpus: list[Gpu]) -> None:
    gpus.extend([Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)] * 2)
    project.test(PERFORMANCE, NEED)
    project.run("--inferperf-require-gpu").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("requires_gpu(sm='100')", "*requires_gpu: sm='100' is a str; it takes a number."),
        ("requires_gpu(sm=9.0)", "*requires_gpu: sm=9.0 is a float; it takes an int."),
        ("requires_gpu(count=0)", "*requires_gpu: count=0 is below its minimum 1."),
        ("requires_gpu(memory_gib=-1)", "*requires_gpu: memory_gib=-1 is negative."),
        ("requires_gpu(arch=100)", "*requires_gpu: unknown keyword 'arch'."),
        ("requires_gpu(100)", "*requires_gpu: takes keywords only, not 100. *"),
    ],
)
def test_wrong_mark(project: Project, mark: str, expected: str) -> None:
    project.test(PERFORMANCE, mark)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([expected])


def test_without_inferperf_mark(project: Project, gpus: list[Gpu]) -> None:
    project.pytester.makepyfile("import pytest\n\n@pytest.mark.requires_gpu(sm=100)\ndef test_it(): pass")
    project.run().assert_outcomes(skipped=1)
