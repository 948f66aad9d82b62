"""Every way a baseline file can be wrong is one message: file, place, value, what is valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.baselines.documents import check_schema, dump_json
from pytest_inferperf.baselines.store import read_accuracy, read_performance
from pytest_inferperf.baselines.validator import schema
from pytest_inferperf.errors import BaselineError

SHOWN = "baselines/performance/b/tiny.json"
KEY = "NVFP4-isl64-osl32-c1"
RESTORE = f"Restore it (git restore {SHOWN}) or delete it and record it again."


def performance() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "model": "tiny",
        "hardware": {"name": "NVIDIA B200", "count": 1, "kind": "gpu"},
        "entries": {
            KEY: {
                "identity": {
                    "quant": "NVFP4",
                    "kv_cache_dtype": "auto",
                    "tp": 1,
                    "pp": 1,
                    "ep": 1,
                    "isl": 64,
                    "osl": 32,
                    "concurrency": 1,
                    "num_requests": 1,
                    "seed": 0,
                },
                "warmup_rounds": 1,
                "provenance": {"kind": "measured"},
                "metrics": {"ttft_ms.p99": {"sessions": [[1.5, 2.5]], "tolerance": 0.1}},
            }
        },
    }


def accuracy() -> dict[str, Any]:
    bits = {"encoding": "bits", "count": 2, "data": "gA=="}
    return {
        "schema_version": 1,
        "model": "tiny",
        "tasks": {
            "sums-exact_match": {
                "identity": {"task": "sums", "metric": "exact_match"},
                "higher_is_better": True,
                "documents": {"count": 2, "digest": "d1"},
                "scores": {"BF16": {"score": 0.5, "outcomes": bits, "provenance": {"kind": "measured"}}},
            }
        },
    }


def read(tmp_path: Path, data: Any, reader: Callable[..., Any] = read_performance) -> str:
    """Return the message that reading the data or text gives."""
    path = tmp_path / "tiny.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data, indent=2).encode())
    with pytest.raises(BaselineError) as caught:
        reader(path, shown=SHOWN)
    return str(caught.value)


def test_the_valid_files_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(performance()))
    assert list(read_performance(path).entries) == [KEY]
    path.write_text(json.dumps(accuracy()))
    assert read_accuracy(path).tasks["sums-exact_match"].scores["BF16"].outcomes == (1.0, 0.0)


def test_published_values_have_no_sessions(tmp_path: Path) -> None:
    path, data = tmp_path / "tiny.json", performance()
    entry = data["entries"][KEY]
    del entry["warmup_rounds"]
    entry["provenance"] = {"kind": "published", "source": "https://example.org/table"}
    entry["metrics"] = {"ttft_ms.p99": {"value": 12}}
    path.write_text(json.dumps(data))
    assert read_performance(path).entries[KEY].metrics["ttft_ms.p99"].level == 12.0
    entry["metrics"] = {"ttft_ms.p99": {"sessions": [[1.0]]}}
    where = f'{SHOWN}: $.entries["{KEY}"].metrics["ttft_ms.p99"]'
    assert read(tmp_path, data) == f"{where}: unknown key 'sessions'. Keys: tolerance, value."


@pytest.mark.parametrize("value", [0, -1.5])
def test_published_values_are_above_0(tmp_path: Path, value: float) -> None:
    data = performance()
    entry = data["entries"][KEY]
    del entry["warmup_rounds"]
    entry["provenance"] = {"kind": "published", "source": "table 3"}
    entry["metrics"] = {"ttft_ms.p99": {"value": value}}
    where = f'{SHOWN}: $.entries["{KEY}"].metrics["ttft_ms.p99"].value'
    assert read(tmp_path, data) == f"{where}: {value} is not valid: it must be above 0."


TEXTS = {
    b"": f"the file is empty. {RESTORE}",
    b"hello": f"line 1, column 1: not JSON: Expecting value. {RESTORE}",
    b'{\n"a": 1,\n': f"line 3, column 1: not JSON: Expecting property name enclosed in double quotes. {RESTORE}",
    b'{\n<<<<<<< HEAD\n"a": 1\n=======\n': "line 2: a merge conflict marker (<<<<<<<). Resolve the conflict first.",
    b'{\n"a": "NaN",\n"b": NaN}': "line 3: NaN is not a finite number. Numbers in this file are finite.",
    b'{"a": -Infinity}': "line 1: -Infinity is not a finite number. Numbers in this file are finite.",
    b'{"a": 1e999}': "line 1: 1e999 is not a finite number. Numbers in this file are finite.",
    b'{"a": ' + b"9" * 5000 + b"}": f"line 1: {'9' * 40}… is not a finite number. Numbers in this file are finite.",
    b'{"x": {"a": 1},\n"e": {\n"k": 1,\n"k": 2}}': "line 4: duplicate key 'k', first on line 3. Remove one of them.",
    b'{"a": "\xff"}': f"line 1: not JSON: the bytes are not UTF-8. {RESTORE}",
    b"[" * 200_000: f"nested too deeply. {RESTORE}",
}


@pytest.mark.parametrize("text", list(TEXTS), ids=range(len(TEXTS)))
def test_not_strict_json(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text) == f"{SHOWN}: {TEXTS[text]}"


def put(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set a value deep in the data; the path is joined by slashes."""
    *parents, last = path.split("/")
    target = data
    for part in parents:
        target = target[part]
    target[last] = value
    return data


E = f"entries/{KEY}"
PERFORMANCE = [
    (
        "schema_version",
        2,
        "schema_version 2 is newer than 1, the version this pytest-inferperf reads."
        " Upgrade: pip install --upgrade pytest-inferperf",
    ),
    ("schema_version", 0, "$.schema_version: 0 is not valid. Valid value: 1."),
    ("modle", "x", "$: unknown key 'modle'. Did you mean 'model'? Keys: entries, hardware, model, schema_version."),
    ("hardware/count", 0, "$.hardware.count: 0 is below 1."),
    ("hardware/kind", "tpu", "$.hardware.kind: \"tpu\" is not valid. Did you mean 'gpu'? Valid values: cpu, gpu."),
    ("entries", [], "$.entries: [] is not an object."),
    (
        f"{E}/wamup_rounds",
        1,
        f"$.entries[\"{KEY}\"]: unknown key 'wamup_rounds'. Did you mean 'warmup_rounds'?"
        " Keys: context, identity, metrics, provenance, warmup_rounds.",
    ),
    (f"{E}/metrics", {}, f'$.entries["{KEY}"].metrics: {{}} is empty; at least 1 is needed.'),
    (
        f"{E}/metrics",
        {"ttft_sm.p99": {"sessions": [[1]]}},
        f"$.entries[\"{KEY}\"].metrics: unknown metric 'ttft_sm.p99'.\nDid you mean 'ttft_ms'? Metrics: acceptance_length,"
        " chunk_gap_ms, cost_per_million_tokens, e2e_latency_ms, energy_per_token_j, engine_latency_ms, engine_ttft_ms,"
        " goodput, itl_ms, output_agreement, output_throughput,"
        " output_throughput_per_gpu, output_throughput_per_user, peak_memory_gib,"
        " request_throughput, total_throughput, tpot_ms, ttft_ms.",
    ),
    (
        f"{E}/metrics/ttft_ms.p99/tolerance",
        "high",
        f'$.entries["{KEY}"].metrics["ttft_ms.p99"].tolerance: "high" is not a number or null.',
    ),
    (
        f"{E}/metrics/ttft_ms.p99/sessions",
        [[1.0, None]],
        f'$.entries["{KEY}"].metrics["ttft_ms.p99"].sessions[0][1]: null is not a number.',
    ),
    *(
        (
            f"{E}/metrics/ttft_ms.p99/tolerance",
            value,
            f'$.entries["{KEY}"].metrics["ttft_ms.p99"].tolerance: {value} is not valid: it must be above 0 and below 1.',
        )
        for value in (0, -0.1, 1, 5)
    ),
    *(
        (
            f"{E}/metrics/ttft_ms.p99/sessions",
            [[1.0], [2.0, value]],
            f'$.entries["{KEY}"].metrics["ttft_ms.p99"].sessions[1][1]: {value} is not valid: it must be above 0.',
        )
        for value in (0, -5, 0.0)
    ),
    (
        f"{E}/identity/isl",
        65,
        f"$.entries[\"{KEY}\"]: the key does not fit its identity, which gives 'NVFP4-isl65-osl32-c1'."
        " Correct one of them.",
    ),
    (
        f"{E}/identity/quant",
        "NVFP5",
        f"$.entries[\"{KEY}\"].identity: unknown quantization 'NVFP5'. Did you mean 'NVFP4'? Quantizations: BF16, FP8, FP8_BLOCK_SCALES,"
        " INT4_AWQ, NVFP4, W4A16_NVFP4, W4A8_NVFP4_FP8. Or a ModelOpt configuration name such as NVFP4_AWQ_LITE_CFG.",
    ),
    (
        f"{E}/identity/kv_cache_dtype",
        "fp9",
        f"$.entries[\"{KEY}\"].identity: unknown KV cache type 'fp9'. Did you mean 'fp8'? KV cache types: auto, fp8,"
        " nvfp4.",
    ),
    (f"{E}/provenance", {}, f"$.entries[\"{KEY}\"].provenance: the key 'kind' is missing. Required keys: kind."),
    (
        f"{E}/provenance/kind",
        "mesured",
        f'$.entries["{KEY}"].provenance.kind: "mesured" is not valid. Did you mean \'measured\'?'
        " Valid values: measured, published.",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), PERFORMANCE, ids=[row[0] for row in PERFORMANCE])
def test_performance_file(tmp_path: Path, path: str, value: Any, message: str) -> None:
    assert read(tmp_path, put(performance(), path, value)) == f"{SHOWN}: {message}"


def test_missing_key(tmp_path: Path) -> None:
    data = performance()
    del data["model"]
    assert read(tmp_path, data) == (
        f"{SHOWN}: $: the key 'model' is missing. Required keys: entries, hardware, model, schema_version."
    )


S = "tasks/sums-exact_match/scores"
SCORE = {"score": 0.5, "provenance": {"kind": "published", "source": "paper"}}
ACCURACY = [
    (
        f"{S}/BF16/outcomes/count",
        3,
        '$.tasks["sums-exact_match"].scores["BF16"].outcomes: 3 for 2 documents. Every document has one.',
    ),
    (
        f"{S}/BF16/unparseable",
        {"encoding": "bits", "count": 1, "data": "gA=="},
        '$.tasks["sums-exact_match"].scores["BF16"].unparseable: 1 for 2 documents. Every document has one.',
    ),
    (
        f"{S}/BF16/outcomes/encoding",
        "hex",
        '$.tasks["sums-exact_match"].scores.BF16.outcomes.encoding: "hex" is not valid. Valid values: bits, float16.',
    ),
    (
        f"{S}/FP8+kv_auto",
        SCORE,
        '$.tasks["sums-exact_match"].scores["FP8+kv_auto"]: the default KV cache type is not written out: use \'FP8\' as the key.',
    ),
    (
        f"{S}/FP9",
        SCORE,
        "$.tasks[\"sums-exact_match\"].scores[\"FP9\"]: unknown quantization 'FP9'. Did you mean 'FP8'? Quantizations: BF16, FP8, FP8_BLOCK_SCALES,"
        " INT4_AWQ, NVFP4, W4A16_NVFP4, W4A8_NVFP4_FP8. Or a ModelOpt configuration name such as NVFP4_AWQ_LITE_CFG.",
    ),
    (
        "tasks/sums-exact_match/metric",
        "acc",
        '$.tasks["sums-exact_match"]: unknown key \'metric\'. Keys: documents, higher_is_better, identity, scores.',
    ),
    (
        "tasks/sums-exact_match/identity/metric",
        "acc",
        '$.tasks["sums-exact_match"]: the key does not fit its identity, which gives \'sums-acc\'. Correct one of them.',
    ),
    (
        "tasks/sums-exact_match/identity/limit",
        5,
        "$.tasks[\"sums-exact_match\"]: the key does not fit its identity, which gives 'sums-limit5-exact_match'. Correct one of them.",
    ),
    (f"{S}/BF16/provenance", {"kind": "published"}, "$.tasks[\"sums-exact_match\"].scores.BF16: unknown key 'outcomes'. Keys: context,"
     " provenance, score."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), ACCURACY, ids=[row[0] for row in ACCURACY])
def test_accuracy_file(tmp_path: Path, path: str, value: Any, message: str) -> None:
    data = put(accuracy(), path, value)
    assert read(tmp_path, data, read_accuracy) == f"{SHOWN}: {message}"


def test_measured_scores_need_documents(tmp_path: Path) -> None:
    data = accuracy()
    del data["tasks"]["sums-exact_match"]["documents"]
    message = f"{SHOWN}: $.tasks[\"sums-exact_match\"]: the key 'documents' is missing: measured scores need it."
    assert read(tmp_path, data, read_accuracy) == message


@pytest.mark.parametrize("name", ["performance", "accuracy", "result"])
def test_schemas_are_valid_and_closed(name: Any) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema(name))
    for item in _objects(schema(name)):
        if "properties" in item and "type" in item:
            assert item.get("additionalProperties") is False, item


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for key, item in value.items():
            if key != "if":
                yield from _objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item)


def test_a_list_is_no_file() -> None:
    with pytest.raises(BaselineError, match=r"^x\.json: \$: \[\] is not an object\.$"):
        check_schema([], "result", "x.json", error=BaselineError)


def test_text_beyond_utf8_is_escaped() -> None:
    assert dump_json({"a": "ä\udcff"}) == '{\n  "a": "\\u00e4\\udcff"\n}\n'
    assert dump_json({"b": "ä", "a": 1}) == '{\n  "a": 1,\n  "b": "ä"\n}\n'
