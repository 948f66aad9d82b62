"""The published error rates, simulated small: a judge that alarms more, or misses more, fails here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_inferperf.gates.looks import BLOCKS, QUESTIONS, SESSIONS, LookSchedule
from pytest_inferperf.gates.paired import judge_paired
from pytest_inferperf.gates.sessions import judge_blocks, judge_sessions

pytestmark = pytest.mark.newest

ROOT = Path(__file__).parents[1]
SEED = [1]
ERROR = 0.067
"""Alpha plus three Monte Carlo errors of 1,500 runs."""


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    path = ROOT / "benchmarks" / "operating_characteristics.py"
    spec = importlib.util.spec_from_file_location("operating_characteristics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rules(benchmark_module: ModuleType) -> Any:
    return benchmark_module


class Inline(Executor):
    """Runs at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_stored_sessions(rules: Any) -> None:
    """At the noise of the promise: 10 stored sessions, tolerance 5 %, default free zone 1 %."""
    run = partial(rules.stored_rule, SEED, 1500, noise=rules.PROMISED, tolerance=0.05)
    unchanged, edge, harmful = run(loss=0.0), run(loss=0.01), run(loss=0.05)
    assert unchanged.fail <= 0.015
    assert unchanged.passed >= 0.98
    assert edge.fail <= ERROR
    assert harmful.fail >= 0.93
    assert harmful.passed <= ERROR
    assert max(unchanged.used, harmful.used) <= 2.5
    assert run(loss=0.07).fail >= 0.99


def test_interleaved_blocks(rules: Any) -> None:
    """Tolerance 3 %, default free zone 0.6 %."""
    run = partial(rules.interleaved_rule, SEED, 1500, noise=rules.PROMISED, tolerance=0.03)
    unchanged, edge, harmful = run(loss=0.0), run(loss=0.006), run(loss=0.03)
    assert unchanged.fail <= 0.01
    assert unchanged.passed >= 0.97
    assert edge.fail <= ERROR
    assert harmful.fail >= 0.9
    assert harmful.passed <= ERROR
    assert max(unchanged.used, harmful.used) <= 15


def test_paired_answers(rules: Any) -> None:
    """1,319 questions, 5 % flips, tolerance 2 points, default free zone 1."""
    run = partial(rules.paired_rule, SEED, 1500, questions=1_319, flips=0.05, tolerance=0.02)
    unchanged, edge, harmful = run(loss=0.0), run(loss=0.01), run(loss=0.02)
    assert unchanged.fail <= 0.005
    assert unchanged.passed >= 0.89
    assert edge.fail <= ERROR
    assert harmful.passed <= ERROR
    assert harmful.fail >= 0.38
    assert run(loss=0.04).fail >= 0.99


def test_paired_answers_of_a_large_task(rules: Any) -> None:
    found = rules.paired_rule(SEED, 200, questions=14_042, flips=0.05, tolerance=0.02, loss=0.0)
    assert found.passed >= 0.98
    assert found.used <= 14_042 / 3


@pytest.mark.parametrize(("tolerance", "between"), [(0.05, 0.01), (0.03, 0.02)])
def test_the_judge_of_a_run_gives_the_simulated_verdicts(rules: Any, tolerance: float, between: float) -> None:
    """Session by session, as a run does; the second tolerance cannot be resolved by some baselines."""
    noise = rules.Noise(within=0.02, between=between)
    assert rules.whole_road(SEED, 200, noise=noise, tolerance=tolerance, loss=0.03)[1] == 1.0


def test_the_judge_of_an_evaluation_gives_the_simulated_verdicts(rules: Any) -> None:
    assert rules.whole_evaluation(SEED, 100, questions=500, flips=0.05, tolerance=0.03, loss=0.015) == 1.0


def unspent(looks: LookSchedule) -> LookSchedule:
    """The same looks, each at the whole alpha: what early stopping without spending would do."""
    return LookSchedule(unit=looks.unit, looks=looks.looks, levels=(0.05,) * len(looks.looks))


@pytest.mark.parametrize(
    ("judge", "looks", "rule", "plan"),
    [
        (judge_sessions, SESSIONS, "stored_rule", {"tolerance": 0.05, "loss": 0.05}),
        (judge_blocks, BLOCKS, "interleaved_rule", {"tolerance": 0.03, "loss": 0.03}),
        (judge_paired, QUESTIONS, "paired_rule", {"tolerance": 0.02, "loss": 0.02, "questions": 1_319, "flips": 0.05}),
    ],
)
def test_these_bounds_notice_a_judge_that_does_not_spend_alpha(
    judge: Any, looks: LookSchedule, rule: str, plan: dict[str, float], rules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, judge.__name__, partial(judge, looks=unspent(looks)))
    noise = {} if rule == "paired_rule" else {"noise": rules.PROMISED}
    assert getattr(rules, rule)(SEED, 1500, **plan, **noise).passed > ERROR


def test_the_same_seed_gives_the_same_rates(rules: Any) -> None:
    run = partial(rules.stored_rule, replicates=50, noise=rules.PROMISED, tolerance=0.05, loss=0.03)
    assert run(SEED) == run(SEED) != run([2])


def test_what_cannot_be_resolved_is_counted_apart(rules: Any) -> None:
    loud = rules.Noise(within=0.03, between=0.02)
    found = rules.stored_rule(SEED, 200, noise=loud, tolerance=0.03, loss=0.0)
    assert found.refused > 0.1
    assert found.inconclusive >= found.refused
    assert str(found).endswith(" refused")


def test_a_broken_promise_is_said_and_returned(
    rules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge that decides at a level of .2 alarms too often."""
    eager = partial(judge_sessions, looks=LookSchedule(unit="sessions", looks=(1,), levels=(0.2,)))
    monkeypatch.setattr(rules, "judge_sessions", eager)
    assert not rules.promises(Inline(), 1, 100, 20)()
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| stored, tolerance 5 %: FAIL of unchanged runs")]
    assert row.endswith("| <= 0.01 | **no** |")


def documented() -> dict[str, list[tuple[float, float]]]:
    """FAIL and PASS of every row of ours in `docs/verdicts.md`, by the name of the row; the first table that has it."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in (ROOT / "docs" / "verdicts.md").read_text().splitlines():
        name, *cells = line.strip("| ").split(" | ")
        if name.startswith("**") and all("/" in cell for cell in cells):
            rates = [tuple(map(float, cell.split(" ")[0].split("/"))) for cell in cells]
            found.setdefault(name, [(fail, passed) for fail, passed, _ in rates])
    return found


def test_the_documented_rates_are_those_of_the_judge(rules: Any) -> None:
    """Every performance row of ours in the documentation, simulated anew with another seed."""
    rows, runs = documented(), 400
    simulated = rules.ours(Inline(), 2, runs, rules.PROMISED)
    assert len(simulated) == 7
    for name, futures in simulated.items():
        for (fail, passed), future in zip(rows[name], futures, strict=True):
            found = future.result()
            for shown, rate in ((fail, found.fail), (passed, found.passed)):
                assert rate == pytest.approx(shown, abs=4 * (shown * (1 - shown) / runs) ** 0.5 + 0.01), name


def test_peers_at_their_own_threshold_are_a_coin_toss(rules: Any) -> None:
    """The figures of the facts, by an independent simulation: a fixed 5 % finds a 5 % regression half of the time."""
    calm = rules.peer_performance(SEED, 1500, noise=rules.PROMISED, loss=0.0)
    found = rules.peer_performance(SEED, 1500, noise=rules.PROMISED, loss=0.05)
    expected = {"fixed 5 % on the mean": 0.486, "Bencher t .99": 0.743, "TensorRT-LLM P95 -5 %": 0.777}
    for name, rate in expected.items():
        assert found[name].fail == pytest.approx(rate, abs=0.04)
    assert calm["Welch .05 over rounds"].fail > 0.2
    answers = rules.peer_accuracy(SEED, 4000, questions=14_042, flips=0.05, loss=0.01)
    for name, rate in {"TensorRT-LLM sigma = 50, one-sided z": 0.544, "MLPerf 99 %": 0.908}.items():
        assert answers[name].fail == pytest.approx(rate, abs=0.03)
