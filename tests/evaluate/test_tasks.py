"""A task is found, or the message says where it was looked for and what to type."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_inferperf.errors import MissingExtra, TaskError
from pytest_inferperf.evaluate import find_task
from pytest_inferperf.model.case import Task


def test_a_file_is_found_by_its_path(tiny_tasks: Path) -> None:
    found = find_task(Task(name="tiny_words", path=str(tiny_tasks / "tiny_words.yaml")))
    assert (found.name, list(found.tasks), found.is_group) == ("tiny_words", ["tiny_words"], False)
    assert found.source == str(tiny_tasks / "tiny_words.yaml")


def test_a_relative_file_is_looked_for_in_the_search_paths(tiny_tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(name="tiny_words", path="tiny_words.yaml")
    assert find_task(task, search_paths=[tiny_tasks]).name == "tiny_words"
    monkeypatch.chdir(tiny_tasks)
    assert find_task(task).name == "tiny_words"


def test_a_name_is_looked_for_in_the_search_paths(tiny_tasks: Path, tmp_path: Path) -> None:
    found = find_task(Task(name="tiny_text"), search_paths=[tmp_path / "missing", tiny_tasks])
    assert found.source == str(tiny_tasks / "tiny_text.yaml")


def test_a_file_that_does_not_exist(tiny_tasks: Path) -> None:
    path = tiny_tasks / "tiny_wrods.yaml"
    with pytest.raises(TaskError) as caught:
        find_task(Task(name="tiny_wrods", path=str(path)))
    message = str(caught.value)
    assert f"there is no task file {str(path)!r} (looked in {tiny_tasks})" in message
    assert "Did you mean 'tiny_words.yaml'" in message
    assert 'Write task="path/to/tiny_wrods.yaml"' in message
    assert "lm-eval ls tasks" in message


def test_a_file_in_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"There are no YAML files there\."):
        find_task(Task(name="any", path=str(tmp_path / "any.yaml")))


def test_a_file_whose_task_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "sums.yaml"
    path.write_text("task: additions\n")
    with pytest.raises(TaskError, match=r"declares 'task: additions', but its file name says 'sums'.*task: sums"):
        find_task(Task(name="sums", path=str(path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output_type: generate_until\n", "has no 'task:' key. Add 'task: sums'"),
        ("task: [\n", "is not an lm-eval task: ParserError"),
        ("- 1\n", "is not an lm-eval task: ValueError"),
        ("include: nowhere.yaml\ntask: sums\n", "is not an lm-eval task: FileNotFoundError"),
        ("task: sums\noutput_type: guess\n", "cannot be loaded: ValueError"),
        ("task: sums\ncustom_dataset: !function nowhere.load\n", "cannot be loaded: ImportError"),
    ],
)
def test_a_file_that_is_not_a_task(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sums.yaml"
    path.write_text(text)
    with pytest.raises(TaskError) as caught:
        find_task(Task(name="sums", path=str(path)))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


class Index:
    """Stands in for lm-eval's index of everything, which takes 20 seconds to build."""

    all_tags = ("math_word_problems",)
    all_tasks = ("gsm8k", "gsm8k_cot", "math_word_problems", "mmlu")

    class Entry:
        tags = frozenset({"gsm8k", "svamp"})

    task_index: ClassVar = {"math_word_problems": Entry()}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_inferperf.evaluate.tasks._every_task", lambda folders: Index)


@pytest.mark.usefixtures("index")
def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        find_task(Task(name="gsm8kk"), search_paths=[tmp_path])
    message = str(caught.value)
    assert f"there is no task 'gsm8kk' (looked in {tmp_path}, the 4 tasks lm-eval knows)" in message
    assert "Did you mean 'gsm8k' or 'gsm8k_cot'?" in message
    assert 'Write task="path/to/gsm8kk.yaml"' in message


@pytest.mark.usefixtures("index")
def test_a_tag_is_not_a_task() -> None:
    with pytest.raises(TaskError, match=r"'math_word_problems' is a tag of lm-eval.*: gsm8k, svamp\."):
        find_task(Task(name="math_word_problems"))


def test_a_shipped_task_is_found_without_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_inferperf.evaluate import tasks

    seen: list[str] = []

    def load(manager: Any, spec: str, *, name: str, source: str) -> Any:
        seen.append(spec)

    monkeypatch.setattr(tasks, "_load", load)
    find_task(Task(name="gsm8k"))
    assert seen[0].endswith("lm_eval/tasks/gsm8k/gsm8k.yaml")


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    with pytest.raises(MissingExtra, match=r'lm_eval is not installed\): pip install "pytest-inferperf\[embedded\]"'):
        find_task(Task(name="gsm8k"))
