"""`--inferperf-cases`: what was collected, and whether that is all there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_inferperf.baselines.cases import CollectedCases, read_cases
from tests.plugin.conftest import PERFORMANCE, TASK, Project

COLLECT = ("--collect-only", "-q", "--inferperf-cases=cases.json")


@pytest.fixture
def two(project: Project) -> Project:
    """A project with a test of speed and one of accuracy."""
    project.test(PERFORMANCE, 'throughput_floor("output_throughput")', name="test_speed")
    project.test(
        TASK, 'accuracy_loss_ceiling(reference="BF16", points=1)', name="test_sums", body="inferperf.evaluate()"
    )
    return project


def cases(project: Project, *arguments: str) -> CollectedCases:
    project.run(*COLLECT, *arguments)
    return read_cases(project.path / "cases.json")


def test_a_full_selection(two: Project) -> None:
    found = cases(two)
    assert found.partial == ""
    assert [item.nodeid for item in found.cases] == [
        "test_speed.py::test_speed[NVFP4-isl16-osl8-c2]",
        "test_sums.py::test_sums[NVFP4-gsm8k]",
    ]
    assert [gate.name for item in found.cases for gate in item.gates] == ["output_throughput", "accuracy loss vs BF16"]
    assert two.engines() == []


def test_a_named_folder_is_a_full_selection_of_it(two: Project) -> None:
    assert cases(two, ".").partial == ""


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-k", "speed"), "-k was given"),
        (("-m", "inferperf"), "-m was given"),
        (("--deselect", "test_sums.py"), "--deselect was given"),
        (("--ignore=test_sums.py",), "--ignore was given"),
        (("test_speed.py::test_speed",), "test_speed.py::test_speed is a part of a module"),
        (("--inferperf-set=rounds=1",), "--inferperf-set changed the cases"),
    ],
)
def test_what_makes_a_selection_partial(two: Project, arguments: tuple[str, ...], why: str) -> None:
    assert cases(two, *arguments).partial == why


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import nothing_of_this_name\n", "test_other.py could not be collected"),
        ("import pytest\npytest.skip('no', allow_module_level=True)\n", "test_other.py was skipped at collection"),
    ],
)
def test_a_module_that_was_not_collected(two: Project, source: str, why: str) -> None:
    (two.path / "test_other.py").write_text(source)
    assert cases(two).partial == why


def test_a_plugin_that_deselects(two: Project) -> None:
    (two.path / "sub").mkdir()
    (two.path / "sub/conftest.py").write_text(
        "def pytest_collection_modifyitems(config, items):\n"
        "    config.hook.pytest_deselected(items=items[1:])\n    del items[1:]\n"
    )
    (two.path / "sub/test_more.py").write_text("def test_more(): pass\n")
    assert cases(two).partial == "2 tests were deselected"


def test_a_file_that_cannot_be_written(two: Project) -> None:
    result = two.run("--collect-only", "--inferperf-cases=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *cannot be written: it is a folder. Name a file."])
    assert not list(Path(two.path).glob("*.tmp"))
