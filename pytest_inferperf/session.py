"""What a pytest session holds, how a run is judged in it, and what it writes when it ends."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import BaselineError, InferperfError
from pytest_inferperf.hiding import Hide, hider
from pytest_inferperf.selection import SELECTION, bound_of
from pytest_inferperf.termination import take_sigterm

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.engines.devices import DeviceLease
    from pytest_inferperf.fixture import Inferperf
    from pytest_inferperf.model.case import EngineSpec, GpuRequirement
    from pytest_inferperf.model.results import Comparison
    from pytest_inferperf.model.verdicts import GateVerdict
    from pytest_inferperf.planning.conditions import PlannedTest
    from pytest_inferperf.report.progress import ProgressLine
    from pytest_inferperf.settings import Settings

__all__ = [
    "RECORD",
    "RUN",
    "STATE",
    "Recorder",
    "State",
    "bound_of",
    "forget_attempt",
    "is_a_regression",
    "judge_item",
    "now",
    "plan_report",
    "state_of",
    "waived_failure",
]


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

    progress: ProgressLine | None = None
    context: Mapping[str, str] | None = None
    answers: dict[Any, Comparison] = field(default_factory=dict)
    """What reference engines answered in this run, by engine, task and metric."""

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


_CI = ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "GITLAB_CI")

STATE = pytest.StashKey[State]()
RUN = pytest.StashKey["Inferperf"]()
RECORD = pytest.StashKey["ResultRecord"]()
_MESSAGE = pytest.StashKey[str]()


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


def judge_item(item: pytest.Item, run: Inferperf, *, invalid: str = "", body_failed: str = "") -> str:
    """Judge a run, keep its record, and return the failure message; "" when every gate lets it pass.

    `invalid` makes every gate INVALID; `body_failed` leaves the verdicts as they are and keeps the record from ever
    becoming a baseline.
    """
    from pytest_inferperf.baselines.result_file import ResultRecord
    from pytest_inferperf.flips import with_flips
    from pytest_inferperf.gates.judge import failed_requests
    from pytest_inferperf.gates.performance import stale_verdict
    from pytest_inferperf.judging import judge_case
    from pytest_inferperf.model.injection import shown
    from pytest_inferperf.model.verdicts import Status, worst
    from pytest_inferperf.report.junit import junit_properties
    from pytest_inferperf.report.lines import INJECTED, failure_message
    from pytest_inferperf.waiving import today, with_notes

    settings = state_of(item.config).settings
    result = replace(run.result, invalid=invalid) if invalid else run.result
    gates = run.bound.gates
    failed = [failed_requests(gates, point.performance, point.comparisons) for point in result.points()]
    reason = result.invalid or next(filter(None, failed), "")
    if not run.measured and not gates and not reason:
        return ""
    broken = ""
    try:
        verdicts = judge_case(
            result,
            gates,
            root=settings.baselines,
            tolerance=settings.tolerance,
            alpha=settings.alpha,
            against=settings.against_run,
            nodeid=item.nodeid,
        )
        result = with_flips(result, gates, root=settings.baselines, against=settings.against_run, nodeid=item.nodeid)
    except BaselineError as error:
        # What was measured is kept; it can be judged again once the file is mended.
        verdicts, broken = (), f"INVALID: {reason}\n{error}" if reason else str(error)
    if not run.engine.can_relaunch:
        verdicts = tuple(map(_without_relaunch, verdicts))
    if settings.update is not None:
        # The command that a missing baseline asks for is the one that is running.
        verdicts = tuple(replace(verdict, next_step="") for verdict in verdicts)
    if settings.fail_on_improvement and settings.against is None:
        verdicts = tuple(map(stale_verdict, verdicts))
    verdicts = tuple(replace(verdict, notes=(*verdict.notes, *run.notes)) for verdict in verdicts)
    verdicts = with_notes(verdicts, item.nodeid, settings.waivers, today())
    status = worst(verdicts) if verdicts else None
    # A test that is run again reports its last attempt.
    item.user_properties[:] = [pair for pair in item.user_properties if not pair[0].startswith("inferperf.")]
    item.user_properties.extend(junit_properties(result, verdicts))
    item.stash[RECORD] = ResultRecord(
        nodeid=item.nodeid,
        result=replace(result, invalid=body_failed or reason),
        gates=gates,
        verdicts=verdicts,
        status=status,
    )
    injected = shown(settings.injections)
    note = f"\n  note: {INJECTED.format(injected)}" if injected else ""
    if broken or status is Status.PASS:
        return broken and broken + note
    if status is None:
        return f"INVALID: {reason}{note}" if reason else ""
    timed = (
        result.performance is not None
        or result.frontier is not None
        or any(compared.blocks for compared in result.comparisons)
    )
    simulated = result.engine is not None and result.engine.simulated and timed
    message = item.stash[_MESSAGE] = failure_message(
        verdicts, _rerun(item, settings), simulated=simulated, injected=injected
    )
    # What a body failed with, Ctrl-C above all, must not be replaced by a warning that -W error turns into an error.
    if status is Status.INCONCLUSIVE and settings.on_inconclusive == "warn" and not body_failed:
        try:
            warnings.warn(pytest.PytestWarning(state_of(item.config).hide(f"{item.nodeid}: {message}")), stacklevel=2)
        except pytest.PytestWarning:
            return message
        return ""
    return message


def _without_relaunch(verdict: GateVerdict) -> GateVerdict:
    """Say of a gate that waits for a further session why there is none."""
    if verdict.next_look is None:
        return verdict
    return replace(
        verdict,
        reason=f"{verdict.reason}; the engine cannot be launched again, so there is one session",
        next_step="implement relaunch() in the engine and set can_relaunch = True, or give the gate a wider tolerance",
    )


def forget_attempt(item: pytest.Item) -> str:
    """Make an item ready to run again, or say why it may not; "" for the first attempt too.

    A verdict stands: with a second chance, a regression of any size passes sooner or later. What was INVALID, or failed
    before a gate was judged, and what passed all gates, decided nothing by itself.
    """
    from pytest_inferperf.model.verdicts import Status

    record = item.stash.get(RECORD, None)
    if record is not None and any(
        verdict.status is Status.INCONCLUSIVE
        or (verdict.status is Status.FAIL and verdict.measured is not None and verdict.limit is not None)
        for verdict in record.verdicts
    ):
        alpha = state_of(item.config).settings.alpha
        first, _, rows = item.stash[_MESSAGE].partition("\n")
        return (
            f"{first}\nNot run again: the verdict of the first attempt stands. A rerun would re-roll it, and each further "
            f"look at a gate spends part of its alpha (inferperf_alpha = {alpha:g}), all of which its own looks spend.\n"
            f"{rows}"
        )
    if record is not None:
        del item.stash[RECORD]
    return ""


def waived_failure(item: pytest.Item, message: str) -> str:
    """Return the reason of an xfail where waivers cover every failing gate of an item; "" where they do not."""
    from pytest_inferperf.waiving import today, waived

    found = waived(item.stash[RECORD], state_of(item.config).settings.waivers, today())
    return f"{'; '.join(waiver.note for waiver in found)}: {message}" if found else ""


def _rerun(item: pytest.Item, settings: Settings) -> str:
    """Return what to type after `pytest` to run one test again with the same baselines."""
    option = item.config.getoption("inferperf_baselines")
    return shlex.quote(item.nodeid) + (f" --inferperf-baselines={shlex.quote(option)}" if option else "")


def is_a_regression(record: ResultRecord) -> bool:
    """Whether a record's failure is one that an xfail may expect: every failing gate measured a figure and a limit."""
    from pytest_inferperf.model.verdicts import PROVEN_GAIN, Status

    failing = [verdict for verdict in record.verdicts if verdict.status is not Status.PASS]
    return (
        bool(failing)
        and not record.result.invalid
        and not any(PROVEN_GAIN in verdict.details for verdict in failing)
        and all(
            verdict.status is not Status.INVALID and verdict.measured is not None and verdict.limit is not None
            for verdict in failing
        )
    )


class Recorder:
    """Collects the records of all tests, and turns them into files and lines when the session ends.

    Registered in the controller or the one serial process, never in an xdist worker.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl
    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> str | list[str]:
        """Say in one line what was collected; nothing where nothing is ours."""
        cases = [bound for bound in map(bound_of, items) if bound is not None]
        if not cases or self._config.get_verbosity() < 0:
            return []
        from pytest_inferperf.report.lines import plural

        engines = len({bound.case.engine for bound in cases})
        gates = sum(len(bound.gates) for bound in cases)
        folder = self._shown(state_of(self._config).settings.baselines)
        counts = ((len(cases), "case"), (engines, "engine"), (gates, "gate"))
        line = f"inferperf: {', '.join(plural(*item) for item in counts)}, baselines in {folder}"
        settings = state_of(self._config).settings
        line += f", against {settings.against.label}" if settings.against is not None else ""
        line += "".join(f", {name}={value} by --inferperf-set" for name, value in settings.overrides)
        line += "".join(f", {item} injected" for item in settings.injections)
        return state_of(self._config).hide(line)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the record that a report carries, from this process or from an xdist worker."""
        if STATE in self._config.stash:
            self._config.stash[STATE].seen.add(report.nodeid)
        record = getattr(report, "inferperf_record", None)
        if record is not None:
            from pytest_inferperf.baselines.result_file import record_from_json

            state_of(self._config).add(record_from_json(record))
            take_sigterm(self._config)  # of workers' tests, whose setup is not seen here
        if report.failed and STATE in self._config.stash and not self._stands_for_a_verdict(record):
            self._config.stash[STATE].failed.add(report.nodeid)

    @staticmethod
    def _stands_for_a_verdict(record: Mapping[str, Any] | None) -> bool:
        return record is not None and record["status"] not in (None, "PASS")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write results and baselines; what could not be written turns the session red."""
        if STATE not in self._config.stash or self._config.getoption("inferperf_plan"):
            return
        state = self._config.stash[STATE]
        if state.settings.waivers and not self._config.getoption("collectonly"):
            faults = self._faulty_waivers(session, state)
            state.lines += [f"ERROR: {fault}" for fault in faults]
            if faults:
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        for act in (self._write_results, self._update, self._tell_ci):
            try:
                act(state)
            except InferperfError as error:
                state.lines.append(f"ERROR: {error}")
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Keep what an xdist worker says of its selection."""
        partial = getattr(node, "workeroutput", {}).get("inferperf_partial", "a worker was lost")
        if partial and STATE in self._config.stash:
            self._config.stash[STATE].partial = partial

    def _faulty_waivers(self, session: pytest.Session, state: State) -> list[str]:
        from pytest_inferperf.waiving import faulty_waivers, today

        config = self._config
        folder = config.invocation_params.dir
        stopped = "the run was stopped" if session.shouldstop or session.shouldfail or session.exitstatus == 2 else ""
        return faulty_waivers(
            state.settings.waivers,
            state.records,
            seen=state.seen,
            arguments=[Path(os.path.abspath(folder / argument)) for argument in config.args],
            root=config.rootpath,
            partial=config.stash[SELECTION].why_partial() or state.partial or stopped,
            day=today(),
        )

    def _write_results(self, state: State) -> None:
        path = state.settings.json_path
        if path is None or self._config.getoption("collectonly"):
            return
        if not state.records and path.exists():
            state.lines.append(f"no results: {self._shown(path)} is kept as it was")
            return
        from pytest_inferperf.baselines.result_file import ResultFile, write_result_file
        from pytest_inferperf.model.injection import shown
        from pytest_inferperf.report.lines import plural

        against = state.settings.against
        environment = {
            **(state.context or {}),
            **({"inferperf_against": against.label} if against is not None else {}),
            "inferperf_baselines": self._shown(state.settings.baselines),
            **{f"--inferperf-set {name}": str(value) for name, value in state.settings.overrides},
            **({"--inferperf-inject": shown(state.settings.injections)} if state.settings.injections else {}),
        }
        file = ResultFile(created=now(), environment=environment, records=state.kept())
        write_result_file(path, file)
        state.lines.append(f"{plural(len(state.records), 'result')} written to {self._shown(path)}")

    def _tell_ci(self, state: State) -> None:
        """Write what the CI system at hand reads; nothing where there is none, or nothing to say."""
        if not state.records or not any(os.environ.get(name) for name in _CI):
            return
        from pytest_inferperf.report.ci import write_ci_files
        from pytest_inferperf.report.run import run_report

        report = run_report(state.kept(), created=now(), environment=state.context or {}, hide=state.hide)
        try:
            state.commands = write_ci_files(report, os.environ, self._config.rootpath)
        except OSError as problem:
            raise InferperfError(f"what CI reads of the run cannot be written: {problem}") from None

    def _update(self, state: State) -> None:
        settings = state.settings
        if settings.update is None or self._config.getoption("collectonly"):
            return
        from pytest_inferperf.baselines.origin import Origin, find_author, results_digest
        from pytest_inferperf.baselines.update import update
        from pytest_inferperf.gates.intervals import outdone
        from pytest_inferperf.gates.sessions import doubt_gain
        from pytest_inferperf.report.lines import plural, uncalibrated

        plan, written = update(
            settings.baselines,
            state.kept(),
            mode=settings.update,
            reason=state.hide(settings.reason),
            accept_regression=settings.accept_regression,
            now=now(),
            tolerance=settings.tolerance,
            doubt=doubt_gain,
            outdone=outdone,
            origin=Origin(
                author=find_author(settings.root),
                results=results_digest(settings.json_path)
                if settings.json_path is not None and settings.json_path.is_file()
                else "",
            ),
        )
        if plan.changes:
            files = ", ".join(map(self._shown, written))
            values = plural(len(plan.changes), "value")
            state.lines.append(f"{values} recorded in {files}; review with git diff, then commit")
            state.lines += uncalibrated(item.sessions for item in plan.changes)
        state.lines += [f"not recorded: {reason}" for reason in (*plan.refusals, *plan.skipped)]
        if not plan.changes and not plan.refusals:
            state.lines.append(f"--inferperf-update={settings.update}: nothing to record")
        if plan.refusals:
            raise InferperfError(f"{plural(len(plan.refusals), 'update')} refused")

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show every gate, the counts, and one next step; nothing where no gate was judged."""
        if STATE not in self._config.stash:
            return
        from pytest_inferperf.model.injection import shown
        from pytest_inferperf.report.lines import summary_lines

        state = self._config.stash[STATE]
        cases = [
            (record.nodeid, record.verdicts, record.result.engine is not None and record.result.engine.simulated)
            for record in state.records
        ]
        for line in state.commands:
            terminalreporter.write_line(line)
        hide = state.hide
        lines = summary_lines(cases, injected=shown(state.settings.injections)) + state.lines
        if lines and self._config.get_verbosity() > -2:
            terminalreporter.section("inferperf", sep="=")
            for line in lines:
                terminalreporter.write_line(hide(line))

    def _shown(self, path: Path) -> str:
        root = self._config.rootpath
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def now() -> str:
    """Return the date and time as files hold it: ISO 8601, UTC."""
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="seconds")
