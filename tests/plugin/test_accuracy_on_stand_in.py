"""Accuracy gates in whole runs on TensorRT-LLM's strict stand-in, with lm-eval's own tasks in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lm_eval.evaluator  # noqa: F401 - it loads torch, which cannot be loaded twice
import pytest

from tests.engines.tensorrt_llm.conftest import VERSIONS
from tests.plugin.servers import ServedProject
from tests.plugin.test_on_stand_in import node, run

pytestmark = pytest.mark.newest

__all__ = ["node"]

UTILS = Path(__file__).parents[1] / "evaluate" / "tasks" / "utils.py"

TASK = """\
task: {name}
custom_dataset: !function utils.load
dataset_kwargs:
  file: letters.jsonl
test_split: test
doc_to_text: prompt
target_delimiter: ""
"""
GENERATED = """\
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: 1
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOSEN = """\
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CEILING = "accuracy_loss_ceiling(reference='BF16', points=3.0)"


@pytest.fixture
def tasks(node: ServedProject) -> ServedProject:
    """A project with two tasks of the next letter, which the toy model knows: one generated, one by log-likelihood."""
    shutil.copy(UTILS, node.path)
    letters = "abcdefghijklmnopqrstuvw"
    documents = [
        {"prompt": f"{first}{second}{last}", "answer": following, "choices": [following, after], "label": 0}
        for first, second in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st")
        for last, following, after in zip(letters, letters[1:], letters[2:], strict=False)
    ]
    (node.path / "letters.jsonl").write_text("\n".join(map(json.dumps, documents)))
    for name, kind in (("generated", GENERATED), ("chosen", CHOSEN)):
        (node.path / f"{name}.yaml").write_text(TASK.format(name=name) + kind)
    return node


def check(node: ServedProject, task: str, *arguments: str) -> pytest.RunResult:
    node.test(f"backend='tensorrt_llm', quant='BF16', task='{task}.yaml'", CEILING, body="inferperf.evaluate()")
    return run(node, *arguments)


@pytest.mark.parametrize(
    ("version", "task"),
    # 1.2.1 tells the probability of the most likely token alone, which is no score of a choice.
    [*((version, "generated") for version in VERSIONS), (VERSIONS[1], "chosen")],
)
def test_answers_that_get_worse_fail(
    tasks: ServedProject, monkeypatch: pytest.MonkeyPatch, version: str, task: str
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
    check(tasks, task, "--inferperf-update=new").assert_outcomes(failed=1)
    check(tasks, task).assert_outcomes(passed=1)
    monkeypatch.setenv("TRTLLM_STAND_IN", "forgetful")
    result = check(tasks, task)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL*loss vs BF16*"])


def test_choices_cannot_be_scored_by_the_older_release(tasks: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", VERSIONS[0])
    result = check(tasks, "chosen")
    assert result.parseoutcomes().get("passed", 0) == 0
    result.stdout.fnmatch_lines([f"*TensorRT-LLM {VERSIONS[0]}*1.3.0rc11*"])
