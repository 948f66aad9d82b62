"""The self-test of gates: the same tests with and without an injected regression, in pytest runs of their own.

A gate that passes a clean run and fails one that is known to be worse is wired the right way round. The size of what is
injected follows from the clean run's figures, the limits, and the statistics that a gate needs to be sure; never from
what the judge says about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum
from pathlib import Path
from statistics import fmean, median
from types import FrameType

from pytest_inferperf.baselines.entries import AccuracyEntry, PerformanceEntry
from pytest_inferperf.baselines.result_file import ResultRecord, read_result_file
from pytest_inferperf.baselines.store import lookup_accuracy, lookup_performance, stored_score
from pytest_inferperf.errors import InferperfError, SettingsError
from pytest_inferperf.gates.looks import QUESTIONS
from pytest_inferperf.gates.reliance import (
    certain_factor,
    certain_factor_of_blocks,
    certain_share,
    rely_on_blocks,
    rely_on_questions,
    rely_on_sessions,
    times_as_good,
)
from pytest_inferperf.gates.speedup import block_values
from pytest_inferperf.model.gates import (
    AccuracyFloor,
    AccuracyLossCeiling,
    ErrorRateCeiling,
    Gate,
    PerformanceGate,
    SpeedupFloor,
)
from pytest_inferperf.model.injection import KINDS, Injection, shown
from pytest_inferperf.model.metrics import METRICS, Metric, base_name
from pytest_inferperf.model.results import AccuracyResult
from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.lines import plural
from pytest_inferperf.report.selftest import GateProof, SelfTestReport

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
_STOP_S = 60.0
"""How long an interrupted run may take to close its engines."""

MOST = 20.0
"""The largest factor on time or memory that is injected: a limit farther away than this catches nothing worth the name."""

Key = tuple[str, str, int]
"""A gate: nodeid, name of its row, and which of several rows of that name."""


@dataclass(frozen=True, kw_only=True)
class _Test:
    """What became of a test."""

    gates: int
    outcome: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One pytest run."""

    records: Mapping[str, ResultRecord]
    tests: Mapping[str, _Test]
    alpha: float

    def rows(self) -> dict[Key, tuple[ResultRecord, GateVerdict]]:
        """Return every judged gate."""
        found: dict[Key, tuple[ResultRecord, GateVerdict]] = {}
        for nodeid, record in self.records.items():
            names = [verdict.gate for verdict in record.verdicts]
            for index, verdict in enumerate(record.verdicts):
                found[nodeid, verdict.gate, names[:index].count(verdict.gate)] = (record, verdict)
        return found


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
        with _stoppable(), tempfile.TemporaryDirectory(prefix="inferperf-selftest-") as name:
            self._folder = Path(name)
            return self._examine()

    def _examine(self) -> SelfTestReport:
        clean = self._clean()
        plans = {key: self._plan(key, *row, clean.alpha) for key, row in clean.rows().items()}
        plans |= self._inject({key: plan for key, plan in plans.items() if not plan.proof.problem})
        skipped: dict[str, str] = {}
        problems = []
        for nodeid, test in clean.tests.items():
            record, why = clean.records.get(nodeid), test.reason or test.outcome
            if record is not None and len(record.verdicts) >= test.gates:
                problems += [f"{nodeid}: {gate.name}: not judged" for gate in _unjudged(record)]
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

    def _clean(self) -> _Run:
        clean = self._pytest("clean")
        self._say(f"clean run: {_counts(clean)}")
        missing = [key[0] for key, (_, verdict) in clean.rows().items() if "has no baseline" in verdict.reason]
        if not missing:
            return clean
        only: dict[str, Sequence[Injection]] = dict.fromkeys(sorted(set(missing)), ())
        self._pytest("record", *_RECORD, only=only)
        self._say(f"record: {plural(len(only), 'test')} had no baseline on this machine")
        again = self._pytest("clean-again", only=only)
        self._say(f"clean run again: {_counts(again)}")
        return replace(clean, records={**clean.records, **again.records}, tests={**clean.tests, **again.tests})

    def _inject(self, plans: Mapping[Key, _Plan]) -> dict[Key, _Plan]:
        """Run each test with the largest sizes that its gates need, and once more for those that did not see them."""
        done = dict(plans)
        for name, more in (("injected", 1.0), ("injected-again", 2.0)):
            left = {key: plan for key, plan in done.items() if plan.proof.found != Status.FAIL.value}
            if not left:
                break
            largest = _largest(left.values(), more)
            if not largest:
                break
            only = {
                nodeid: _largest((plan for key, plan in left.items() if key[0] == nodeid), more)
                for nodeid in sorted({key[0] for key in left})
            }
            run = self._pytest(name, *(f"--inferperf-inject={item}" for item in largest), only=only)
            rows = run.rows()
            for key, plan in left.items():
                row = rows.get(key)
                test = run.tests.get(key[0])
                done[key] = plan.judged(
                    row, only[key[0]], (test.reason or test.outcome) if test is not None else "it is gone"
                )
            failed = sum(done[key].proof.found == Status.FAIL.value for key in left)
            self._say(f"injected up to {shown(largest)}: {failed} of {plural(len(left), 'gate')} failed")
        return done

    def _pytest(self, name: str, *options: str, only: Mapping[str, Sequence[Injection]] | None = None) -> _Run:
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
        command += [f"--inferperf-json={folder / RESULTS}", "--maxfail=0", *options]
        status = _call(command, {**os.environ, FOLDER: str(folder)}, log)
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
        return _Run(
            records={record.nodeid: record for record in records},
            tests={nodeid: _Test(**test) for nodeid, test in outcomes["tests"].items()},
            alpha=outcomes["alpha"],
        )

    # What a gate needs.

    def _plan(self, key: Key, record: ResultRecord, verdict: GateVerdict, alpha: float) -> _Plan:
        proof = GateProof(nodeid=key[0], gate=key[1], clean=verdict.status.value)
        if record.result.invalid:
            return _Plan(proof=replace(proof, problem=f"does not pass as it is: {record.result.invalid}"))
        if verdict.status is not Status.PASS:
            return _Plan(proof=replace(proof, problem=f"does not pass as it is: {verdict.reason}"))
        if verdict.measured is None or verdict.limit is None:
            return _Plan(proof=replace(proof, problem="passed without a figure or a limit"))
        gate = _gate_of(record.gates, verdict)
        if gate is None:
            return _Plan(proof=replace(proof, problem="passed, and no gate of the test is called so"))
        root = self._folder / BASELINES
        if isinstance(gate, PerformanceGate):
            return _plan_performance(proof, gate, record, verdict, root, alpha)
        if isinstance(gate, ErrorRateCeiling):
            why = "no injection makes requests fail; try it on `inferperf simulate-server --error-rate`, with url= in the mark"
            return _Plan(proof=replace(proof, problem=why))
        if isinstance(gate, SpeedupFloor):
            return _plan_speedup(proof, gate, record, verdict, alpha)
        return _plan_accuracy(proof, gate, record, verdict, root, alpha)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What has to be injected for a gate."""

    proof: GateProof
    needs: tuple[Injection, ...] = ()
    floor: bool = False
    """Whether it is a floor on speed: then everything that is too slow is injected as a slowdown."""

    def judged(self, row: tuple[ResultRecord, GateVerdict] | None, injections: Sequence[Injection], why: str) -> _Plan:
        """Add what the gate said to the injections."""
        kinds = {item.kind for item in self.needs}
        mine = [item for item in injections if item.kind in kinds or (item.kind == "slowdown" and "latency" in kinds)]
        proof = replace(self.proof, injected=shown(mine))
        if row is None:
            return replace(self, proof=replace(proof, found="not judged", problem=f"was not judged: {why}"))
        record, verdict = row
        proof = replace(proof, found=verdict.status.value)
        if record.result.invalid and verdict.status is Status.INVALID:
            problem = f"the run is invalid: {record.result.invalid}"
        elif verdict.status is not Status.FAIL:
            problem = f"does not fail: {_figures(verdict)}"
        elif verdict.measured is None or verdict.limit is None:
            proof = replace(proof, found="not judged")
            problem = f"fails without a figure: {verdict.reason}"
        else:
            problem = ""
        return replace(self, proof=replace(proof, problem=problem))


def _figures(verdict: GateVerdict) -> str:
    if verdict.measured is None or verdict.limit is None:
        return verdict.reason
    relation = ">=" if verdict.higher_is_better else "<="
    return f"{verdict.measured:.6g} {relation} {verdict.limit:.6g} {verdict.unit} is {verdict.status.value}"


def _unjudged(record: ResultRecord) -> list[Gate]:
    """Return the gates that no row stands for; of an invalid run, whose rows are bare, none."""
    found = [_gate_of(record.gates, verdict) for verdict in record.verdicts]
    return [] if None in found else [gate for gate in record.gates if gate not in found]


def _gate_of(gates: Sequence[Gate], verdict: GateVerdict) -> Gate | None:
    """Find the gate of a row: by its name for a metric or speedup, by its reference for a loss, else a floor."""
    for gate in gates:
        if isinstance(gate, PerformanceGate) and gate.name == verdict.gate:
            absolute = gate.limit is not None
            if absolute == (verdict.source == "mark"):
                return gate
        if isinstance(gate, SpeedupFloor | ErrorRateCeiling) and gate.name == verdict.gate:
            return gate
        rows = (" loss", "unparseable rise")
        if isinstance(gate, AccuracyLossCeiling) and verdict.gate.endswith(
            tuple(f"{row} vs {gate.reference}" for row in rows)
        ):
            return gate
        if isinstance(gate, AccuracyFloor) and verdict.source == "mark" and not METRICS.get(base_name(verdict.gate)):
            return gate
    return None


def _plan_performance(
    proof: GateProof, gate: PerformanceGate, record: ResultRecord, verdict: GateVerdict, root: Path, alpha: float
) -> _Plan:
    performance, engine = record.result.performance, record.result.engine
    assert performance is not None
    assert engine is not None
    higher = gate.metric.metric.higher_is_better
    entry = lookup_performance(root, engine.hardware, record.result.case)
    stored = entry.metrics.get(gate.name) if isinstance(entry, PerformanceEntry) and gate.limit is None else None
    sessions = stored.sessions if stored is not None else ()
    rounds = [value for session in performance.rounds(gate.name) for value in session]
    # From the figures themselves: the row is what is examined.
    measured, tolerance = median(median(session) for session in performance.rounds(gate.name)), verdict.tolerance
    limit = gate.limit if stored is None else stored.value
    if stored is not None and tolerance is not None:
        limit = stored.level * (1 - tolerance if higher else 1 + tolerance)
        reliance = rely_on_sessions(sessions, tolerance=tolerance, higher_is_better=higher, alpha=alpha)
        proof = replace(proof, reliance=reliance, unit="%")
    assert limit is not None
    if proof.reliance is None:
        proof = replace(proof, distance=100 * abs(1 - limit / measured), unit="%")
    factor = certain_factor(measured, limit, rounds=rounds, sessions=sessions, alpha=alpha)
    return _worse_by(factor, proof, gate.metric.metric, measured, limit)


def _plan_speedup(
    proof: GateProof, gate: SpeedupFloor, record: ResultRecord, verdict: GateVerdict, alpha: float
) -> _Plan:
    """Only the candidate is made worse: its reference stays what it is."""
    assert verdict.tolerance is not None
    metric = gate.metric.metric
    compared = next(item for item in record.result.comparisons if item.reference == gate.reference and item.blocks)
    blocks = block_values(compared, gate.metric.name)
    higher = metric.higher_is_better
    measured, tolerance = times_as_good(blocks, higher_is_better=higher), verdict.tolerance
    limit = gate.ratio * (1 - tolerance) if higher else gate.ratio / (1 + tolerance)
    reliance = rely_on_blocks(blocks, tolerance=tolerance, higher_is_better=higher, alpha=alpha)
    factor = certain_factor_of_blocks(measured, limit, blocks=blocks, alpha=alpha)
    return _worse_by(factor, replace(proof, reliance=reliance, unit="%"), metric, measured, limit)


def _worse_by(factor: float, proof: GateProof, metric: Metric, measured: float, limit: float) -> _Plan:
    """Plan what makes a metric worse by a factor, or by `MOST` where its noise asks for more than that."""
    distance = max(measured / limit, limit / measured)
    if distance > MOST:
        why = f"{measured:.6g} is {distance:.0f} times as good as it asks for: such a limit catches nothing"
        return _Plan(proof=replace(proof, problem=why))
    factor = min(factor, MOST)
    kind = "memory" if metric.name == "peak_memory_gib" else "slowdown" if metric.higher_is_better else "latency"
    return _Plan(proof=proof, needs=(_injection(kind, factor),), floor=kind == "slowdown")


def _injection(kind: str, factor: float) -> Injection:
    """Turn a factor on time or memory into an injection, rounded up."""
    size = 100 * (1 - 1 / factor) if kind == "slowdown" else 100 * (factor - 1)
    return Injection(kind=kind, size=round(size + 0.05, 1), unit="%")


def _factor(item: Injection) -> float:
    return 1 / (1 - item.size / 100) if item.kind == "slowdown" else 1 + item.size / 100


def _plan_accuracy(
    proof: GateProof, gate: Gate, record: ResultRecord, verdict: GateVerdict, root: Path, alpha: float
) -> _Plan:
    measured, limit = verdict.measured, verdict.limit
    accuracy, case = record.result.accuracy, record.result.case
    assert measured is not None
    assert limit is not None
    assert accuracy is not None
    certain = partial(certain_share, questions=accuracy.planned, answered=len(accuracy.outcomes), alpha=alpha)
    # Spoilt questions in points of the score: an answer that is wrong already costs nothing.
    worth = stored_score(root, case, metric=accuracy.metric) or 1.0
    if isinstance(gate, AccuracyFloor):
        loss = (measured - limit) / 100
        share = certain(loss, spread=accuracy.score * (1 - accuracy.score), tested=False)
        proof = replace(proof, distance=abs(measured - limit), unit="points")
    elif isinstance(gate, AccuracyLossCeiling) and verdict.gate.startswith("unparseable"):
        # Half of the spoilt answers cannot be read.
        share = 2 * worth * certain((limit - measured) / 100, spread=fmean(accuracy.unparseable or (0,)), tested=False)
        proof = replace(proof, distance=abs(limit - measured), unit="points")
    else:
        assert isinstance(gate, AccuracyLossCeiling)
        entry = lookup_accuracy(root, case, accuracy.metric)
        stored = entry.scores.get(gate.reference) if isinstance(entry, AccuracyEntry) else None
        before = stored.outcomes if stored is not None else ()
        # In points of the score, or relative to its mean.
        scale = 1.0 if gate.points is not None else abs(fmean(before)) or 1.0
        spread = _spread(before, accuracy) / scale**2
        looked = accuracy.sequential or accuracy.is_partial
        reliance = rely_on_questions(
            accuracy.planned,
            spread=spread,
            tolerance=limit / 100,
            binary=accuracy.is_binary,
            level=QUESTIONS.at(alpha).levels[-1] if looked else alpha,
        )
        proof = replace(proof, reliance=reliance, unit=verdict.unit)
        share = certain((limit - min(0.0, measured)) / 100, spread=spread, tested=True)
        if gate.points is None and accuracy.higher_is_better:
            share *= worth
    points = min(100.0, 100 * share)
    return _Plan(proof=proof, needs=(Injection(kind="accuracy", size=round(points + 0.05, 1), unit="pt"),))


def _spread(before: Sequence[float], accuracy: AccuracyResult) -> float:
    """Return the mean square of what each answer differs from the reference's; of a group, its sum counts as one."""
    asked = accuracy.asked or (True,) * accuracy.planned
    numbers = [number for number, was in enumerate(asked) if was]
    sums: defaultdict[int, float] = defaultdict(float)
    for number, outcome in zip(numbers, accuracy.outcomes, strict=True):
        sums[accuracy.groups[number] if accuracy.groups is not None else number] += before[number] - outcome
    return fsum(value * value for value in sums.values()) / len(numbers)


def _largest(plans: Iterable[_Plan], more: float) -> tuple[Injection, ...]:
    """Return the largest size of each kind, `more` times as large, as few kinds as do.

    A slowdown makes every token late too, so where there is one it covers the latencies.
    """
    found = list(plans)
    floors = any(plan.floor for plan in found)
    largest: dict[str, Injection] = {}
    for item in (item for plan in found for item in plan.needs):
        if item.kind == "accuracy":
            wanted = replace(item, size=min(100.0, item.size * more))
        else:
            kind = "slowdown" if floors and item.kind == "latency" else item.kind
            wanted = _injection(kind, min(MOST, 1 + (_factor(item) - 1) * more))
        known = largest.get(wanted.kind)
        if known is None or known.size < wanted.size:
            largest[wanted.kind] = wanted
    return tuple(largest[name] for name in KINDS if name in largest)


def _counts(run: _Run) -> str:
    rows = [verdict for _, verdict in run.rows().values()]
    passed = sum(verdict.status is Status.PASS for verdict in rows)
    return f"{passed} of {plural(len(rows), 'gate')} passed"


# Processes.


def _call(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command to its end, output to `log`; whatever interrupts us interrupts it, once, and is waited for."""
    with log.open("wb") as stream:
        # A session of its own: a Ctrl-C at the terminal would reach it twice, and the second one cuts its teardown short.
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
            try:
                child.wait(_STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            raise


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: the child is stopped and the folder removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
