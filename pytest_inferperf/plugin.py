"""The pytest plugin: options, marks, fixtures, and hooks that translate pytest to values and back.

Everything heavy is imported where it is used: a project that has the plugin installed and does not use it pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import InferperfError, InvalidRun, MarkError, SettingsError
from pytest_inferperf.session import RECORD, RUN, STATE, Recorder, bound_of, judge_item, state_of

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.markers import BoundCase
    from pytest_inferperf.model.case import EngineSpec

_MARKS = (
    "inferperf(*, model, served_model_name, quant, recipe, kv_cache_dtype, tp, pp, ep, backend, calib_dataset, "
    "calib_size, engine_options, isl, osl, concurrency, num_requests, rounds, warmup_rounds, seed, task, num_fewshot, "
    "limit): the engine, and the workload or the task, that the test measures. Lists are cross products.",
    "throughput_floor(*metrics, tolerance=None, **limits): fail when a metric that is better when higher falls below "
    "its baseline or limit.",
    "latency_ceiling(*metrics, tolerance=None, **limits): fail when a metric that is better when lower rises above its "
    "baseline or limit.",
    "accuracy_loss_ceiling(*, reference, points=None, percent=None, unparseable_points=None, metric=None): fail when "
    "the task is answered worse than by the stored reference.",
    "accuracy_floor(*, points, metric=None): fail when the score of the task is below a limit in points.",
    "requires_gpu(*, sm=0, count=1, memory_gib=0.0): skip where the machine lacks such GPUs.",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("inferperf", "accuracy and performance of LLM inference")

    def option(name: str, **attributes: Any) -> None:
        group.addoption(f"--inferperf-{name}", dest=f"inferperf_{name.replace('-', '_')}", default=None, **attributes)

    option("backend", metavar="NAME", help="Engine backend: auto, transformers, or one a plugin brings")
    option("baselines", metavar="DIR", help="Folder of the baseline files")
    option("cache-dir", metavar="DIR", help="Folder of built checkpoints")
    option("json", metavar="PATH", help="Write every result and verdict to this file")
    option(
        "update",
        choices=("new", "tighten", "all"),
        help="Record baselines: what is missing (new), what got better (tighten), or everything (all).\n"
        "A run that records is judged by the baselines it found.",
    )
    option("update-in-ci", action="store_true", help="Let --inferperf-update record where CI is set")
    option("reason", metavar="TEXT", help="Why a baseline changes; stored with it")
    option("accept-regression", action="store_true", help="Let --inferperf-update=all loosen beyond tolerance")
    option("require-gpu", action="store_true", help="Fail, instead of skip, where requires_gpu is not met")
    option(
        "set",
        action="append",
        metavar="KEYWORD=VALUE",
        help="Override a keyword of every inferperf mark (repeatable), such as rounds=3 or engine_options.NAME=VALUE",
    )
    parser.addini("inferperf_backend", "Engine backend", default="auto")
    parser.addini("inferperf_baselines", "Folder of the baseline files, relative to the rootdir", default="baselines")
    parser.addini("inferperf_cache_dir", "Folder of built checkpoints, relative to the rootdir", default="")
    parser.addini("inferperf_require_gpu", "Fail where requires_gpu is not met", type="bool", default=False)
    parser.addini("inferperf_task_paths", "Folders with lm-eval task files", type="paths", default=[])
    parser.addini("inferperf_tolerance", "Default relative performance tolerance", type="float", default=0.05)
    parser.addini("inferperf_on_inconclusive", "What an INCONCLUSIVE verdict does: fail or warn", default="fail")
    parser.addini("inferperf_load_timeout", "Seconds an engine may take to load", type="float", default=3600.0)
    parser.addini("inferperf_call_timeout", "Seconds one call of an engine may take", type="float", default=1800.0)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_inferperf import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config), "inferperf-recorder")
    asked = ("inferperf_update", "inferperf_json", "inferperf_reason", "inferperf_accept_regression", "inferperf_set")
    if any(config.getoption(name) for name in asked):
        # Wrong options end the run before anything is collected, also where no test uses them.
        try:
            state_of(config)
        except SettingsError as error:
            raise pytest.UsageError(str(error)) from None


# Collection: marks become frozen cases, once.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition = metafunc.definition
    uses = [name for name in ("inferperf_engine", "inferperf_case") if name in metafunc.fixturenames]
    if next(definition.iter_markers("inferperf"), None) is None:
        message = _stray_gate(definition)
    elif not uses:
        message = _stray_gate(definition, "; the test must request the inferperf fixture and call it")
    else:
        message = _parametrize(metafunc, uses)
    # Outside any except block, so that pytest shows this one message and nothing else.
    if message:
        pytest.fail(f"{definition.nodeid}: {message}", pytrace=False)


def _stray_gate(
    definition: pytest.Function, why: str = " has no inferperf mark beside it, so nothing is measured"
) -> str:
    """Say that a gate stands where nothing would ever judge it; "" when there is none."""
    # Own marks only: a gate on a module may be meant for its neighbours.
    marks = [mark for mark in definition.own_markers if mark.name in _GATES]
    return f"{marks[0].name}{why}." if marks else ""


_GATES = ("throughput_floor", "latency_ceiling", "accuracy_loss_ceiling", "accuracy_floor")


def _parametrize(metafunc: pytest.Metafunc, uses: Sequence[str]) -> str:
    """Parametrize a test with its cases; return what is wrong with its marks, or ""."""
    from pytest_inferperf import markers

    definition = metafunc.definition
    params: list[Any] = []
    try:
        settings = state_of(metafunc.config).settings
        origin = markers.Origin(
            folder=definition.path.parent,
            overrides=settings.overrides,
            backends=_backends(metafunc.config),
            default_backend=settings.backend,
        )
        cases = markers.parse_cases(list(definition.iter_markers("inferperf"))[::-1], origin)
        markers.parse_requires_gpu(list(definition.iter_markers("requires_gpu")))
        gate_marks = [mark for mark in definition.iter_markers() if mark.name in _GATES][::-1]
        if gate_marks and "inferperf_case" not in uses:
            return f"{gate_marks[0].name}: the test must request the inferperf fixture and call it."
        for case_id, case in cases:
            bound = markers.BoundCase(case=case, gates=markers.parse_gates(gate_marks, case))
            values = {"inferperf_engine": case.engine, "inferperf_case": bound}
            resolved = pytest.mark.inferperf(**case.identity())
            state_of(metafunc.config).resolved[id(resolved.mark)] = resolved.mark
            params.append(pytest.param(*(values[name] for name in uses), id=case_id, marks=resolved))
    except (MarkError, SettingsError) as error:
        return str(error)
    # One explicit session scope: left to pytest, the narrowest fixture would rebuild the engine for every test.
    metafunc.parametrize(uses, params, indirect=True, scope="session")
    return ""


def _backends(config: pytest.Config) -> tuple[str, ...]:
    """Return the valid backend names; nothing where a third party may bring any."""
    if config.hook.pytest_inferperf_make_engine.get_hookimpls():
        return ()
    from pytest_inferperf.engines.backends import BACKENDS

    return ("auto", *BACKENDS)


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_inferperf_prepare_items(items: list[pytest.Item]) -> None:
    """Leave each case its one resolved mark: `-m "inferperf(quant='FP8')"` must not match an overridden one."""
    for item in items:
        if _spec_of(item) is None:
            continue
        resolved = state_of(item.config).resolved
        for node in item.listchain():
            node.own_markers[:] = [
                mark for mark in node.own_markers if mark.name != "inferperf" or id(mark) in resolved
            ]
        bound = bound_of(item)
        if bound is not None and bound.case.workload is not None and item.config.pluginmanager.hasplugin("benchmark"):
            # Named among the fixtures, so that --benchmark-only and --benchmark-skip see a benchmark.
            fixtures: list[str] = getattr(item, "fixturenames", [])
            if "benchmark" not in fixtures:
                fixtures.append("benchmark")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests by engine, stable in all else: one build and one load per distinct engine."""
    first: dict[EngineSpec, int] = {}
    order: dict[pytest.Item, int] = {}
    for index, item in enumerate(items):
        spec = _spec_of(item)
        order[item] = index if spec is None else first.setdefault(spec, index)
    if first:
        items.sort(key=order.__getitem__)


def _spec_of(item: pytest.Item) -> EngineSpec | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("inferperf_engine") if callspec is not None else None


# Setup: what only the run can know.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = list(item.iter_markers("requires_gpu"))
    if marks:
        _check_gpu(item, marks)
    bound = bound_of(item)
    if bound is not None and bound.case.workload is not None and hasattr(item.config, "workerinput"):
        pytest.fail(
            "performance is not measured under xdist: neighbours on the same machine make the figures wrong. "
            f"Run without -n: pytest {item.nodeid}",
            pytrace=False,
        )


def _check_gpu(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    from pytest_inferperf.engines.hardware import find_gpus, why_missing
    from pytest_inferperf.markers import parse_requires_gpu

    message = ""
    lacking = ""
    try:
        need = parse_requires_gpu(marks)
        lacking = why_missing(need, find_gpus()) if need is not None else ""
    except MarkError as error:
        message = str(error)
    if message:
        pytest.fail(message, pytrace=False)
    if lacking and state_of(item.config).settings.require_gpu:
        pytest.fail(f"{lacking} (--inferperf-require-gpu forbids to skip)", pytrace=False)
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
    spec: EngineSpec = _param(request)
    from pytest_inferperf.terminal import shown_progress

    message = ""
    engine: Engine | None = None
    with shown_progress(request.config) as progress:
        try:
            engine = request.config.hook.pytest_inferperf_make_engine(config=request.config, spec=spec)
            if engine is None:
                engine = _open_engine(request.config, spec, tmp_path_factory, progress)
        except InferperfError as error:
            message = str(error)
    if engine is None:
        pytest.fail(message, pytrace=False)
    with engine:
        yield engine


def _open_engine(
    config: pytest.Config, spec: EngineSpec, tmp: pytest.TempPathFactory, progress: Callable[[str], None]
) -> Engine:
    from pytest_inferperf.engines.launch import open_engine

    settings = state_of(config).settings
    return open_engine(
        spec,
        cache_dir=settings.cache_dir,
        progress=progress,
        load_timeout_s=settings.load_timeout_s,
        call_timeout_s=settings.call_timeout_s,
        log_dir=tmp.mktemp("inferperf"),
    )


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
    request: pytest.FixtureRequest, inferperf_case: BoundCase, inferperf_engine: Engine
) -> Iterator[Inferperf]:
    """Measure or evaluate what the marks declare; the gates judge it after the test body.

    `inferperf.measure()` runs the workload, `inferperf.evaluate()` the task, `inferperf.engine` is the built engine.
    """
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.terminal import shown_progress

    config = request.config
    benchmark = None
    if inferperf_case.case.workload is not None and config.pluginmanager.hasplugin("benchmark"):
        benchmark = request.getfixturevalue("benchmark")
    with shown_progress(config) as progress:
        run = Inferperf(
            inferperf_case,
            inferperf_engine,
            state_of(config).settings,
            benchmark=benchmark,
            progress=progress,
            context=lambda: _context(config, inferperf_engine),
        )
        request.node.stash[RUN] = run
        yield run
    if benchmark is not None and run.result.performance is None:
        benchmark.skipped = True  # Else pytest-benchmark warns that nobody used it.


def _context(config: pytest.Config, engine: Engine) -> dict[str, str]:
    state = state_of(config)
    if state.context is None:
        from pytest_inferperf.measure.environment import collect_context

        extra: dict[str, str] = {}
        for answer in config.hook.pytest_inferperf_environment(config=config):
            extra |= {str(name): str(value) for name, value in answer.items()}
        state.context = collect_context(state.settings.root, extra)
    spec = engine.spec
    recipe = {"recipe": spec.recipe} if spec.recipe else {}
    options = {f"engine_options.{name}": str(value) for name, value in spec.engine_options}
    checkpoint = {"checkpoint_hash": engine.info.checkpoint_hash}
    return {**state.context, **engine.info.versions, **checkpoint, **recipe, **options}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    if STATE in config.stash and config.stash[STATE].context:
        machine_info["inferperf"] = dict(config.stash[STATE].context or {})


# Judgement: once, in the call phase, after the body.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if RUN not in item.stash:
        return (yield)
    run = item.stash[RUN]
    message = ""
    answer: object = None
    try:
        answer = yield
    except InvalidRun as error:
        message = judge_item(item, run, invalid=str(error))
        message = message or f"INVALID: {error}"
    except InferperfError as error:
        judge_item(item, run, invalid=f"the test body failed: {error}")
        message = str(error)
    except pytest.skip.Exception:
        raise
    except BaseException as error:
        # The body's own failure is what the user sees; the gates are still shown, and nothing of it is recorded.
        shown = judge_item(item, run, body_failed=f"the test body failed: {type(error).__name__}: {error}")
        if shown:
            item.add_report_section("call", "inferperf gates", shown)
        if isinstance(error, KeyboardInterrupt | SystemExit) and RECORD in item.stash:
            # No report will carry it: what was measured is kept here.
            state_of(item.config).records.append(item.stash[RECORD])
        raise
    else:
        message = judge_item(item, run)
    if message:
        pytest.fail(message, pytrace=False)
    return answer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and RECORD in item.stash:
        from pytest_inferperf.baselines.result_file import record_to_json

        # Plain data: reports travel from xdist workers to the controller as JSON.
        report.inferperf_record = record_to_json(item.stash[RECORD])  # type: ignore[attr-defined]
    return report
