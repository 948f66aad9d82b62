"""Where baselines are, what a look-up finds, and that a file reads back as it was written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_inferperf.baselines.entries import AccuracyEntry, Missing, PerformanceEntry
from pytest_inferperf.baselines.format import dump_accuracy, dump_performance
from pytest_inferperf.baselines.result_file import ResultRecord
from pytest_inferperf.baselines.store import (
    accuracy_path,
    lookup_accuracy,
    lookup_performance,
    performance_path,
    read_accuracy,
    read_performance,
)
from pytest_inferperf.baselines.update import update
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.model.case import Case
from pytest_inferperf.model.results import Hardware

Make = Callable[..., ResultRecord]
NOW = "2026-11-21T00:00:00+00:00"


def record(root: Path, *records: ResultRecord) -> None:
    plan, _ = update(root, records, mode="new", reason="first", accept_regression=False, now=NOW)
    assert plan.refusals == ()


def named(case: Case, name: str) -> Case:
    return replace(case, engine=replace(case.engine, served_model_name=name))


def test_paths(root: Path, hardware: Hardware, speed_case: Case) -> None:
    assert performance_path(root, hardware, speed_case) == root / "performance/nvidia-b200-8x/tiny.json"
    assert accuracy_path(root, speed_case) == root / "accuracy/tiny.json"


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "/etc/passwd", "a/../../../b", "..\\b", ".hidden", "\0"])
def test_names_never_escape(root: Path, hardware: Hardware, speed_case: Case, name: str) -> None:
    case = named(speed_case, name)
    for path in (
        accuracy_path(root, case),
        performance_path(root, hardware, case),
        performance_path(root, replace(hardware, name=name), case),
    ):
        assert path.resolve().is_relative_to(root.resolve())
        assert not {"..", ".hidden.json"} & set(path.relative_to(root).parts)
        assert isinstance(lookup_performance(root, hardware, case), Missing)


def test_a_link_that_escapes(root: Path, hardware: Hardware, speed_case: Case, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "performance").mkdir(parents=True)
    (root / "performance/nvidia-b200-8x").symlink_to(tmp_path / "elsewhere")
    message = (
        "baselines/performance/nvidia-b200-8x/tiny.json: leads to "
        f"{tmp_path}/elsewhere/tiny.json, outside of {root}. Baselines stay inside their root folder."
    )
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        lookup_performance(root, hardware, speed_case)


def test_missing(root: Path, hardware: Hardware, speed_case: Case, task_case: Case, speed: Make, answers: Make) -> None:
    path, key = "baselines/performance/nvidia-b200-8x/tiny.json", "NVFP4+kv_fp8-tp8-isl64-osl32-c1"
    assert lookup_performance(root, hardware, speed_case) == Missing(path=path, key=key, reason="no such file")
    assert lookup_accuracy(root, task_case, "exact_match") == Missing(
        path="baselines/accuracy/tiny.json", key="sums-limit10-exact_match", reason="no such file"
    )
    record(root, speed(output_throughput=100.0), answers((1.0, 0.0)))
    assert speed_case.workload is not None
    assert task_case.task is not None
    other = replace(speed_case, workload=replace(speed_case.workload, osl=33))
    assert lookup_performance(root, hardware, other) == Missing(
        path=path, key="NVFP4+kv_fp8-tp8-isl64-osl33-c1", reason="no such entry"
    )
    assert lookup_accuracy(
        root, replace(task_case, task=replace(task_case.task, limit=None)), "exact_match"
    ) == Missing(path="baselines/accuracy/tiny.json", key="sums-exact_match", reason="no such entry")


def test_performance_entry(root: Path, hardware: Hardware, speed_case: Case, speed: Make) -> None:
    record(root, speed({"ttft_ms.p99": 12.5}, output_throughput=100.0))
    found = lookup_performance(root, hardware, speed_case)
    assert isinstance(found, PerformanceEntry)
    assert found.metrics["ttft_ms.p99"].sessions == ((12.5, 12.5),)
    assert found.metrics["ttft_ms.p99"].level == 12.5
    assert (found.warmup_rounds, found.provenance.kind, found.provenance.reason) == (1, "measured", "first")
    assert found.context == {"torch": "2.13.0", "git": "abc123"}


def test_accuracy_entry(root: Path, task_case: Case, answers: Make) -> None:
    record(root, answers((1.0, 0.0, 1.0), unparseable=(False, True, False)), answers((1.0, 0.25, 0.0), quant="NVFP4"))
    found = lookup_accuracy(root, task_case, "exact_match")
    assert isinstance(found, AccuracyEntry)
    assert (found.metric, found.num_documents, found.documents_digest) == ("exact_match", 3, "d1")
    assert found.scores["BF16"].outcomes == (1.0, 0.0, 1.0)
    assert found.scores["BF16"].unparseable == (False, True, False)
    assert found.scores["NVFP4"].outcomes == (1.0, 0.25, 0.0)


def test_files_read_back_and_are_stable(root: Path, speed: Make, answers: Make) -> None:
    record(root, speed({"ttft_ms.p99": 12.5}, output_throughput=100.0), answers((1.0, 0.5)))
    speed_file, score_file = root / "performance/nvidia-b200-8x/tiny.json", root / "accuracy/tiny.json"
    assert dump_performance(read_performance(speed_file)) == speed_file.read_text()
    assert dump_accuracy(read_accuracy(score_file)) == score_file.read_text()
    text = speed_file.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_a_file_is_parsed_once_until_its_content_changes(
    root: Path, hardware: Hardware, speed_case: Case, task_case: Case, speed: Make, answers: Make
) -> None:
    """Same size and same time stamp: only the content says that a file is another one."""
    record(root, speed(output_throughput=100.0), answers((1.0, 0.0)))
    path, scores = performance_path(root, hardware, speed_case), accuracy_path(root, task_case)
    before, asked = lookup_performance(root, hardware, speed_case), lookup_accuracy(root, task_case, "exact_match")
    assert lookup_performance(root, hardware, speed_case) is before
    assert lookup_accuracy(root, task_case, "exact_match") is asked
    stamps = {item: item.stat() for item in (path, scores)}
    path.write_text(path.read_text().replace("100.0", "200.0"))
    scores.write_text(scores.read_text().replace('"score": 0.5', '"score": 0.6'))
    for item, stamp in stamps.items():
        os.utime(item, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert item.stat().st_size == stamp.st_size
    found, answered = lookup_performance(root, hardware, speed_case), lookup_accuracy(root, task_case, "exact_match")
    assert isinstance(found, PerformanceEntry)
    assert isinstance(answered, AccuracyEntry)
    assert found.metrics["output_throughput"].level == 200.0
    assert {score.score for score in answered.scores.values()} == {0.6}
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(BaselineError, match="not JSON"):
            lookup_performance(root, hardware, speed_case)


def test_two_models_with_one_file_name(root: Path, hardware: Hardware, speed_case: Case, speed: Make) -> None:
    record(root, speed(output_throughput=100.0))
    message = (
        "baselines/performance/nvidia-b200-8x/tiny.json: holds baselines of model 'tiny', but the model is 'Tiny';"
        " both names give the same file name. Give one of them another served_model_name."
    )
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        lookup_performance(root, hardware, named(speed_case, "Tiny"))


def test_hardware_with_one_folder_name(root: Path, speed_case: Case, speed: Make) -> None:
    record(root, speed(output_throughput=100.0))
    message = (
        "baselines/performance/nvidia-b200-8x/tiny.json: holds baselines of 8 x NVIDIA B200 (gpu), but the engine runs"
        " on 8 x NVIDIA-B200 (gpu). Correct the file's hardware, or move it to where it belongs."
    )
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        lookup_performance(root, Hardware(name="NVIDIA-B200", count=8, kind="gpu"), speed_case)


def test_a_folder_instead_of_a_file(root: Path, task_case: Case) -> None:
    (root / "accuracy/tiny.json").mkdir(parents=True)
    with pytest.raises(BaselineError, match=r"^baselines/accuracy/tiny\.json: cannot be read: Is a directory\.$"):
        lookup_accuracy(root, task_case, "exact_match")


def test_a_very_long_name(root: Path, hardware: Hardware, task_case: Case, speed_case: Case, speed: Make) -> None:
    message = (
        f"served_model_name '{'x' * 40}'… has 300 characters; baselines are filed under it, and a file name has room for"
        " 228. Give a shorter one."
    )
    case = named(speed_case, "x" * 300)
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        lookup_accuracy(root, named(task_case, "x" * 300), "exact_match")
    with pytest.raises(BaselineError, match=f"^{re.escape(message)}$"):
        lookup_performance(root, hardware, case)
    plan, _ = update(
        root, [speed(output_throughput=1.0, case=case)], mode="new", reason="", accept_regression=False, now=NOW
    )
    assert plan.refusals == (message,)


def test_the_longest_name(root: Path, hardware: Hardware, speed_case: Case, speed: Make) -> None:
    case = named(speed_case, "x" * 228)
    record(root, speed(output_throughput=1.0, case=case))
    assert isinstance(lookup_performance(root, hardware, case), PerformanceEntry)


def test_two_metrics_of_one_task(root: Path, task_case: Case, answers: Make) -> None:
    record(root, answers((1.0, 0.0)), replace(answers((1.0, 1.0), metric="acc_norm"), nodeid="other"))
    for metric, score in (("exact_match", 0.5), ("acc_norm", 1.0)):
        found = lookup_accuracy(root, task_case, metric)
        assert isinstance(found, AccuracyEntry)
        assert (found.metric, found.scores["BF16"].score) == (metric, score)


def test_one_node_and_two_are_other_hardware(root: Path, hardware: Hardware, speed_case: Case, speed: Make) -> None:
    made = speed(output_throughput=100.0)
    assert made.result.engine is not None
    two = replace(hardware, nodes=2)
    spread = replace(made, result=replace(made.result, engine=replace(made.result.engine, hardware=two)))
    record(root, spread)
    path = root / "performance/nvidia-b200-8x-2nodes/tiny.json"
    assert json.loads(path.read_text())["hardware"] == {"name": "NVIDIA B200", "count": 8, "kind": "gpu", "nodes": 2}
    assert isinstance(lookup_performance(root, two, speed_case), PerformanceEntry)
    assert isinstance(lookup_performance(root, hardware, speed_case), Missing)
    assert dump_performance(read_performance(path)) == path.read_text()
