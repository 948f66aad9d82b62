"""Keeps the records of all tests, and writes results, baselines and the summary when the session ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_inferperf.errors import InferperfError
from pytest_inferperf.selection import SELECTION, bound_of
from pytest_inferperf.session import STATE, State, state_of
from pytest_inferperf.termination import take_sigterm

if TYPE_CHECKING:
    from pytest_inferperf.baselines.result_file import ResultFile

__all__ = ["Recorder", "now"]

_CI = ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "GITLAB_CI")


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
        for act in (self._write_results, self._update, self._keep_results, self._tell_ci):
            try:
                act(state)
            except Exception as error:  # a disk or a storage that fails in one act must not cost what the others write
                what = str(error) if isinstance(error, InferperfError) else f"{type(error).__name__}: {error}"
                state.lines.append(f"ERROR: {what}")
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
        from pytest_inferperf.baselines.result_file import write_result_file
        from pytest_inferperf.report.lines import plural

        write_result_file(path, self._result_file(state))
        state.lines.append(f"{plural(len(state.records), 'result')} written to {self._shown(path)}")

    def _keep_results(self, state: State) -> None:
        settings = state.settings
        if not settings.results or not state.records or settings.replay is not None:
            return
        from pytest_inferperf.keeping import keep_results

        place = keep_results(settings.results, self._result_file(state), root=settings.root, shown=self._shown)
        state.lines.append(f"results kept in {place}")

    def _result_file(self, state: State) -> ResultFile:
        from pytest_inferperf.baselines.result_file import ResultFile
        from pytest_inferperf.model.injection import shown

        against = state.settings.against
        environment = {
            **(state.context or {}),
            **({"inferperf_against": against.label} if against is not None else {}),
            "inferperf_baselines": self._shown(state.settings.baselines),
            **{f"--inferperf-set {name}": str(value) for name, value in state.settings.overrides},
            **({"--inferperf-inject": shown(state.settings.injections)} if state.settings.injections else {}),
        }
        return ResultFile(created=now(), environment=environment, records=state.kept())

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
        from pytest_inferperf.report.placements import waiting_line

        state = self._config.stash[STATE]
        cases = [
            (record.nodeid, record.verdicts, record.result.engine is not None and record.result.engine.simulated)
            for record in state.records
        ]
        for line in state.commands:
            terminalreporter.write_line(line)
        hide = state.hide
        waited = waiting_line(record.result.placement for record in state.records)
        lines = summary_lines(cases, injected=shown(state.settings.injections)) + waited + state.lines
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
