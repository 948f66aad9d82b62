"""The pytest plugin: fixtures, and hooks that translate pytest to values and back.

Everything heavy is imported where it is used: a project that has the plugin installed and does not use it pays nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.attempts import RUN, forget_attempt, is_a_regression, judge_item, not_a_regression, waived_failure
from pytest_inferperf.errors import (
    InferperfError,
    InvalidRun,
    MissingExtra,
    SettingsError,
)
from pytest_inferperf.hidden_reports import HiddenReports
from pytest_inferperf.hiding import finder, hide_in, hider
from pytest_inferperf.options import MARK_NAMES, MARKS, add_options
from pytest_inferperf.recorder import Recorder
from pytest_inferperf.selection import SELECTION, Selection, bound_of
from pytest_inferperf.session import RECORD, STATE, state_of
from pytest_inferperf.termination import take_sigterm

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.model.case import EngineSpec


WAIVERS = "inferperf.waivers.toml"
"""The file of waivers; the module that reads it is not loaded where there is none."""


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_inferperf import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKS:
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(HiddenReports(), "inferperf-hidden-reports")
    config.stash[SELECTION] = Selection(config)
    config.pluginmanager.register(config.stash[SELECTION], "inferperf-selection")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config), "inferperf-recorder")
    asked = (
        "update",
        "json",
        "results",
        "html",
        "reason",
        "accept_regression",
        "set",
        "plan",
        "past",
        "power",
        "inject",
        "replay",
        "ray",
    )
    if config.getoption("inferperf_plan") or config.getoption("inferperf_cases"):
        # This process collects and plans; xdist, if it is there, looks at its option after us.
        config.option.dist = "no"
    if (
        any(config.getoption(f"inferperf_{name}") for name in asked)
        or config.getoption("inferperf_against") is not None
        or (config.rootpath / WAIVERS).is_file()
    ):
        # Wrong options end the run before anything is collected, also where no test uses them.
        try:
            state_of(config)
            if config.getoption("inferperf_html"):
                from pytest_inferperf.html import register_writer

                register_writer(config)
            if config.getoption("inferperf_ray"):
                from pytest_inferperf.ordering import register_order

                register_order(config)
        except (SettingsError, MissingExtra) as error:
            raise pytest.UsageError(hider()(str(error))) from None


# Collection: marks become frozen cases, once.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # A look at the names first: most tests of most projects are not ours.
    message = ""
    if "inferperf_engine" in metafunc.fixturenames or next(_ours(metafunc.definition), None) is not None:
        from pytest_inferperf.collection import generate_cases

        message = generate_cases(metafunc)
    # Outside any except block, so that pytest shows this one message and nothing else.
    if message:
        pytest.fail(f"{metafunc.definition.nodeid}: {message}", pytrace=False)


def _ours(node: pytest.Item | pytest.Function) -> Iterator[pytest.Mark]:
    return (mark for mark in node.iter_markers() if mark.name in MARK_NAMES)


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_inferperf_prepare_items(config: pytest.Config, items: list[pytest.Item]) -> None:
    if STATE in config.stash:
        from pytest_inferperf.collection import prepare_items

        prepare_items(items)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if STATE in config.stash:
        from pytest_inferperf.collection import group_by_engine

        group_by_engine(items)


# A plan: the same collection, and nothing after it.


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if not config.getoption("inferperf_plan") or hasattr(config, "workerinput"):
        return None
    if session.testsfailed and not config.getoption("continue_on_collection_errors"):
        # After an error in collection pytest itself ends the run.
        return None
    from pytest_inferperf.collection import planned_tests
    from pytest_inferperf.session import plan_report

    try:
        lines = plan_report(config, planned_tests(session.items))
    except InferperfError as error:
        raise pytest.UsageError(hider()(str(error))) from None
    reporter = config.pluginmanager.getplugin("terminalreporter")
    for line in lines if reporter is not None else ():
        reporter.write_line(state_of(config).hide(line))
    return True


# Setup: what only the run can know.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if next(_ours(item), None) is None:
        return
    take_sigterm(item.config)
    from pytest_inferperf.fitness import unfit

    # Another plugin may run the same item a second time.
    message = forget_attempt(item)
    lacking = ""
    if not message:
        message, lacking = unfit(item)
    if message:
        pytest.fail(message, pytrace=False)
    if lacking:
        pytest.skip(lacking)


@pytest.fixture(scope="session")
def inferperf_case(request: pytest.FixtureRequest) -> BoundCase:
    """The resolved case of the test and its gates, as the `inferperf` mark declares them."""
    bound: BoundCase = _param(request)
    return bound


@pytest.fixture(scope="session")
def inferperf_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The built engine of the test's `inferperf` mark: `generate`, `stream`, `loglikelihood`, for your own asserts."""
    from pytest_inferperf.opening import make_engine, release, wanted_card
    from pytest_inferperf.terminal import shown_progress

    spec: EngineSpec = _param(request)
    if state_of(request.config).settings.replay is not None:
        from pytest_inferperf.engines.replayed import ReplayedEngine

        yield ReplayedEngine(spec)
        return
    message = ""
    state_of(request.config).card = wanted_card(request.session, spec)
    state_of(request.config).session = request.session
    with shown_progress(request.config) as progress:
        try:
            engine = make_engine(request.config, spec, tmp_path_factory, progress)
        except InferperfError as error:
            message = str(error)
        except BaseException:
            # A timeout of pytest's, or a fault: whatever engine comes next must not take these cards for its partner's.
            release(request.config)
            raise
    if message:
        release(request.config)
        raise not_a_regression(message)
    yield engine
    try:
        engine.close()
    except InferperfError as error:
        message = str(error)
    finally:
        release(request.config)
    if message:
        pytest.fail(f"the engine did not close: {message}", pytrace=False)


def _param(request: pytest.FixtureRequest) -> Any:
    if not hasattr(request, "param"):
        pytest.fail(
            f"{request.fixturename}: the test has no inferperf mark. "
            'Say which engine to build: @pytest.mark.inferperf(model="org/name or folder", quant="NVFP4")',
            pytrace=False,
        )
    return request.param


@pytest.fixture
def inferperf(
    request: pytest.FixtureRequest,
    inferperf_case: BoundCase,
    inferperf_engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Inferperf]:
    """Measure or evaluate what the marks declare; the gates judge it after the test body.

    `inferperf.measure()` runs the workload, `inferperf.evaluate()` the task, `inferperf.engine` is the built engine.
    """
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.opening import make_reference
    from pytest_inferperf.running import context_of, injected, replayed
    from pytest_inferperf.terminal import shown_progress

    config = request.config
    why = finder(also=state_of(config).key_names)(request.node.nodeid)
    if why:
        # Hidden, the names of two tests may be one, and of two results one would be kept.
        raise not_a_regression(f"the test's name {why}, and results are filed under it. Give parametrize other ids=.")
    benchmark = None
    if _is_benchmark(inferperf_case) and config.pluginmanager.hasplugin("benchmark"):
        benchmark = request.getfixturevalue("benchmark")
    if state_of(config).settings.replay is not None:
        try:
            yield replayed(request, inferperf_case, inferperf_engine)
        finally:
            if benchmark is not None:
                benchmark.skipped = True  # Nothing was timed.
        return
    engine = injected(request.node, inferperf_case, inferperf_engine)
    with shown_progress(config) as progress:
        run = Inferperf(
            inferperf_case,
            engine,
            state_of(config).settings,
            benchmark=benchmark,
            progress=progress,
            context=lambda: context_of(config, engine),
            open_reference=lambda reference: make_reference(
                config, reference, inferperf_engine, tmp_path_factory, progress
            ),
            answers=state_of(config).answers,
            occasions=state_of(config).occasions,
            nodeid=request.node.nodeid,
        )
        request.node.stash[RUN] = run
        yield run
    if benchmark is not None and run.result.performance is None:
        benchmark.skipped = True  # Else pytest-benchmark warns that nobody used it.


def _is_benchmark(bound: BoundCase) -> bool:
    """Whether the rounds fit one row of pytest-benchmark's table: those of a sweep are of several loads."""
    return bound.case.workload is not None and not bound.case.workload.swept


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    if STATE in config.stash and config.stash[STATE].context:
        context = {"context": dict(config.stash[STATE].context or {})}
        machine_info["inferperf"] = hide_in(context, state_of(config).hide)["context"]


# Judgement: once, in the call phase, after the body.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if RUN not in item.stash:
        answer = yield
        bound = bound_of(item)
        if bound is not None and bound.gates:
            pytest.fail(
                "no gate was judged: the inferperf fixture of the plugin did not run. Request it, and do not override it.",
                pytrace=False,
            )
        return answer
    run = item.stash[RUN]
    message = ""
    answer = None
    try:
        answer = yield
    except InvalidRun as error:
        message = judge_item(item, run, invalid=str(error))
    except InferperfError as error:
        judge_item(item, run, invalid=f"the test body failed: {error}")
        message = str(error)
    except pytest.skip.Exception:
        # What was measured before the skip is judged all the same.
        message = judge_item(item, run) if run.measured else ""
        if not message:
            raise
    except BaseException as error:
        # The body's own failure is what the user sees; the gates are still shown, and nothing of it is recorded.
        stopped = isinstance(error, KeyboardInterrupt | pytest.exit.Exception)
        early = "interrupted before anything was measured" if stopped and not run.measured else ""
        failed = f"the test body failed: {type(error).__name__}: {error}"
        shown = judge_item(item, run, invalid=early, body_failed="" if early else failed)
        if shown:
            item.add_report_section("call", "inferperf gates", shown)
        if stopped and RECORD in item.stash:
            # No report will carry it: what was measured is kept here.
            state_of(item.config).add(item.stash[RECORD])
        raise
    else:
        from pytest_inferperf.collection import unread_mark

        message = judge_item(item, run) or unread_mark(item)
    if message and not (RECORD in item.stash and is_a_regression(item.stash[RECORD])):
        raise not_a_regression(message)
    if message:
        expected = waived_failure(item, message)
        if expected:
            # Without effect under --runxfail, where waivers count as little as other xfails.
            pytest.xfail(expected)
        pytest.fail(message, pytrace=False)
    return answer


# First, so that what is done after the yield is done after pytest has applied xfail.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    unexpectable = call.excinfo is not None and hasattr(call.excinfo.value, "inferperf_not_a_regression")
    # In setup it is that of an attempt that stands.
    if call.when != "teardown" and RECORD in item.stash:
        from pytest_inferperf.baselines.result_file import record_to_json

        # Plain data: reports travel from xdist workers to the controller as JSON.
        report.inferperf_record = record_to_json(item.stash[RECORD])  # type: ignore[attr-defined]
    if unexpectable and report.skipped and hasattr(report, "wasxfail") and call.excinfo is not None:
        # An xfail expects a regression; an invalid run, a missing baseline or a dead engine is none.
        del report.wasxfail
        report.outcome = "failed"
        report.longrepr = f"{call.excinfo.value}\n(xfail expects a regression, and this is none)"
    return report
