"""Are the answers on a Ray cluster those of a plain run? The embedded suite as it is, plain and with 1, 2 and 3 replicas.

    python benchmarks/ray_outcomes.py [--replicas 1 2 3] [-k EXPRESSION] [--quick] [--keep FOLDER]

Runs `suites/embedded` plainly, and with `--inferperf-ray=local` at each number of replicas, in which no question is dealt
before all of them have joined (`ray_together`). Of each test it compares the verdict and, of one that evaluates, documents,
outcomes, their order, which documents were asked before it was decided, and every gate with its figure and limit, to the
last bit; log-probabilities of choices, which no outcome hangs on, within 0.02 nats. Performance is compared by its verdict alone, at one replica, against baselines that the plain way recorded
first. Ends with 1 where anything differs, where a replica that was to answer did not, and where a test does not pass plainly.
`--quick` leaves out performance, and what has no verdict.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.result_file import ResultRecord, read_result_file

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "suites" / "embedded"
BENCHMARKS = ROOT / "benchmarks"

# A machine may have neighbours: whether the answers are alike is not their business.
ALONE = ("-o", "inferperf_max_interference=1", "-o", "inferperf_max_throttled=1", "-o", "inferperf_min_clock=0")
PLUGINS = ("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:benchmark")
RECORD = (
    "--inferperf-update=new",
    "--inferperf-update-in-ci",
    "--inferperf-set=sessions=5",
    "--inferperf-set=rounds=3",
)

NATS = 0.02
"""How far a log-probability may move that changes no outcome: the plain run composes its batches otherwise."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of the suite left."""

    outcomes: Mapping[str, str]
    """How each test ended, as pytest says."""

    records: Mapping[str, ResultRecord]
    """What those found that measured something."""

    end: str
    """The last line of pytest."""


def run_suite(folder: Path, name: str, *arguments: str) -> Run:
    """Run the suite. Exits where it wrote no results."""
    results, junit = folder / f"{name}.json", folder / f"{name}.xml"
    for path in (results, junit):
        path.unlink(missing_ok=True)
    kept = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("PYTEST_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(SUITE), f"--rootdir={ROOT}", *PLUGINS, *ALONE, f"--junitxml={junit}"),
            *(f"--inferperf-json={results}", f"--inferperf-baselines={folder / 'baselines'}", *arguments),
        ],
        cwd=ROOT,
        env={**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(BENCHMARKS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    (folder / f"{name}.txt").write_text(done.stdout)
    if not results.exists() or not junit.exists():
        raise SystemExit(f"{name}: pytest ended with {done.returncode} and wrote no results:\n{done.stdout[-3000:]}")
    cases = ET.parse(junit).getroot().iter("testcase")
    return Run(
        outcomes={f"{case.attrib['classname']}::{case.attrib['name']}": _ended(case) for case in cases},
        records={_case(record.nodeid): record for record in read_result_file(results).records},
        end=done.stdout.strip().splitlines()[-1].strip("= "),
    )


def _case(nodeid: str) -> str:
    """Name a test as JUnit does."""
    path, _, name = nodeid.partition("::")
    return f"{path.removesuffix('.py').replace('/', '.')}::{name}"


def _ended(case: ET.Element) -> str:
    found = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    return found[0] if found else "passed"


def what_it_answered(record: ResultRecord) -> Mapping[str, Any]:
    """Return everything of an evaluation that must not depend on who answered."""
    accuracy = record.result.accuracy
    verdict = {"verdict": record.status}
    if accuracy is None:
        return verdict
    return verdict | {
        "documents": accuracy.documents_digest,
        "which were asked": accuracy.asked,
        "outcomes": accuracy.outcomes,
        "unparseable": accuracy.unparseable,
        "scores": accuracy.scores,
        "gates": [(item.gate, item.status, item.measured, item.limit) for item in record.verdicts],
    }


def moved_nats(one: ResultRecord, other: ResultRecord) -> float:
    """Return by how much any log-probability of a choice differs; infinite where they are of other choices."""
    before, after = (item.result.accuracy.logprobs or {} if item.result.accuracy else {} for item in (one, other))
    if {key: len(row) for key, row in before.items()} != {key: len(row) for key, row in after.items()}:
        return math.inf
    return max((abs(a - b) for key, row in before.items() for a, b in zip(row, after[key], strict=True)), default=0.0)


def shares_of(record: ResultRecord) -> list[int]:
    """Return how many parts each replica answered, as the result says."""
    return [int(parts) for note in record.result.notes for parts in re.findall(r" in (\d+) parts?", note)]


def problems_of(plain: Run, found: Run, test: str, replicas: int) -> list[str]:
    """Say what is otherwise than in the plain run, and whether fewer than `replicas` answered."""
    ended = found.outcomes.get(test, "not run")
    problems = [f"{plain.outcomes[test]} -> {ended}"] if ended != plain.outcomes[test] else []
    record, other = plain.records.get(test), found.records.get(test)
    if record is None:
        return problems
    if other is None:
        return [*problems, "has no result"]
    before, after = what_it_answered(record), what_it_answered(other)
    problems += [
        f"{name}: {_short(value)} -> {_short(after.get(name))}"
        for name, value in before.items()
        if value != after.get(name)
    ]
    moved = moved_nats(record, other)
    if moved > NATS:
        problems.append(f"log-probabilities moved by up to {moved:.4f} nats")
    shares = shares_of(other)
    if other.result.accuracy is not None and replicas > 1 and len(shares) < replicas:
        problems.append(f"{max(1, len(shares))} of {replicas} replicas answered")
    return problems


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compare(plain: Run, runs: Mapping[int, Run]) -> tuple[list[str], int]:
    """Return a table of all tests, and how many differ somewhere."""
    heads = [f"{count} replica{'' if count == 1 else 's'}" for count in runs]
    lines = [f"| test | documents | plain | {' | '.join(heads)} |", f"| --- | ---: | --- |{' --- |' * len(runs)}"]
    different = 0
    for test, ended in plain.outcomes.items():
        record = plain.records.get(test)
        accuracy = record.result.accuracy if record is not None else None
        asked = f"{len(accuracy.outcomes)} of {accuracy.planned}" if accuracy is not None else "-"
        cells = [test.rpartition("::")[2], asked, ended]
        for count, found in runs.items():
            if accuracy is None and count > 1:
                cells.append("-")
                continue
            problems = problems_of(plain, found, test, count)
            different += bool(problems)
            shares = shares_of(found.records[test]) if test in found.records else []
            parts = f", parts {' + '.join(map(str, shares))}" if shares else ""
            moved = moved_nats(record, found.records[test]) if record and test in found.records else 0.0
            nats = f", log-probabilities within {moved:.4f} nats" if moved else ""
            cells.append("; ".join(problems) or f"the same{parts}{nats}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines, different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("-k", dest="select", default="", help="Tests of the suite, as pytest selects them")
    parser.add_argument("--quick", action="store_true", help="Leave performance out, and what has no verdict")
    parser.add_argument("--keep", type=Path, help="Folder for results and logs")
    given = parser.parse_args()
    chosen = [f"({given.select})"] if given.select else []
    answers = " and ".join([*chosen, "(accuracy or perplexity)"])
    first = answers if given.quick else " and ".join(chosen)
    with nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory() as place:
        folder = Path(place).absolute()
        (folder / "baselines").mkdir(parents=True, exist_ok=True)
        if not (folder / "baselines" / "accuracy").exists():
            shutil.copytree(ROOT / "baselines" / "accuracy", folder / "baselines" / "accuracy")
        if not given.quick and not (folder / "baselines" / "performance").exists():
            _say("recording performance", run_suite(folder, "record", "-k", "test_performance", *RECORD).end)
        plain = run_suite(folder, "plain", *(["-k", first] if first else []))
        _say("plain", plain.end)
        runs: dict[int, Run] = {}
        for count in given.replicas:
            select = first if count == 1 else answers
            more = ["-p", "ray_together", f"--inferperf-set=replicas={count}"] if count > 1 else []
            more += ["-k", select] if select else []
            runs[count] = run_suite(folder, f"ray{count}", "--inferperf-ray=local", *more)
            _say(f"{count} replicas", runs[count].end)
    lines, different = compare(plain, runs)
    failed = sum(ended != "passed" for ended in plain.outcomes.values())
    print("\n".join(["", *lines, ""]))
    print(
        f"{failed} of the {len(plain.outcomes)} tests did not pass plainly; {different} times one differs on the cluster"
    )
    return 1 if failed or different or not plain.outcomes else 0


def _say(what: str, end: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}: {end}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
