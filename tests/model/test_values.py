"""Identity, keys, slugs, medians."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import accuracy_key, performance_key
from pytest_inferperf.model.case import Case, EngineSpec, Task, Workload
from pytest_inferperf.model.quant import QUANTIZATIONS, check_quant, precision_key, split_precision
from pytest_inferperf.model.results import Hardware, PerformanceResult, Round, Session, slug
from tests.values import one_round

SPEC = EngineSpec(model="/x/llama", served_model_name="llama", quant="NVFP4")
CASE = Case(engine=SPEC, workload=Workload(isl=1024, osl=512, concurrency=8))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "NVFP4-isl1024-osl512-c8"),
        ({"engine": replace(SPEC, kv_cache_dtype="fp8", tp=8)}, "NVFP4+kv_fp8-tp8-isl1024-osl512-c8"),
        ({"engine": replace(SPEC, recipe="qat", kv_cache_dtype="fp8")}, "NVFP4+qat+kv_fp8-isl1024-osl512-c8"),
        ({"workload": Workload(isl=1, osl=2, concurrency=3, num_requests=9, seed=4)}, "NVFP4-isl1-osl2-c3-n9-seed4"),
    ],
)
def test_performance_key(changes: dict[str, object], key: str) -> None:
    assert performance_key(replace(CASE, **changes)) == key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "key"),
    [
        (Task(name="gsm8k"), "gsm8k-exact_match"),
        (Task(name="gsm8k", num_fewshot=0), "gsm8k-fewshot0-exact_match"),
        (Task(name="gsm8k", num_fewshot=5, limit=250), "gsm8k-fewshot5-limit250-exact_match"),
    ],
)
def test_accuracy_key(task: Task, key: str) -> None:
    assert accuracy_key(Case(engine=SPEC, task=task), "exact_match") == key


def test_context_is_not_identity() -> None:
    """Engine options, recipes and rounds may change without a new baseline; what was measured may not."""
    other = replace(SPEC, engine_options=(("use_cache", False),), recipe="X_CFG", backend="y", model="/elsewhere")
    case = Case(engine=other, workload=replace(CASE.workload, rounds=9, warmup_rounds=2))  # type: ignore[type-var]
    assert case.identity() == CASE.identity()


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("recipe", ["", "qat"])
def test_a_precision_is_split_into_what_made_it(kv_cache_dtype: str, recipe: str) -> None:
    key = precision_key("NVFP4", kv_cache_dtype, recipe)
    assert split_precision(key) == ("NVFP4", kv_cache_dtype, recipe)


def test_trained_weights_are_another_case() -> None:
    trained = replace(CASE, engine=replace(SPEC, recipe="qat", qat_dataset="/x/texts.jsonl"))
    assert trained.identity() == {**CASE.identity(), "recipe": "qat"}
    assert trained.engine.precision == "NVFP4+qat"
    assert replace(SPEC, recipe="NVFP4_MLP_ONLY_CFG").precision == "NVFP4"


def test_identity_is_str_and_int_only() -> None:
    """pytest's -m takes nothing else as a keyword value."""
    for case in (CASE, Case(engine=SPEC, task=Task(name="t", num_fewshot=1, limit=2))):
        assert {type(value) for value in case.identity().values()} <= {str, int}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA B200", "nvidia-b200"),
        ("../../etc/passwd", "etc-passwd"),
        ("a/b\\c", "a-b-c"),
        ("...", "unnamed"),
        ("Llama-3.3 70B", "llama-3.3-70b"),
        ("模型", "unnamed"),
    ],
)
def test_slug_is_one_safe_path_component(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_hardware_slug() -> None:
    assert Hardware(name="NVIDIA B200", count=8, kind="gpu").slug == "nvidia-b200-8x"


def test_hardware_on_several_nodes_is_other_hardware() -> None:
    one, two = (Hardware(name="NVIDIA GB200", count=8, kind="gpu", nodes=nodes) for nodes in (1, 2))
    assert one != two
    assert (one.slug, two.slug) == ("nvidia-gb200-8x", "nvidia-gb200-8x-2nodes")
    assert (one.words, two.words) == ("8 x NVIDIA GB200", "8 x NVIDIA GB200 on 2 nodes")
    assert (one.label, two.label) == ("NVIDIA GB200 x8", "NVIDIA GB200 x8 on 2 nodes")
    assert one.to_json() == {"name": "NVIDIA GB200", "count": 8, "kind": "gpu"}
    assert two.to_json() == {**one.to_json(), "nodes": 2}


@pytest.mark.parametrize("name", ["NVFP4_AWQ_LITE_CFG", "NVFP4_FP8_MHA_CONFIG", *QUANTIZATIONS])
def test_quant_names(name: str) -> None:
    assert check_quant(name) is None


@pytest.mark.parametrize("name", ["", "nvfp4", "FP16", "NVFP4_CFG2", "x_CFG"])
def test_wrong_quant_names(name: str) -> None:
    assert check_quant(name) is not None


def test_precision() -> None:
    assert precision_key("NVFP4", "auto") == "NVFP4"
    assert precision_key("NVFP4", "fp8") == "NVFP4+kv_fp8"


def test_performance_result_medians_and_absence() -> None:
    def one(value: float) -> Round:
        return one_round({"m": value})

    result = PerformanceResult(
        sessions=(
            Session(rounds=(one(1), one(9), one(2)), warmup_rounds=0),
            Session(rounds=(one(4),), warmup_rounds=0),
        )
    )
    assert result["m"] == 3.0
    assert result.median("other") is None
    with pytest.raises(KeyError, match="'other' was not measured; measured: m"):
        result["other"]
