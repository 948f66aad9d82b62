"""Every engine that the suites of this repository ask TensorRT-LLM for is one that both of its releases take."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_inferperf.engines.backends import BACKENDS
from pytest_inferperf.engines.tensorrt_llm.options import arguments_of
from pytest_inferperf.engines.tensorrt_llm.served import served_arguments
from pytest_inferperf.engines.tensorrt_llm.versions import Package
from pytest_inferperf.marks.cases import parse_cases
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.model.case import Case

SUITES = Path(__file__).parents[3] / "suites"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"suite_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inferperf_marks(value: Any) -> list[Any]:
    """Return the marks of a test or a module, outermost first."""
    found = [getattr(item, "mark", item) for item in getattr(value, "pytestmark", [])]
    ordered = found if isinstance(value, ModuleType) else found[::-1]
    return [item for item in ordered if item.name == "inferperf"]


def cases() -> Iterator[tuple[str, Case]]:
    for path in sorted(SUITES.glob("*/test_*.py")):
        if "tensorrt_llm" not in path.read_text():
            continue
        module = load(path)
        origin = Origin(folder=path.parent, backends=("auto", *BACKENDS))
        for name, test in vars(module).items():
            if name.startswith("test_") and callable(test):
                for case_id, case in parse_cases([*inferperf_marks(module), *inferperf_marks(test)], origin):
                    yield f"{path.stem}::{name}[{case_id}]", case


def test_every_engine_of_the_suites_is_one_that_the_package_takes(stand_in: Any) -> None:
    package = Package()
    asked = {name: case.engine for name, case in cases() if case.engine.backend == "tensorrt_llm"}
    assert len({spec.model for spec in asked.values()}) >= 5
    kinds = set()
    for name, spec in asked.items():
        found = package.configured(arguments_of(spec))
        assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (spec.tp, spec.pp), name
        assert found.get("moe_expert_parallel_size", 1) == spec.ep, name
        assert found["kv_cache_config"].dtype == spec.kv_cache_dtype, name
        assert found["kv_cache_config"].enable_block_reuse is False, name
        assert found["enable_chunked_prefill"] is dict(spec.engine_options).get("chunked_prefill", False), name
        kinds |= {dict(spec.engine_options).get("speculative")}
        # The same spec runs in the server.
        flags, objects = served_arguments(spec)
        assert ("--tp_size", str(spec.tp)) in flags, name
        assert objects["kv_cache_config"]["dtype"] == spec.kv_cache_dtype, name
    assert {"mtp", "eagle3"} <= kinds
