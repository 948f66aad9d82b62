"""Ways in which a gate could be lost between the mark and the verdict. Each must fail loudly."""

from __future__ import annotations

import json

import pytest

from tests.plugin.conftest import PERFORMANCE, TASK, Project

IMPOSSIBLE = "throughput_floor(output_throughput_per_user=1e9)"
"""Can never pass: whoever lets it pass has lost it."""

CASE = f"@pytest.mark.{PERFORMANCE}"


def write(project: Project, code: str) -> None:
    project.pytester.makepyfile(test_it=f"import pytest\n\nIMPOSSIBLE = pytest.mark.{IMPOSSIBLE}\n{code}")


def test_subclass_decides_over_its_base(project: Project) -> None:
    write(
        project,
        f"""
{CASE}
@pytest.mark.throughput_floor(output_throughput_per_user=1)
class Base:
    pass

@pytest.mark.inferperf(quant="BF16")
@IMPOSSIBLE
class TestSub(Base):
    def test_it(self, inferperf):
        assert inferperf.case.engine.quant == "BF16"
        inferperf.measure()

class TestSubSub(TestSub):
    pass
""",
    )
    result = project.run()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*1 of 1 gate failed"])
    assert project.engines()[0] == "build BF16"


def test_requires_gpu_of_a_subclass_decides(project: Project) -> None:
    write(
        project,
        f"""
{CASE}
@pytest.mark.requires_gpu(sm=1, count=64)
class Base:
    pass

@pytest.mark.requires_gpu(sm=2, count=64)
class TestSub(Base):
    def test_it(self, inferperf):
        inferperf.measure()
""",
    )
    project.run("-rs").stdout.fnmatch_lines(["SKIPPED *SM 2 or later*"])


def test_contradiction_in_a_module(project: Project) -> None:
    write(
        project,
        f"""
pytestmark = [pytest.mark.{PERFORMANCE}, pytest.mark.inferperf(quant="FP8")]

def test_it(inferperf):
    inferperf.measure()
""",
    )
    project.run().stdout.fnmatch_lines(["*pytestmark says both quant='NVFP4' and quant='FP8'; keep one."])


@pytest.mark.parametrize("mark", ["IMPOSSIBLE", "pytest.mark.inferperf(isl=999)"])
def test_marks_on_a_param(project: Project, mark: str) -> None:
    write(
        project,
        f"""
{CASE}
@pytest.mark.parametrize("x", [pytest.param(1, marks={mark})])
def test_it(inferperf, x):
    inferperf.measure()
""",
    )
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*stands on a pytest.param, where it cannot change the case. *"])


def test_mark_added_in_the_body(project: Project) -> None:
    write(
        project,
        f"""
{CASE}
def test_it(inferperf, request):
    inferperf.measure()
    request.node.add_marker(IMPOSSIBLE)
""",
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["throughput_floor was added where it cannot be read *"])


def test_mark_added_by_a_hook(project: Project) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + f"""

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.{IMPOSSIBLE})
"""
    )
    project.test(PERFORMANCE)
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["throughput_floor was added where it cannot be read *"])


def test_marks_on_a_unittest_method(project: Project) -> None:
    write(
        project,
        f"""
import unittest

class TestUnit(unittest.TestCase):
    {CASE}
    @IMPOSSIBLE
    def test_it(self):
        pass
""",
    )
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["throughput_floor was added where it cannot be read *"])


def test_gates_need_the_plugins_own_fixture(project: Project) -> None:
    write(project, f"{CASE}\n@IMPOSSIBLE\ndef test_it(inferperf_case, inferperf_engine):\n    pass\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*throughput_floor: the test must request the inferperf fixture and call it."])


def test_overridden_fixture_judges_nothing_and_fails(project: Project) -> None:
    write(
        project,
        f"""
@pytest.fixture
def inferperf(inferperf_case, inferperf_engine):
    return None

{CASE}
@IMPOSSIBLE
def test_it(inferperf):
    pass
""",
    )
    result = project.run("-p", "no:benchmark")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no gate was judged: the inferperf fixture of the plugin did not run. *"])


@pytest.mark.parametrize("body", ["pass", "pytest.skip('later')"])
def test_class_gates_are_the_tests_own(project: Project, body: str) -> None:
    write(project, f"{CASE}\n@IMPOSSIBLE\nclass TestIt:\n    def test_forgot(self):\n        {body}\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_module_gates_leave_neighbours_alone(project: Project) -> None:
    write(
        project,
        f"""
pytestmark = [pytest.mark.{PERFORMANCE}, pytest.mark.throughput_floor(output_throughput_per_user=1)]

def test_plain():
    pass

def test_it(inferperf):
    inferperf.measure()
""",
    )
    project.run().assert_outcomes(passed=2)
    project.run("-m", "inferperf").assert_outcomes(passed=2)


def test_swallowed_failure_of_the_measurement(project: Project) -> None:
    project.engine(generate_error="the engine died")
    body = "try: inferperf.measure()\n    except Exception: pass"
    project.test(PERFORMANCE, IMPOSSIBLE, body=body)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["output_throughput_per_user was not measured; 1 of 1 gate failed"])


def test_skip_after_the_measurement_is_judged(project: Project) -> None:
    project.test(PERFORMANCE, IMPOSSIBLE, body="inferperf.measure(); pytest.skip('no')")
    project.run().assert_outcomes(failed=1)
    project.test(
        PERFORMANCE, "throughput_floor(output_throughput_per_user=1)", body="inferperf.measure(); pytest.skip('no')"
    )
    project.run().assert_outcomes(skipped=1)


def test_failed_requests_without_a_gate(project: Project) -> None:
    project.engine(failed=2)
    project.test(PERFORMANCE)
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: 6 of 6 requests failed"])


XFAIL = 'xfail(strict=True, reason="a known 8 % regression")'


@pytest.mark.parametrize(
    ("script", "gate"),
    [
        ({"quant_algo": "FP8"}, "throughput_floor(output_throughput_per_user=1)"),
        ({}, 'throughput_floor("output_throughput_per_user")'),
        ({"build_error": "no such weights"}, "throughput_floor(output_throughput_per_user=1)"),
        ({"generate_error": "the engine died"}, "throughput_floor(output_throughput_per_user=1)"),
        ({"failed": 1}, "throughput_floor(output_throughput_per_user=1)"),
    ],
)
def test_xfail_expects_a_regression_and_nothing_else(project: Project, script: dict[str, object], gate: str) -> None:
    project.engine(**script)
    project.test(PERFORMANCE, gate, XFAIL)
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*(xfail expects a regression, and this is none)*"])


def test_xfail_of_the_bodys_own_assert_is_the_users(project: Project) -> None:
    project.test(
        PERFORMANCE, "throughput_floor(output_throughput_per_user=1)", XFAIL, body="inferperf.measure(); assert 0"
    )
    project.run().assert_outcomes(xfailed=1)


def test_xfail_does_not_expect_a_broken_baseline_file(project: Project) -> None:
    path = project.path / "baselines/performance/test-cpu-2x/tiny-llama.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")', XFAIL)
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*(xfail expects a regression, and this is none)*"])


def test_explicit_unparseable_limit_needs_flags(project: Project) -> None:
    gate = 'accuracy_loss_ceiling(reference="BF16", percent=1, unparseable_points=0.5)'
    project.engine(perplexity=True)
    project.test(TASK.replace("NVFP4", "BF16"), gate, body="inferperf.evaluate()")
    project.run("--inferperf-update=new")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["unparseable rise vs BF16 was not measured: no filter of the task has a fallback*"])


def test_other_warm_up_is_another_workload(project: Project) -> None:
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    project.run("--inferperf-update=new")
    result = project.run("--inferperf-set=warmup_rounds=0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has no baseline (*: recorded after 1 warm-up rounds, this run after 0; *"])


@pytest.mark.parametrize("override", ["engine_options.use_cache=false", "recipe=X_CFG", "warmup_rounds=0", "quant=FP8"])
def test_an_override_is_never_recorded(project: Project, override: str) -> None:
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    result = project.run("--inferperf-update=new", f"--inferperf-set={override}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-update does not go with --inferperf-set *: an override is an *"])


def test_override_is_named_in_the_header_and_the_results(project: Project) -> None:
    project.test(PERFORMANCE)
    result = project.run("--inferperf-set=quant=FP8", "--inferperf-json=r.json")
    result.stdout.fnmatch_lines(
        ["inferperf: 1 case, 1 engine, 0 gates, baselines in baselines, quant=FP8 by --inferperf-set"]
    )
    assert '"--inferperf-set quant": "FP8"' in (project.path / "r.json").read_text()


def test_options_that_differ_from_the_baselines_are_noted_on_a_pass(project: Project) -> None:
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    project.run("--inferperf-update=new")
    result = project.run("--inferperf-set=engine_options.use_cache=false")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  note: context differs: engine_options.use_cache default -> False"])


def test_secret_looking_option_is_refused(project: Project) -> None:
    project.test('inferperf(model="tiny-llama", isl=1, osl=1, engine_options={"api_key": "sk-1"})')
    result = project.run("--inferperf-json=r.json")
    result.stdout.fnmatch_lines(["*engine option 'api_key' looks like a secret; *"])
    result = project.run("--inferperf-set=engine_options.auth_token=x")
    result.stdout.no_fnmatch_line("*1 passed*")
    project.test('inferperf(model="tiny-llama", isl=1, osl=1, engine_options={"max_batch_tokens": 4})')
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("inferperf.measure()", "@pytest.fixture\ndef late():\n    yield\n    assert 0\n"),
        ("inferperf.measure(); pytest.fail('own')", "@pytest.fixture\ndef late():\n    yield\n"),
    ],
)
def test_a_test_that_failed_otherwise_is_never_recorded(project: Project, body: str, extra: str) -> None:
    write(
        project,
        f"""
{extra}
{CASE}
@pytest.mark.throughput_floor("output_throughput_per_user")
def test_it(late, inferperf):
    {body}
""",
    )
    project.run("--inferperf-update=new")
    assert not list((project.path / "baselines").rglob("*.json"))


def test_results_are_not_overwritten_with_nothing(project: Project) -> None:
    project.test(PERFORMANCE)
    project.run("--inferperf-json=r.json")
    before = (project.path / "r.json").read_text()
    project.run("--collect-only", "-q", "--inferperf-json=r.json")
    (project.path / "test_it.py").write_text("import nothing_like_it\n")
    project.run("--inferperf-json=r.json").stdout.fnmatch_lines(["no results: r.json is kept as it was"])
    assert (project.path / "r.json").read_text() == before


@pytest.mark.parametrize("variable", ["BUILD_NUMBER", "TF_BUILD"])
def test_other_ci_systems_are_ci(project: Project, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "3")
    project.test(PERFORMANCE)
    assert project.run("--inferperf-update=new").ret == pytest.ExitCode.USAGE_ERROR


def test_any_ci_value_is_ci(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "woodpecker")
    project.test(PERFORMANCE)
    assert project.run("--inferperf-update=new").ret == pytest.ExitCode.USAGE_ERROR
    monkeypatch.setenv("CI", "false")
    assert project.run("--inferperf-update=new").ret == 0


def test_engines_of_a_folder_stay_in_it(project: Project) -> None:
    """A conftest.py in one folder must not bring the engine of a test in another."""
    scripted = (project.path / "conftest.py").read_text()
    (project.path / "conftest.py").unlink()
    code = f"import pytest\n\n{CASE.replace('tiny-llama', '../tiny-llama')}\ndef test_it(inferperf):\n    inferperf.measure()\n"
    for folder in ("a", "b"):
        (project.path / folder).mkdir()
        (project.path / folder / f"test_{folder}.py").write_text(code)
    (project.path / "a" / "conftest.py").write_text(scripted)
    result = project.run("a", "b")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    # What the shipped backends need is asked of b's test, whose folder brings no engine.
    result.stdout.fnmatch_lines(["*b/test_b.py::test_it: inferperf: quant='NVFP4' is calibrated. *"])


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ('inferperf(model="a\\0b", isl=1, osl=1)', "*cannot be a path: *"),
        ('inferperf(model="~nosuchuser/x", isl=1, osl=1)', "*cannot be a path: *"),
        (f'inferperf(model="{"x" * 5000}", isl=1, osl=1)', "*cannot be a path: *"),
    ],
)
def test_names_that_cannot_be_paths(project: Project, mark: str, expected: str) -> None:
    project.test(mark)
    result = project.run()
    result.stdout.fnmatch_lines([expected])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize("option", ["--inferperf-json=~nosuchuser/x", "--inferperf-baselines=~nosuchuser/x"])
def test_option_paths_that_cannot_be(project: Project, option: str) -> None:
    project.test(PERFORMANCE)
    result = project.run(option)
    text = "\n".join([*result.outlines, *result.errlines])
    assert "'~nosuchuser/x' cannot be a path: " in text
    assert "INTERNALERROR" not in text


def test_engine_hook_that_returns_something_else(project: Project) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("return ScriptedEngine(spec, config.rootpath)", "return {}"))
    project.test(PERFORMANCE)
    result = project.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["pytest_inferperf_make_engine returned {}; return a *"])


def test_broken_baseline_does_not_hide_an_invalid_run(project: Project) -> None:
    project.engine(short_by=1)
    project.test(PERFORMANCE, 'throughput_floor("output_throughput_per_user")')
    path = project.path / "baselines/performance/test-cpu-2x/tiny-llama.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: request 0 returned 7 tokens *", "*tiny-llama.json*"])


@pytest.mark.parametrize("script", [{"relaunch_error": "out of memory"}, {"broken": True}])
def test_a_body_that_goes_on_after_half_a_measurement(project: Project, script: dict[str, object]) -> None:
    """The first session alone would pass."""
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace(
            "        self.session += 1\n",
            "        self.session += 1\n        self.script['short_by'] = int(self.script.get('broken', False))\n",
        )
    )
    project.engine(**script)
    body = "\n".join(["try:", "        inferperf.measure()", "    except Exception:", "        pass"])
    project.test(PERFORMANCE.replace(")", ", sessions=2)"), "throughput_floor(output_throughput_per_user=1)", body=body)
    result = project.run("--inferperf-json=r.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["INVALID: the run is invalid: the measurement failed: *"])
    (record,) = json.loads((project.path / "r.json").read_text())["records"]
    assert len(record["result"]["performance"]["sessions"]) == 1
    assert record["result"]["invalid"].startswith("the measurement failed: ")


def test_last_attempt_of_a_rerun_counts(project: Project) -> None:
    """What pytest-rerunfailures does: the same item runs again."""
    conftest = project.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """

def pytest_runtest_protocol(item, nextitem):
    from _pytest.runner import runtestprotocol

    for _ in range(2):
        for report in runtestprotocol(item, nextitem=nextitem, log=False):
            item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
    )
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    result = project.run("--inferperf-json=r.json", "--junitxml=j.xml")
    result.stdout.fnmatch_lines(["1 gate in 1 test: 1 passed", "1 result written to r.json"])
