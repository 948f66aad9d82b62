"""The pytest plugin: options, marks, fixtures, and hooks that translate pytest to values and back.

Everything heavy is imported where it is used: a project that has the plugin installed and does not use it pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import (
    EngineError,
    HardwareError,
    InferperfError,
    InvalidRun,
    MarkError,
    MissingExtra,
    SettingsError,
)
from pytest_inferperf.hidden_reports import HiddenReports
from pytest_inferperf.hiding import finder, hide_in, hider
from pytest_inferperf.model.limits import LIMITS
from pytest_inferperf.selection import SELECTION, Selection
from pytest_inferperf.session import (
    RECORD,
    RUN,
    STATE,
    Recorder,
    bound_of,
    forget_attempt,
    is_a_regression,
    judge_item,
    state_of,
    waived_failure,
)
from pytest_inferperf.termination import take_sigterm

if TYPE_CHECKING:
    from pytest_inferperf.engines.devices import DeviceLease
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.marks.cases import BoundCase
    from pytest_inferperf.model.case import EngineSpec, GpuRequirement, ReferenceEngine

_MARKS = (
    "inferperf(*, model, served_model_name, quant, recipe, kv_cache_dtype, tp, pp, ep, backend, calib_dataset, "
    "calib_size, qat_dataset, qat_steps, qat_learning_rate, serve, url, api_key_env, hardware, engine_options, isl, osl, concurrency, request_rate, arrival, burstiness, shared_prefix, endpoint, dataset, turns, think_time, trace, trace_speed, num_requests, rounds, warmup_rounds, seed, sessions, task, "
    "num_fewshot, limit, group_by, early_stop): the engine, and the workload or the task, that the test measures. Lists "
    "are cross products.",
    "throughput_floor(*metrics, tolerance=None, **limits): fail when a metric that is better when higher falls below "
    "its baseline or limit.",
    "latency_ceiling(*metrics, tolerance=None, **limits): fail when a metric that is better when lower rises above its "
    "baseline or limit.",
    "goodput_floor(*, ttft_ms=None, tpot_ms=None, e2e_latency_ms=None, min=None, tolerance=None): fail when the requests "
    "per second that met every one of these limits fall below their baseline or min.",
    "frontier_floor(metric, *, over, tolerance=None): fail when a point of a sweep's frontier, of metric traded against "
    "over, is no longer on offer.",
    "error_rate_ceiling(share): fail when more than this share of the requests failed; up to it, failed requests do not "
    "make the run INVALID.",
    "speedup_floor(*metrics, over, ratio=1.0, tolerance=None, reload=False): fail when the engine is less than ratio "
    "times as good as the engine that over names, the two measured interleaved.",
    "accuracy_loss_ceiling(*, reference, points=None, percent=None, unparseable_points=None, metric=None): fail when "
    "the task is answered worse than by the stored reference.",
    "accuracy_floor(*, points, metric=None): fail when the score of the task is below a limit in points.",
    "requires_gpu(*, sm=0, count=1, memory_gib=0.0): skip where the machine lacks such GPUs.",
)


WAIVERS = "inferperf.waivers.toml"
"""The file of waivers; the module that reads it is not loaded where there is none."""

_NAMES = tuple(line.partition("(")[0] for line in _MARKS)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("inferperf", "accuracy and performance of LLM inference")

    def option(name: str, **attributes: Any) -> None:
        group.addoption(f"--inferperf-{name}", dest=f"inferperf_{name.replace('-', '_')}", default=None, **attributes)

    option(
        "backend",
        metavar="NAME",
        help="Engine backend: auto, transformers, tensorrt_llm, openai, or one a plugin brings",
    )
    option("baselines", metavar="DIR", help="Folder of the baseline files")
    option("cache-dir", metavar="DIR", help="Folder of built checkpoints")
    option("json", metavar="PATH", help="Write every result and verdict to this file")
    option("html", metavar="PATH", help="Write an HTML report, one file that needs no network, to this file")
    option(
        "update",
        choices=("new", "tighten", "all"),
        help="Record baselines: what is missing (new), what got better (tighten), or everything (all).\n"
        "A run that records is judged by the baselines it found.",
    )
    option("update-in-ci", action="store_true", help="Let --inferperf-update record where CI is set")
    option("reason", metavar="TEXT", help="Why a baseline changes; stored with it")
    option("accept-regression", action="store_true", help="Let --inferperf-update=all loosen beyond tolerance")
    option(
        "against",
        metavar="SPEC_OR_RESULT",
        help="Compare with another engine (KEYWORD=VALUE[,KEYWORD=VALUE...]) or with a result file, not with baselines",
    )
    option(
        "audit",
        action="store_true",
        help="Repeat prompts after each measurement: answers that come from a cache are INVALID",
    )
    option(
        "replay",
        metavar="RESULTS",
        help="Build no engine: judge the results in this file by today's marks, settings and baselines",
    )
    option("require-gpu", action="store_true", help="Fail, instead of skip, where requires_gpu is not met")
    option(
        "set",
        action="append",
        metavar="KEYWORD=VALUE",
        help="Override a keyword of every inferperf mark (repeatable), such as rounds=3 or engine_options.NAME=VALUE",
    )
    option(
        "plan",
        action="store_true",
        help="Run nothing: say what would be built and loaded, what each gate can find, and how long it takes",
    )
    option(
        "past",
        metavar="PATH",
        help="Result file, or folder of them, that a plan takes expected times from, and an HTML report its trends",
    )
    option("power", metavar="SHARE", help="Probability with which a plan wants losses to be found, such as 0.9")
    option("cases", metavar="PATH", help="Write every collected case to this file; goes with --collect-only")
    option(
        "inject",
        action="append",
        metavar="KIND:SIZE",
        help="Make the engine worse on purpose, to see gates fail (repeatable), such as latency:20ms; kinds: slowdown, "
        "latency, accuracy, errors, agreement, memory, noise",
    )
    parser.addini("inferperf_backend", "Engine backend", default="auto")
    parser.addini("inferperf_baselines", "Folder of the baseline files, relative to the rootdir", default="baselines")
    parser.addini("inferperf_cache_dir", "Folder of built checkpoints, relative to the rootdir", default="")
    parser.addini("inferperf_require_gpu", "Fail where requires_gpu is not met", type="bool", default=False)
    parser.addini("inferperf_task_paths", "Folders with lm-eval task files", type="paths", default=[])
    parser.addini("inferperf_tolerance", "Default relative performance tolerance", type="float", default=0.05)
    parser.addini("inferperf_alpha", "One-sided error of each gate, over all of its looks", type="float", default=0.05)
    for limit in LIMITS:
        parser.addini(limit.ini, limit.help, type="float", default=limit.default)
    parser.addini("inferperf_on_inconclusive", "What an INCONCLUSIVE verdict does: fail or warn", default="fail")
    parser.addini(
        "inferperf_fail_on_improvement", "Fail where a gain beyond the tolerance is proven", type="bool", default=False
    )
    parser.addini("inferperf_past", "Past results for plans, relative to the rootdir", default="")
    parser.addini(
        "inferperf_power", "Probability with which a plan wants losses to be found", type="float", default=0.9
    )
    parser.addini(
        "inferperf_gpu_hour_price", "What one GPU costs for one hour, in any currency", type="float", default=0.0
    )
    parser.addini(
        "inferperf_gpu_timeout", "Seconds an engine may wait for GPUs that others hold", type="float", default=7200.0
    )
    parser.addini("inferperf_load_timeout", "Seconds an engine may take to load", type="float", default=3600.0)
    parser.addini("inferperf_call_timeout", "Seconds one call of an engine may take", type="float", default=1800.0)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_inferperf import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for line in _MARKS:
        config.addinivalue_line("markers", line)
    config.pluginmanager.register(HiddenReports(), "inferperf-hidden-reports")
    config.stash[SELECTION] = Selection(config)
    config.pluginmanager.register(config.stash[SELECTION], "inferperf-selection")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config), "inferperf-recorder")
    asked = (
        "update",
        "json",
        "html",
        "reason",
        "accept_regression",
        "set",
        "plan",
        "past",
        "power",
        "inject",
        "replay",
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
    return (mark for mark in node.iter_markers() if mark.name in _NAMES)


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
    # Another plugin may run the same item a second time.
    message = forget_attempt(item)
    lacking = ""
    if not message:
        message, lacking = _unfit(item)
    if message:
        pytest.fail(message, pytrace=False)
    if lacking:
        pytest.skip(lacking)


def _unfit(item: pytest.Item) -> tuple[str, str]:
    """Say why a test must fail before it begins, and why it cannot run on this machine; "" for neither."""
    from pytest_inferperf.collection import need_of, unread_mark
    from pytest_inferperf.engines.hardware import find_gpus, why_missing

    try:
        wrong = unread_mark(item)
        if STATE in item.config.stash and state_of(item.config).settings.replay is not None:
            return wrong, _not_replayed(item)
        need = need_of(item)
        lacking = why_missing(need, find_gpus()) if need is not None else ""
        if lacking and state_of(item.config).settings.require_gpu:
            wrong = wrong or f"{lacking} (--inferperf-require-gpu forbids to skip)"
    except (MarkError, SettingsError) as error:
        return str(error), ""
    if not wrong and not lacking:
        wrong = _old_driver(item) or _beside_neighbours(item)
    return wrong, lacking


def _not_replayed(item: pytest.Item) -> str:
    """Say why a test cannot be replayed; "" where it can."""
    from pytest_inferperf.collection import spec_of

    if spec_of(item) is None or "inferperf" in getattr(item, "fixturenames", ()):
        return ""
    return "asks the engine itself, and --inferperf-replay builds none"


def _old_driver(item: pytest.Item) -> str:
    """Say that the driver cannot run the engine of a test; "" where it can, and where none is needed."""
    from pytest_inferperf.collection import brought_by_hook, spec_of
    from pytest_inferperf.engines.hardware import look_at_gpus
    from pytest_inferperf.engines.needs import driver_problem, installed_cuda, needs_gpu

    spec = spec_of(item)
    if spec is None or brought_by_hook(item) or not needs_gpu(spec):
        return ""
    return driver_problem(look_at_gpus(), cuda=installed_cuda())


def _beside_neighbours(item: pytest.Item) -> str:
    """Say that a test would measure performance beside other workers; "" where it does not."""
    bound = bound_of(item)
    if bound is None or bound.case.workload is None or not hasattr(item.config, "workerinput"):
        return ""
    from pytest_inferperf.collection import brought_by_hook
    from pytest_inferperf.engines.devices import gpus_to_lease
    from pytest_inferperf.engines.hardware import find_gpus

    if not brought_by_hook(item) and gpus_to_lease(bound.case.engine, find_gpus()) is not None:
        return ""  # Cards of its own: no neighbour computes on them.
    return (
        "performance is not measured under xdist: neighbours on the same machine make the figures wrong. "
        f"Run without -n: pytest {item.nodeid}"
    )


@pytest.fixture(scope="session")
def inferperf_case(request: pytest.FixtureRequest) -> BoundCase:
    """The resolved case of the test and its gates, as the `inferperf` mark declares them."""
    bound: BoundCase = _param(request)
    return bound


@pytest.fixture(scope="session")
def inferperf_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The built engine of the test's `inferperf` mark: `generate`, `stream`, `loglikelihood`, for your own asserts."""
    from pytest_inferperf.terminal import shown_progress

    spec: EngineSpec = _param(request)
    if state_of(request.config).settings.replay is not None:
        from pytest_inferperf.engines.replayed import ReplayedEngine

        yield ReplayedEngine(spec)
        return
    message = ""
    state_of(request.config).card = _wanted_card(request.session, spec)
    with shown_progress(request.config) as progress:
        try:
            engine = _make_engine(request.config, spec, tmp_path_factory, progress)
        except InferperfError as error:
            message = str(error)
        except BaseException:
            # A timeout of pytest's, or a fault: whatever engine comes next must not take these cards for its partner's.
            _release(request.config)
            raise
    if message:
        _release(request.config)
        raise _not_a_regression(message)
    yield engine
    try:
        engine.close()
    except InferperfError as error:
        message = str(error)
    finally:
        _release(request.config)
    if message:
        pytest.fail(f"the engine did not close: {message}", pytrace=False)


def _release(config: pytest.Config) -> None:
    """Give the GPUs of an engine back, once it is closed."""
    state = state_of(config)
    if state.lease is not None:
        state.lease.release()
        state.lease = None


def _wanted_card(session: pytest.Session, spec: EngineSpec) -> GpuRequirement | None:
    """Return what the tests of an engine that can run here ask of its GPUs, by `requires_gpu` and by references."""
    from pytest_inferperf.collection import need_of, spec_of
    from pytest_inferperf.engines.hardware import find_gpus, why_missing
    from pytest_inferperf.engines.needs import joint_need

    gpus = find_gpus()
    needs: list[GpuRequirement | None] = []
    for item in session.items if gpus else ():
        # A wrong mark is the failure of its own test.
        with suppress(MarkError):
            needs += [need_of(item)] if spec_of(item) == spec else []
    return joint_need(need for need in needs if need is not None and not why_missing(need, gpus))


def _leased(config: pytest.Config, spec: EngineSpec, progress: Callable[[str], None]) -> DeviceLease | None:
    """Return the GPUs of an engine: those that the engine it is compared with has, else cards that are free.

    Raises `HardwareError` after a wait, and where the other has too few.
    """
    from pytest_inferperf.engines.devices import gpus_to_lease, lease_devices
    from pytest_inferperf.engines.hardware import find_gpus, need_words, why_missing

    state, gpus = state_of(config), find_gpus()
    need = gpus_to_lease(spec, gpus)
    if need is None:
        return None
    if state.lease is None:
        if state.card is not None:
            card = replace(state.card, count=need.count, sm=max(need.sm, state.card.sm))
            # Where no card is all that the tests ask for, each of them runs on one that is enough for the engine.
            need = need if why_missing(card, gpus) else card
        name = f"{spec.precision} {spec.served_model_name}"
        timeout_s = state.settings.gpu_timeout_s
        state.lease = lease_devices(need, gpus, holder=name, timeout_s=timeout_s, progress=progress)
    elif len(state.lease.uuids) < need.count:
        raise HardwareError(
            f"{spec.precision} {spec.served_model_name} needs {need_words(need)}, and the engine that it is compared with "
            f"has {len(state.lease.uuids)}. Give the two the same tp x pp."
        )
    return state.lease


def _not_a_regression(message: str) -> BaseException:
    """Return a failure that no xfail may expect: the engine or its figures, not its speed, are what is wrong."""
    failure = pytest.fail.Exception(message, pytrace=False)
    failure.inferperf_not_a_regression = True  # type: ignore[attr-defined]
    return failure


def _make_engine(
    config: pytest.Config, spec: EngineSpec, tmp: pytest.TempPathFactory, progress: Callable[[str], None]
) -> Engine:
    from pytest_inferperf.engines.interface import Engine

    maker = state_of(config).makers.get(spec, config.hook.pytest_inferperf_make_engine)
    engine = maker(config=config, spec=spec)
    if engine is None:
        return _open_engine(config, spec, tmp, progress)
    if not isinstance(engine, Engine):
        raise EngineError(
            f"pytest_inferperf_make_engine returned {engine!r}; return a "
            "pytest_inferperf.engines.interface.Engine, or None to leave the spec to others."
        )
    return engine


def _make_reference(
    config: pytest.Config,
    reference: ReferenceEngine,
    candidate: Engine,
    tmp: pytest.TempPathFactory,
    progress: Callable[[str], None],
) -> Engine:
    """Build a reference engine as the candidate was built, or under the interpreter that it names."""
    if not reference.python:
        return _make_engine(config, reference.spec, tmp, progress)
    from pytest_inferperf.engines.process import EngineProcess

    if not isinstance(candidate, EngineProcess):
        raise EngineError(
            f"python={reference.python} runs a shipped backend under another interpreter, and the engine of this test "
            "is brought by a hook (pytest_inferperf_make_engine). Leave python out."
        )
    return _open_engine(config, reference.spec, tmp, progress, python=reference.python)


def _open_engine(
    config: pytest.Config,
    spec: EngineSpec,
    tmp: pytest.TempPathFactory,
    progress: Callable[[str], None],
    *,
    python: str = "",
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
        python=python,
        lease=_leased(config, spec, progress),
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
    request: pytest.FixtureRequest,
    inferperf_case: BoundCase,
    inferperf_engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Inferperf]:
    """Measure or evaluate what the marks declare; the gates judge it after the test body.

    `inferperf.measure()` runs the workload, `inferperf.evaluate()` the task, `inferperf.engine` is the built engine.
    """
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.terminal import shown_progress

    config = request.config
    why = finder(also=state_of(config).key_names)(request.node.nodeid)
    if why:
        # Hidden, the names of two tests may be one, and of two results one would be kept.
        raise _not_a_regression(f"the test's name {why}, and results are filed under it. Give parametrize other ids=.")
    benchmark = None
    if _is_benchmark(inferperf_case) and config.pluginmanager.hasplugin("benchmark"):
        benchmark = request.getfixturevalue("benchmark")
    if state_of(config).settings.replay is not None:
        try:
            yield _replayed(request, inferperf_case, inferperf_engine)
        finally:
            if benchmark is not None:
                benchmark.skipped = True  # Nothing was timed.
        return
    engine = _injected(request.node, inferperf_case, inferperf_engine)
    with shown_progress(config) as progress:
        run = Inferperf(
            inferperf_case,
            engine,
            state_of(config).settings,
            benchmark=benchmark,
            progress=progress,
            context=lambda: _context(config, engine),
            open_reference=lambda reference: _make_reference(
                config, reference, inferperf_engine, tmp_path_factory, progress
            ),
            answers=state_of(config).answers,
            nodeid=request.node.nodeid,
        )
        request.node.stash[RUN] = run
        yield run
    if benchmark is not None and run.result.performance is None:
        benchmark.skipped = True  # Else pytest-benchmark warns that nobody used it.


def _is_benchmark(bound: BoundCase) -> bool:
    """Whether the rounds fit one row of pytest-benchmark's table: those of a sweep are of several loads."""
    return bound.case.workload is not None and not bound.case.workload.swept


def _replayed(request: pytest.FixtureRequest, bound: BoundCase, engine: Engine) -> Inferperf:
    """Find what stands in for measuring a case; a case without a result fails."""
    from pytest_inferperf.engines.replayed import ReplayedEngine
    from pytest_inferperf.errors import ResultFileError
    from pytest_inferperf.replay import ReplayedRun

    settings = state_of(request.config).settings
    assert settings.replay is not None
    assert isinstance(engine, ReplayedEngine)
    message = ""
    try:
        run = ReplayedRun(bound, engine, settings, replay=settings.replay, nodeid=request.node.nodeid)
    except ResultFileError as error:
        message = str(error)
    if message:
        raise _not_a_regression(message)
    request.node.stash[RUN] = run
    return run


def _injected(item: pytest.Item, bound: BoundCase, engine: Engine) -> Engine:
    """Put what --inferperf-inject asks for around the engine."""
    settings = state_of(item.config).settings
    if not settings.injections:
        return engine
    from pytest_inferperf.baselines.store import stored_score
    from pytest_inferperf.engines.injected import InjectedEngine
    from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling

    metrics = [gate.metric for gate in bound.gates if isinstance(gate, AccuracyLossCeiling | AccuracyFloor)]
    score = stored_score(settings.baselines, bound.case, metric=next(iter(metrics), None))
    return InjectedEngine(engine, settings.injections, score=score, seed=item.nodeid)


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
    machine: dict[str, str] = {}
    if engine.info.hardware.kind == "gpu":
        from pytest_inferperf.engines.hardware import look_at_gpus

        machine = look_at_gpus().context()
    from pytest_inferperf.model.injection import CONTEXT_KEY, shown

    price = state.settings.gpu_hour_price
    if price:
        # Another price is another cost, and no other engine.
        machine["gpu_hour_price"] = f"{price:g}"
    injected = {CONTEXT_KEY: shown(state.settings.injections)} if state.settings.injections else {}
    return {**machine, **state.context, **engine.info.versions, **checkpoint, **recipe, **options, **injected}


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
        shown = judge_item(item, run, body_failed=f"the test body failed: {type(error).__name__}: {error}")
        if shown:
            item.add_report_section("call", "inferperf gates", shown)
        if isinstance(error, KeyboardInterrupt | pytest.exit.Exception) and RECORD in item.stash:
            # No report will carry it: what was measured is kept here.
            state_of(item.config).add(item.stash[RECORD])
        raise
    else:
        from pytest_inferperf.collection import unread_mark

        message = judge_item(item, run) or unread_mark(item)
    if message and not (RECORD in item.stash and is_a_regression(item.stash[RECORD])):
        raise _not_a_regression(message)
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
