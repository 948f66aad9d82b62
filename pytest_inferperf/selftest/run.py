"""The self-test of gates: the same tests with and without an injected regression, in pytest runs of their own.

A gate that passes a clean run and fails one that is known to be worse is wired the right way round. The size of what is
injected follows from the clean run's figures, the limits, and the statistics that a gate needs to be sure; never from
what the judge says about it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.errors import InferperfError, SettingsError
from pytest_inferperf.model.injection import Injection, shown
from pytest_inferperf.model.verdicts import Status
from pytest_inferperf.report.lines import plural
from pytest_inferperf.report.selftest import SelfTestReport
from pytest_inferperf.selftest.plan import RUNS, Plan, largest, plan_gate
from pytest_inferperf.selftest.process import call, stoppable
from pytest_inferperf.selftest.rows import Key, Run, Test, counts, unjudged

__all__ = ["BASELINES", "FOLDER", "ONLY", "OUTCOMES", "SelfTest"]

FOLDER = "INFERPERF_SELFTEST_FOLDER"
"""The environment variable that tells a run where its files are."""

BASELINES, ONLY, OUTCOMES, RESULTS = "baselines", "only.json", "outcomes.json", "results.json"

# As few sessions as are calibrated: these baselines serve this one test.
_RECORD = ("--inferperf-update=new", "--inferperf-update-in-ci", "--inferperf-set=sessions=5")
_OURS = (
    "--inferperf-update",
    "--inferperf-inject",
    "--inferperf-json",
    "--inferperf-reason",
    "--inferperf-accept-regression",
    "--inferperf-against",
    "--inferperf-plan",
)


class SelfTest:
    """Runs the self-test of the tests that pytest's arguments select."""

    def __init__(self, arguments: Sequence[str], *, say: Callable[[str], None], keep: Path | None = None) -> None:
        """Prepare. `say` receives lines of progress, `keep` is a folder for the results and logs of every run.

        Raises `SettingsError` for arguments that are the self-test's own business.
        """
        for item in arguments:
            name = item.partition("=")[0]
            if name.startswith(_OURS):
                raise SettingsError(
                    f"inferperf selftest: {name} is not for you to give: the self-test records, injects and writes "
                    "results itself, with baselines in a folder that is removed. To keep results: --keep DIR. To inject "
                    "one regression by hand: pytest --inferperf-inject=slowdown:5%."
                )
        self._arguments = tuple(arguments)
        self._say = say
        self._keep = keep
        self._folder = Path()

    def run(self) -> SelfTestReport:
        """Run everything and return what was found.

        Raises `SettingsError` where pytest refuses its arguments or selects no gate, `KeyboardInterrupt` when stopped.
        """
        with stoppable(), tempfile.TemporaryDirectory(prefix="inferperf-selftest-") as name:
            self._folder = Path(name)
            return self._examine()

    def _examine(self) -> SelfTestReport:
        clean = self._clean()
        root = self._folder / BASELINES
        plans = {key: plan_gate(key, *row, root=root, alpha=clean.alpha) for key, row in clean.rows().items()}
        plans |= self._inject({key: plan for key, plan in plans.items() if not plan.proof.problem})
        skipped: dict[str, str] = {}
        problems = []
        for nodeid, test in clean.tests.items():
            record, why = clean.records.get(nodeid), test.reason or test.outcome
            if record is not None and len(record.verdicts) >= test.gates:
                problems += [f"{nodeid}: {name}: not judged" for name in unjudged(record)]
                passed = all(verdict.status is Status.PASS for verdict in record.verdicts) and not record.result.invalid
                if passed and test.outcome != "passed":
                    problems.append(f"{nodeid}: its gates pass and the test does not: {why}")
            elif test.outcome == "skipped":
                skipped[nodeid] = why
            else:
                problems.append(f"{nodeid}: not judged: {why}")
        return SelfTestReport(
            proofs=tuple(plan.proof for plan in plans.values()), skipped=skipped, problems=tuple(problems)
        )

    # The runs.

    def _clean(self) -> Run:
        clean = self._pytest("clean")
        self._say(f"clean run: {counts(clean)}")
        missing = [key[0] for key, (_, verdict) in clean.rows().items() if "has no baseline" in verdict.reason]
        if not missing:
            return clean
        only: dict[str, Sequence[Injection]] = dict.fromkeys(sorted(set(missing)), ())
        self._pytest("record", *_RECORD, only=only)
        self._say(f"record: {plural(len(only), 'test')} had no baseline on this machine")
        again = self._pytest("clean-again", only=only)
        self._say(f"clean run again: {counts(again)}")
        return replace(clean, records={**clean.records, **again.records}, tests={**clean.tests, **again.tests})

    def _inject(self, plans: Mapping[Key, Plan]) -> dict[Key, Plan]:
        """Run each test with the largest sizes that its gates need, and once more for those that did not see them."""
        done = dict(plans)
        for name, kinds in RUNS:
            mine = {key: plan for key, plan in plans.items() if any(item.kind in kinds for item in plan.needs)}
            for again, more in (("", 1.0), ("-again", 2.0)):
                left = {key: done[key] for key in mine if done[key].proof.found != Status.FAIL.value}
                if left:
                    done |= self._inject_once(f"{name}{again}", left, more)
        return done

    def _inject_once(self, name: str, left: Mapping[Key, Plan], more: float) -> dict[Key, Plan]:
        sizes = largest(left.values(), more)
        only = {
            nodeid: largest((plan for key, plan in left.items() if key[0] == nodeid), more)
            for nodeid in sorted({key[0] for key in left})
        }
        run = self._pytest(name, *(f"--inferperf-inject={item}" for item in sizes), only=only)
        rows, judged = run.rows(), {}
        for key, plan in left.items():
            test = run.tests.get(key[0])
            why = (test.reason or test.outcome) if test is not None else "it is gone"
            judged[key] = plan.judged(rows.get(key), only[key[0]], why)
        failed = sum(plan.proof.found == Status.FAIL.value for plan in judged.values())
        self._say(f"injected up to {shown(sizes)}: {failed} of {plural(len(left), 'gate')} failed")
        return judged

    def _pytest(self, name: str, *options: str, only: Mapping[str, Sequence[Injection]] | None = None) -> Run:
        """Run pytest once, `only` these tests, each with its injections of those in the options. Raises `SettingsError` where it could not start, `InferperfError` where it broke."""
        folder = self._folder
        for leftover in (ONLY, OUTCOMES, RESULTS):
            (folder / leftover).unlink(missing_ok=True)
        if only is not None:
            shares = {nodeid: [str(item) for item in injections] for nodeid, injections in only.items()}
            (folder / ONLY).write_text(json.dumps(shares))
        log = folder / f"{name}.log"
        command = [sys.executable, "-m", "pytest", *self._arguments, "-p", "pytest_inferperf.selftest_plugin"]
        # Every gate is to fail, so no failure may end the run.
        command += [f"--inferperf-json={folder / RESULTS}", "--inferperf-results=", "--maxfail=0", *options]
        status = call(command, {**os.environ, FOLDER: str(folder)}, log)
        if self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, self._keep / log.name)
            if (folder / RESULTS).exists():
                shutil.copy(folder / RESULTS, self._keep / f"{name}.json")
        if status not in (0, 1) or not (folder / OUTCOMES).exists():
            text = "\n".join(log.read_text(errors="replace").strip().splitlines()[-30:])
            if status == 5:
                raise SettingsError(f"inferperf selftest: no test with a gate is selected.\n{text}")
            error = SettingsError if status == 4 else InferperfError
            raise error(f"inferperf selftest: pytest ended with exit status {status} in the {name} run.\n{text}")
        outcomes = json.loads((folder / OUTCOMES).read_text())
        records = read_result_file(folder / RESULTS).records if (folder / RESULTS).exists() else ()
        return Run(
            records={record.nodeid: record for record in records},
            tests={nodeid: Test(**test) for nodeid, test in outcomes["tests"].items()},
            alpha=outcomes["alpha"],
        )
