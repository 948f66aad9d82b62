"""Collection: marks become frozen cases, once, and no gate is left where nothing would judge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import MarkError, MissingExtra, SettingsError
from pytest_inferperf.hiding import finder, hider
from pytest_inferperf.marks.cases import BoundCase, parse_cases
from pytest_inferperf.marks.gates import GATES, NO_BLOCKS, parse_gates
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.marks.requirements import parse_requires_gpu
from pytest_inferperf.marks.secrets import refuse_secrets
from pytest_inferperf.model.gates import SpeedupFloor
from pytest_inferperf.selection import bound_of
from pytest_inferperf.session import STATE, state_of

if TYPE_CHECKING:
    from pytest_inferperf.baselines.against import RunReference
    from pytest_inferperf.marks.against import EngineReference
    from pytest_inferperf.model.case import Case, EngineSpec, GpuRequirement
    from pytest_inferperf.model.gates import Gate
    from pytest_inferperf.planning.conditions import PlannedTest

__all__ = [
    "brought_by_hook",
    "generate_cases",
    "group_by_engine",
    "marks_of",
    "need_of",
    "planned_tests",
    "prepare_items",
    "spec_of",
    "unread_mark",
]

_OURS = ("inferperf", *GATES)


def marks_of(node: pytest.Item | pytest.Function, *names: str) -> list[pytest.Mark]:
    """Return the marks of a test, innermost first; a subclass's marks are inside its base class's.

    `iter_markers` yields a base class's marks before its subclass's, which would let the base decide.
    """
    found: list[pytest.Mark] = []
    for parent in reversed(node.listchain()):
        own = [mark for mark in parent.own_markers if mark.name in names]
        if isinstance(parent, pytest.Class):
            depth: dict[int, int] = {}
            for level, cls in enumerate(parent.obj.__mro__):
                for mark in _listed(vars(cls).get("pytestmark", ())):
                    depth.setdefault(id(getattr(mark, "mark", mark)), level)
            own.sort(key=lambda mark: depth.get(id(mark), -1))
        found += own
    return found


def _listed(marks: object) -> Iterable[object]:
    return marks if isinstance(marks, list | tuple) else (marks,)


def generate_cases(metafunc: pytest.Metafunc) -> str:
    """Parametrize a test with its cases; return what is wrong with its marks, or ""."""
    definition = metafunc.definition
    gates = marks_of(definition, *GATES)
    marks = marks_of(definition, "inferperf")
    uses = [name for name in ("inferperf_engine", "inferperf_case") if name in metafunc.fixturenames]
    if not marks or not uses:
        # A gate on a module may be meant for the neighbours; one on the test or its class is meant for it.
        near = [mark for mark in gates if any(mark in node.own_markers for node in _near(definition))]
        if near and not marks:
            return f"{near[0].name} has no inferperf mark beside it, so nothing is measured."
        return f"{near[0].name}: {_REQUEST}" if near else ""
    if gates and "inferperf" not in metafunc.fixturenames:
        return f"{gates[0].name}: {_REQUEST}"
    try:
        _check_params(definition)
        _check_module(definition)
        params = _params(metafunc, marks[::-1], gates[::-1], uses)
    except (MarkError, MissingExtra, SettingsError) as error:
        return state_of(metafunc.config).hide(str(error)) if STATE in metafunc.config.stash else hider()(str(error))
    # One explicit session scope: left to pytest, the narrowest fixture would rebuild the engine for every test.
    metafunc.parametrize(uses, params, indirect=True, scope="session")
    return ""


_REQUEST = "the test must request the inferperf fixture and call it."


def _near(node: pytest.Item | pytest.Function) -> Iterator[pytest.Item | pytest.Class | pytest.Function]:
    for parent in node.listchain():
        if parent is node or isinstance(parent, pytest.Class):
            yield parent


def _params(
    metafunc: pytest.Metafunc, marks: Sequence[pytest.Mark], gates: Sequence[pytest.Mark], uses: Sequence[str]
) -> list[Any]:
    """Turn marks, outermost first, into one parameter set per case. Raises `MarkError` and `SettingsError`."""
    definition = metafunc.definition
    state = state_of(metafunc.config)
    origin = Origin(
        folder=definition.path.parent,
        root=state.settings.root.resolve(),
        overrides=state.settings.overrides,
        backends=_backends(definition),
        default_backend=state.settings.backend,
    )
    parse_requires_gpu(marks_of(definition, "requires_gpu"))
    params = []
    cases = parse_cases(marks, origin)
    for case_id, case in cases:
        bound = _bind(case, parse_gates(gates, case, origin), state.settings.against, origin)
        speedups = [gate.reference for gate in bound.gates if isinstance(gate, SpeedupFloor)]
        references = [reference.spec for reference in (*speedups, *filter(None, [bound.against]))]
        state.key_names |= {spec.api_key_env for spec in (*references, case.engine)}
        find = finder(also=state.key_names)
        for spec in (*references, case.engine):
            refuse_secrets(replace(case, engine=spec), find)
            _remember_hook(definition, spec)
        values = {"inferperf_engine": case.engine, "inferperf_case": bound}
        resolved = pytest.mark.inferperf(**case.identity())
        state.resolved[id(resolved.mark)] = resolved.mark
        params.append(pytest.param(*(values[name] for name in uses), id=case_id, marks=resolved))
    state.read |= {id(mark): mark for mark in (*marks, *gates)}
    return params


def _bind(
    case: Case, gates: tuple[Gate, ...], against: EngineReference | RunReference | None, origin: Origin
) -> BoundCase:
    """Put a case and its gates together; `--inferperf-against` takes the place of the baselines."""
    if against is None:
        return BoundCase(case=case, gates=gates)
    from pytest_inferperf.marks.against import EngineReference, gates_against

    reference = against.engine(case.engine, origin) if isinstance(against, EngineReference) else None
    if reference is not None and case.workload is not None and case.workload.swept:
        raise MarkError(f"--inferperf-against {against.label}: {NO_BLOCKS}")
    return BoundCase(case=case, gates=gates_against(gates, against, reference), against=reference)


def _backends(definition: pytest.Function) -> tuple[str, ...]:
    """Return the valid backend names; nothing where a third party may bring any."""
    if definition.ihook.pytest_inferperf_make_engine.get_hookimpls():
        return ()
    from pytest_inferperf.engines.backends import BACKENDS

    return ("auto", *BACKENDS)


def _remember_hook(definition: pytest.Function, spec: EngineSpec) -> None:
    """Keep the hook as this test's folder sees it: a conftest.py brings engines to its own folder only."""
    hook = definition.ihook.pytest_inferperf_make_engine
    known = state_of(definition.config).makers.setdefault(spec, hook)
    if [impl.plugin for impl in known.get_hookimpls()] != [impl.plugin for impl in hook.get_hookimpls()]:
        raise MarkError(
            "inferperf: two folders bring different engines for the same inferperf mark "
            "(pytest_inferperf_make_engine in their conftest.py). Run them apart, or give them another "
            "served_model_name."
        )


def _check_params(definition: pytest.Function) -> None:
    """Refuse our marks on `pytest.param`: they come after the case is decided and would be ignored."""
    for mark in definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs.get("argvalues", ())
        for value in values if isinstance(values, list | tuple) else ():
            for item in getattr(value, "marks", ()):
                name = getattr(item, "name", "")
                if name in _OURS:
                    raise MarkError(
                        f"{name} stands on a pytest.param, where it cannot change the case. Give the inferperf mark a "
                        "list of values, such as concurrency=[1, 8], or write two tests."
                    )


def _check_module(definition: pytest.Function) -> None:
    """Refuse a `pytestmark` list that contradicts itself: its order says nothing about inner and outer."""
    module = definition.getparent(pytest.Module)
    seen: dict[str, object] = {}
    for mark in module.own_markers if module is not None else ():
        for name, value in mark.kwargs.items() if mark.name == "inferperf" else ():
            if seen.setdefault(name, value) != value:
                raise MarkError(
                    f"inferperf: pytestmark says both {name}={seen[name]!r} and {name}={value!r}; keep one."
                )


def unread_mark(item: pytest.Item) -> str:
    """Say which mark of ours on a test was never read, so that it would gate nothing; "" when all were.

    Marks come late from hooks, from `request.node.add_marker`, and on tests that pytest does not parametrize.
    """
    if not any(mark.name in _OURS for node in _near(item) for mark in node.own_markers):
        return ""
    state = state_of(item.config)
    names = _OURS if bound_of(item) is not None else GATES
    for node in _near(item):
        for mark in node.own_markers:
            if mark.name in names and id(mark) not in state.read and id(mark) not in state.resolved:
                return (
                    f"{mark.name} was added where it cannot be read (by a hook, in the test, or on a unittest method), "
                    "so it would gate nothing. Put it on a test function, its class or its module."
                )
    return ""


def spec_of(item: pytest.Item) -> EngineSpec | None:
    """Return the engine an item needs; None for a test that is not ours."""
    callspec = getattr(item, "callspec", None)
    spec: EngineSpec | None = callspec.params.get("inferperf_engine") if callspec is not None else None
    return spec


def brought_by_hook(item: pytest.Item) -> bool:
    """Whether a hook is asked for the engine of an item before the shipped backends are."""
    return bool(item.ihook.pytest_inferperf_make_engine.get_hookimpls())


def need_of(item: pytest.Item) -> GpuRequirement | None:
    """Return the GPUs that an item needs: what its `requires_gpu` says, and what its engines imply; None for none.

    Engines that are held at once share the GPUs; of an engine on many machines, those of this one count. What a hook builds may run anywhere. Raises `MarkError`.
    """
    from pytest_inferperf.engines.needs import implied_need, joint_need, of_this_node

    said = parse_requires_gpu(marks_of(item, "requires_gpu"))
    spec, bound = spec_of(item), bound_of(item)
    if spec is None or brought_by_hook(item):
        return said
    said = of_this_node(said, spec)
    specs = [spec]
    if bound is not None:
        specs += [gate.reference.spec for gate in bound.gates if isinstance(gate, SpeedupFloor)]
        specs += [bound.against.spec] if bound.against is not None else []
    return joint_need([said, *map(implied_need, specs)])


def prepare_items(items: Sequence[pytest.Item]) -> None:
    """Leave each case its one resolved mark, and name its benchmark fixture.

    `-m "inferperf(quant='FP8')"` must not match a mark that was overridden. A node that holds other tests too keeps
    its marks: they are theirs.
    """
    shared = {node for item in items if spec_of(item) is None for node in item.listchain()}
    for item in items:
        if spec_of(item) is None:
            continue
        resolved = state_of(item.config).resolved
        for node in item.listchain():
            if node not in shared:
                node.own_markers[:] = [
                    mark for mark in node.own_markers if mark.name != "inferperf" or id(mark) in resolved
                ]
        bound = bound_of(item)
        load = bound.case.workload if bound is not None else None
        if load is not None and not load.swept and item.config.pluginmanager.hasplugin("benchmark"):
            # Named among the fixtures, so that --benchmark-only and --benchmark-skip see a benchmark.
            fixtures: list[str] = getattr(item, "fixturenames", [])
            if "benchmark" not in fixtures:
                fixtures.append("benchmark")


def group_by_engine(items: list[pytest.Item]) -> None:
    """Sort tests by engine, stable in all else: one build and one load per distinct engine."""
    first: dict[EngineSpec, int] = {}
    order: dict[pytest.Item, int] = {}
    for index, item in enumerate(items):
        spec = spec_of(item)
        order[item] = index if spec is None else first.setdefault(spec, index)
    if first:
        items.sort(key=order.__getitem__)


def planned_tests(items: Sequence[pytest.Item]) -> list[PlannedTest]:
    """Describe the tests of ours for a plan, in the order in which they would run."""
    from pytest_inferperf.planning.conditions import PlannedTest

    found = []
    for item in items:
        spec = spec_of(item)
        if spec is None:
            continue
        bound = bound_of(item)
        found.append(
            PlannedTest(
                nodeid=item.nodeid,
                engine=spec,
                case=bound.case if bound is not None else None,
                gates=bound.gates if bound is not None else (),
                need=need_of(item),
                against=bound.against if bound is not None else None,
                by_hook=brought_by_hook(item),
            )
        )
    return found
