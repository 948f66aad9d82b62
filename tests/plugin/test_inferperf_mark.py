"""The `inferperf` mark: merging, cross products, ids, selection, and one test per way to be wrong."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project

RUNS = {"no xdist": ("-p", "no:xdist"), "n0": ("-n0",), "n2": ("-n2",)}


def test_ids_and_cross_product(project: Project) -> None:
    project.test(
        'inferperf(model="tiny-llama", quant=["FP8", "NVFP4"], kv_cache_dtype="fp8", tp=2)',
        "inferperf(isl=1024, osl=1024, concurrency=[1, 8])",
    )
    result = project.run("--collect-only", "-q")
    assert [line.partition("::")[2] for line in result.outlines if "::" in line] == [
        "test_it[FP8-isl1024-osl1024-c1]",
        "test_it[FP8-isl1024-osl1024-c8]",
        "test_it[NVFP4-isl1024-osl1024-c1]",
        "test_it[NVFP4-isl1024-osl1024-c8]",
    ]


def test_inner_mark_overrides_outer(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.inferperf(
            model="tiny-llama", quant="FP8", isl=16, osl=4, engine_options={"a": 1, "b": 1}
        )

        @pytest.mark.inferperf(quant="NVFP4", engine_options={"b": 2})
        class TestInner:
            @pytest.mark.inferperf(osl=8)
            def test_it(self, inferperf):
                case = inferperf.case
                assert (case.engine.quant, case.workload.isl, case.workload.osl) == ("NVFP4", 16, 8)
                assert dict(case.engine.engine_options) == {"a": 1, "b": 2}
        """
    )
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("inferperf(quant='NVFP4')", 1),
        ("inferperf(quant='FP8')", 1),
        ("inferperf(quant='BF16')", 0),
        ("inferperf(quant='NVFP4', isl=16)", 1),
        ("inferperf(isl=17)", 0),
        ("inferperf(concurrency=1)", 2),
        ("inferperf", 2),
        ("not inferperf", 0),
    ],
)
def test_selection_by_resolved_identity(project: Project, expression: str, selected: int) -> None:
    # The outer BF16 is overridden, so nothing of it may be selected.
    project.test('inferperf(quant="BF16")', 'inferperf(model="tiny-llama", quant=["FP8", "NVFP4"], isl=16, osl=8)')
    result = project.run("--collect-only", "-q", "-m", expression)
    assert sum("::" in line for line in result.outlines) == selected


WRONG = {
    "unknown keyword": (
        'inferperf(model="tiny-llama", qant="FP8", isl=1, osl=1)',
        [
            "test_it.py::test_it: inferperf: unknown keyword 'qant'.",
            "Did you mean 'quant'? Keywords: api_key_env, arrival, backend, burstiness, calib_dataset, calib_size, concurrency, "
            "dataset, early_stop, endpoint, engine_options, ep, group_by, hardware, hosts, isl, kv_cache_dtype, limit, model, num_fewshot, "
            "num_requests, osl, pp, qat_dataset, qat_learning_rate, qat_steps, quant, recipe, replicas, request_rate, rounds, "
            "seed, serve, served_model_name, sessions, share_node, shared_prefix, task, think_time, tp, trace, trace_speed, turns, url, warmup_rounds.",
        ],
    ),
    "positional": (
        'inferperf("tiny-llama")',
        ["*inferperf: takes keywords only, not 'tiny-llama'. *Keywords: api_key_env, *"],
    ),
    "wrong type": (
        'inferperf(model="tiny-llama", isl="1024", osl=1)',
        ["*inferperf: isl='1024' is no distribution of lengths. Write a number of tokens, *"],
    ),
    "bool is no int": (
        'inferperf(model="tiny-llama", isl=True, osl=1)',
        ["*inferperf: isl=True is a bool; isl takes an int or a str, or a list of them."],
    ),
    "below minimum": ('inferperf(model="tiny-llama", isl=0, osl=1)', ["*inferperf: isl=0 is below its minimum 1."]),
    "empty list": (
        'inferperf(model="tiny-llama", isl=[], osl=1)',
        ["*inferperf: isl=[[][]] is empty; give at least one value."],
    ),
    "repeated value": (
        'inferperf(model="tiny-llama", isl=[8, 8], osl=1)',
        ["*inferperf: isl=[[]8, 8[]] repeats a value."],
    ),
    "unknown quant": (
        'inferperf(model="tiny-llama", quant="nvfp4", isl=1, osl=1)',
        [
            "*inferperf: unknown quant 'nvfp4'.",
            "Did you mean 'NVFP4'? Quantizations: BF16, FP8, FP8_BLOCK_SCALES, INT4_AWQ, NVFP4, W4A16_NVFP4, W4A8_NVFP4_FP8. Or a ModelOpt "
            "configuration name such as NVFP4_AWQ_LITE_CFG.",
        ],
    ),
    "unknown kv": (
        'inferperf(model="tiny-llama", kv_cache_dtype="fp4", isl=1, osl=1)',
        ["*inferperf: unknown kv_cache_dtype 'fp4'.", "*KV cache types: auto, fp8, nvfp4."],
    ),
    "no model": ("inferperf(isl=1, osl=1)", ["*inferperf: no model. Give one: *"]),
    "no such folder": (
        'inferperf(model="./absent", isl=1, osl=1)',
        [
            "*inferperf: model='./absent': no such folder, relative to *. Give a folder in Hugging Face layout, or a hub *"
        ],
    ),
    "recipe without quant": (
        'inferperf(model="tiny-llama", recipe="FP8_DEFAULT_CFG", isl=1, osl=1)',
        ["*inferperf: recipe='FP8_DEFAULT_CFG' needs a quantized checkpoint, and quant is BF16. Name one: *"],
    ),
    "kv without quant": (
        'inferperf(model="tiny-llama", kv_cache_dtype="fp8", isl=1, osl=1)',
        ["*inferperf: kv_cache_dtype='fp8' needs a quantized checkpoint, and quant is BF16. Name one: *"],
    ),
    "osl missing": (
        'inferperf(model="tiny-llama", isl=1)',
        ["*inferperf: osl is missing; a workload needs isl= and osl=, in tokens, or a file: dataset= or trace=."],
    ),
    "both": (
        'inferperf(model="tiny-llama", isl=1, osl=1, task="gsm8k")',
        ["*inferperf: isl, osl belong to a workload and task to a task; one test measures a workload or evaluates *"],
    ),
    "concurrency never held": (
        'inferperf(model="tiny-llama", isl=1, osl=1, concurrency=8, num_requests=4)',
        ["*inferperf: num_requests=4 is below concurrency=8: that concurrency would never be held."],
    ),
    "no such task file": (
        'inferperf(model="tiny-llama", task="tasks/absent.yaml")',
        ["*inferperf: task='tasks/absent.yaml': no such file, relative to *"],
    ),
    "no calibration file": (
        'inferperf(model="tiny-llama", calib_dataset="absent.jsonl", isl=1, osl=1)',
        ["*inferperf: calib_dataset='absent.jsonl': no such file, relative to *"],
    ),
    "no such draft model": (
        'inferperf(model="tiny-llama", engine_options={"draft_model": "./absent"}, isl=1, osl=1)',
        ["*inferperf: engine option draft_model='./absent': no such folder, relative to *. Give a folder *"],
    ),
    "draft model without configuration": (
        'inferperf(model="tiny-llama", engine_options={"draft_model": "."}, isl=1, osl=1)',
        ["*inferperf: engine option draft_model='.': * has no config.json; give a Hugging Face folder."],
    ),
    "no training file": (
        'inferperf(model="tiny-llama", qat_dataset="absent.jsonl", isl=1, osl=1)',
        ["*inferperf: qat_dataset='absent.jsonl': no such file, relative to *"],
    ),
    "training without texts": (
        'inferperf(model="tiny-llama", quant="NVFP4", recipe="qat", isl=1, osl=1)',
        ['*inferperf: recipe="qat" trains the quantized model, *. Give texts *qat_dataset="texts.jsonl", *'],
    ),
    "a format that is not made": (
        'inferperf(model="tiny-llama", quant="FP8_BLOCK_SCALES", isl=1, osl=1)',
        ["*inferperf: model='*tiny-llama': quant=\"FP8_BLOCK_SCALES\" is read and never made, and these weights are *"],
    ),
    "training of plain weights": (
        'inferperf(model="tiny-llama", recipe="qat", isl=1, osl=1)',
        ["*inferperf: recipe='qat' needs a quantized checkpoint, and quant is BF16. Name one: *"],
    ),
    "learning rate": (
        'inferperf(model="tiny-llama", qat_learning_rate=-0.1, isl=1, osl=1)',
        ["*inferperf: qat_learning_rate=-0.1 is out of range: above 0, and finite."],
    ),
    "whole learning rate": (
        'inferperf(model="tiny-llama", qat_learning_rate=1, isl=1, osl=1)',
        ["*inferperf: qat_learning_rate=1 is an int; qat_learning_rate takes a float, or a list of them."],
    ),
    "engine options list": (
        'inferperf(model="tiny-llama", engine_options=[{"a": 1}], isl=1, osl=1)',
        ["*inferperf: engine_options takes one dict, not a list."],
    ),
    "engine option value": (
        'inferperf(model="tiny-llama", engine_options={"a": [1]}, isl=1, osl=1)',
        [
            "*inferperf: engine_options={'a': [[]1[]]}: names are strings; values are strings, numbers, booleans or None."
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_mark_is_one_clean_collection_error(project: Project, name: str) -> None:
    mark, expected = WRONG[name]
    project.test(mark)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(expected)
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*During handling*")
    assert project.engines() == []


@pytest.mark.parametrize("run", RUNS)
def test_collection_error_survives_every_way_to_run(project: Project, run: str) -> None:
    project.test('inferperf(model="tiny-llama", isl=1, osl=1)', 'throughput_floor("output_throughputs")')
    result = project.pytester.runpytest_subprocess(*RUNS[run])
    assert result.ret != 0
    result.stdout.fnmatch_lines(
        [
            "*test_it.py::test_it: throughput_floor: unknown metric 'output_throughputs'.",
            "Did you mean 'output_throughput'? *",
        ]
    )


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ('backend="tensorrt"', ["*inferperf: unknown backend 'tensorrt'.", "*Backends: auto, *transformers*"]),
        ('quant="NVFP4"', ["*inferperf: quant='NVFP4' is calibrated. Give texts like those the model will see: *"]),
        ('backend="transformers", tp=2', ["*inferperf: tp=2: the transformers backend runs on one device."]),
    ],
)
def test_what_only_the_shipped_backends_know(pytester: pytest.Pytester, keywords: str, expected: list[str]) -> None:
    (pytester.path / "tiny-llama").mkdir()
    (pytester.path / "tiny-llama" / "config.json").write_text("{}")
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.inferperf(model="tiny-llama", isl=1, osl=1, {keywords})
        def test_it(inferperf):
            inferperf.measure()
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:xdist")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(expected)


def test_fixture_without_mark(project: Project) -> None:
    project.pytester.makepyfile("def test_it(inferperf): pass")
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*inferperf_case: the test has no inferperf mark. Say which engine to build: *"])


@pytest.mark.parametrize(
    ("marks", "fixture", "expected"),
    [
        (['throughput_floor("output_throughput")'], "", "throughput_floor has no inferperf mark beside it*"),
        (
            [PERFORMANCE, 'throughput_floor("output_throughput")'],
            "",
            "throughput_floor: the test must request the inferperf fixture and call it.",
        ),
        (
            [PERFORMANCE, 'throughput_floor("output_throughput")'],
            "inferperf_engine",
            "throughput_floor: the test must request the inferperf fixture and call it.",
        ),
    ],
)
def test_gate_that_nothing_would_judge(project: Project, marks: list[str], fixture: str, expected: str) -> None:
    project.test(*marks, body="pass", fixture=fixture)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: {expected}"])


def test_engine_fixture_gets_one_engine_per_spec(project: Project) -> None:
    for module in ("test_a", "test_b"):
        project.pytester.makepyfile(
            **{
                module: """
                import pytest

                pytestmark = pytest.mark.inferperf(model="tiny-llama", quant=["FP8", "NVFP4"])

                def test_one(inferperf_engine):
                    assert inferperf_engine.encode(["a"]) == [(97,)]

                @pytest.mark.inferperf(isl=4, osl=2)
                def test_two(inferperf):
                    assert inferperf.measure().num_failed_requests == 0
                """
            }
        )
    result = project.run()
    result.assert_outcomes(passed=8)
    # The old engine is freed before the next is built.
    assert project.engines() == ["build FP8", "close FP8", "build NVFP4", "close NVFP4"]


@pytest.mark.parametrize(
    ("case", "call", "expected"),
    [
        (TASK, "inferperf.measure()", "inferperf.measure(): the case has no workload; *"),
        (PERFORMANCE, "inferperf.evaluate()", "inferperf.evaluate(): the case has no task; *"),
        (PERFORMANCE, "inferperf.measure(); inferperf.measure()", "inferperf.measure() was called twice; *"),
        (TASK, "inferperf.evaluate(); inferperf.evaluate()", "inferperf.evaluate() was called twice; *"),
    ],
)
def test_wrong_call_in_the_body(project: Project, case: str, call: str, expected: str) -> None:
    project.test(case, body=call)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([expected])


def test_engine_that_cannot_be_built_is_an_error_for_its_tests_alone(project: Project) -> None:
    project.engine(build_error="the engine died while loading: exit code 1. Last lines of its log:\n  out of memory")
    project.test(PERFORMANCE)
    project.pytester.makepyfile(test_other="def test_other(): pass")
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the engine died while loading: exit code 1. *", "  out of memory"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_engine_that_dies_in_the_body_is_one_clear_message(project: Project) -> None:
    project.engine(generate_error="the engine was killed by signal 9")
    project.test(PERFORMANCE, "throughput_floor(output_throughput=1)")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the engine was killed by signal 9"])
    result.stdout.no_fnmatch_line("*Traceback*")
