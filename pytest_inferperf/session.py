"""What a pytest session holds, and where it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.hiding import Hide, hider

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.engines.devices import DeviceLease
    from pytest_inferperf.model.case import EngineSpec, GpuRequirement
    from pytest_inferperf.model.results import Comparison, Placement
    from pytest_inferperf.planning.conditions import PlannedTest
    from pytest_inferperf.report.progress import ProgressLine
    from pytest_inferperf.settings import Settings

__all__ = ["RECORD", "STATE", "State", "plan_report", "state_of"]


@dataclass
class State:
    """What a session of a project that uses the plugin holds."""

    settings: Settings
    records: list[ResultRecord] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """What was written, for the summary."""

    commands: list[str] = field(default_factory=list)
    """What the CI system reads from the log, a line each."""

    resolved: dict[int, pytest.Mark] = field(default_factory=dict)
    """The marks that carry resolved identities, by `id`."""

    read: dict[int, pytest.Mark] = field(default_factory=dict)
    """The marks that were read at collection, by `id`."""

    makers: dict[EngineSpec, Any] = field(default_factory=dict)
    """`pytest_inferperf_make_engine` as the folder of an engine's tests sees it."""

    seen: set[str] = field(default_factory=set)
    """Tests that were run or skipped."""

    partial: str = ""
    """Why an xdist worker collected a part of the tests; "" where none did."""

    failed: set[str] = field(default_factory=set)
    """Tests that failed in a way no verdict stands for: in teardown, in a subtest."""

    lease: DeviceLease | None = None
    """The GPUs of the engine that is open now; reference engines share them."""

    card: GpuRequirement | None = None
    """What each GPU of the engine that is opened next must be, by its tests; None where they ask for nothing."""

    session: pytest.Session | None = None
    """What runs, once an engine is opened: its tests say together what they ask of a node."""

    progress: ProgressLine | None = None
    placement: Callable[[], Placement] | None = None
    """Says where on a cluster the engine is that is open now; None for one that is on this machine."""

    context: Mapping[str, str] | None = None
    answers: dict[Any, Comparison] = field(default_factory=dict)
    """What reference engines answered in this run, by engine, task and metric."""

    occasions: dict[str, int] = field(default_factory=dict)
    """How often each load was measured: see `measure.occasions`."""

    key_names: set[str] = field(default_factory=set)
    """Environment variables that hold the API keys of the session's endpoints, whatever they are called."""

    @property
    def hide(self) -> Hide:
        """What hides secrets in everything that the session says."""
        return hider(also=self.key_names)

    def add(self, record: ResultRecord) -> None:
        """Keep a record; the last attempt of a test that is run again counts."""
        self.records = [item for item in self.records if item.nodeid != record.nodeid]
        self.records.append(record)

    def kept(self) -> tuple[ResultRecord, ...]:
        """Return the records as they are written: of a test that failed otherwise, never a baseline."""
        return tuple(
            replace(record, result=replace(record.result, invalid=record.result.invalid or "the test failed"))
            if record.nodeid in self.failed
            else record
            for record in self.records
        )


STATE = pytest.StashKey[State]()
RECORD = pytest.StashKey["ResultRecord"]()


def state_of(config: pytest.Config) -> State:
    """Return the session's state, made on first use. Raises `SettingsError` for a wrong setting."""
    if STATE not in config.stash:
        from pytest_inferperf.settings import read_settings

        config.stash[STATE] = State(settings=read_settings(config))
    return config.stash[STATE]


def plan_report(config: pytest.Config, tests: Sequence[PlannedTest]) -> list[str]:
    """Plan a run instead of running it, as lines.

    Raises `ResultFileError` for past results that cannot be read, `SettingsError` for a wrong setting.
    """
    from pytest_inferperf.baselines.past import Past, read_past
    from pytest_inferperf.engines.hardware import find_gpus
    from pytest_inferperf.planning.conditions import Conditions
    from pytest_inferperf.planning.plan import make_plan
    from pytest_inferperf.report.plan import plan_lines

    settings = state_of(config).settings
    run = settings.against_run
    past, past_shown = Past(), ""
    if settings.past is not None:
        past, past_shown = read_past(settings.past), str(settings.past)
    elif run is not None:
        past, past_shown = Past([run.file]), run.label
    conditions = Conditions(
        baselines=settings.baselines,
        cache_dir=settings.cache_dir,
        shared_cache=settings.shared_cache,
        gpus=find_gpus(),
        require_gpu=settings.require_gpu,
        tolerance=settings.tolerance,
        alpha=settings.alpha,
        power=settings.power,
        past=past,
        past_shown=past_shown,
        against=run,
        against_engine=settings.against.label if settings.against is not None and run is None else "",
    )
    return ["", *plan_lines(make_plan(tests, conditions))]
