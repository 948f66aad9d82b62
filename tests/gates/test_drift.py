"""The tripwire against the own baseline: trips on what changed, not on noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pytest_inferperf.baselines.entries import Provenance, ScoreEntry
from pytest_inferperf.gates.drift import KL_LIMIT, drift_against, kl_divergence, more_flips_p
from pytest_inferperf.model.results import Repeat

OWN = ScoreEntry(
    score=0.9,
    outcomes=(1.0,) * 900 + (0.0,) * 100,
    unparseable=None,
    provenance=Provenance(kind="measured"),
    repeat=Repeat(questions=250, flips=2),
    logprobs={document: (math.log(0.6), math.log(0.4)) for document in range(256)},
)


def probabilities(shift: float) -> dict[int, tuple[float, float]]:
    return {document: (math.log(0.6 + shift), math.log(0.4 - shift)) for document in range(100)}


@pytest.mark.parametrize("own", [OWN, replace(OWN, logprobs=None)])
def test_an_unchanged_engine_does_not_drift(own: ScoreEntry) -> None:
    found = drift_against(
        own, order=range(1000), outcomes=own.outcomes, logprobs=probabilities(0.0), higher_is_better=True
    )
    assert (found.lost, found.gained, found.questions, found.loss, found.causes) == (0, 0, 1000, 0.0, ())
    assert found.kl == (0.0 if own.logprobs else None)


def test_as_many_flips_as_the_engine_asked_twice_are_noise() -> None:
    flipped = (0.0,) * 4 + (1.0,) * 896 + (1.0,) * 4 + (0.0,) * 96
    found = drift_against(OWN, order=range(1000), outcomes=flipped, logprobs=None, higher_is_better=True)
    assert (found.lost, found.gained, found.loss, found.causes) == (4, 4, 0.0, ())


def test_more_flips_trip_even_without_a_net_loss() -> None:
    flipped = (0.0,) * 40 + (1.0,) * 860 + (1.0,) * 40 + (0.0,) * 60
    found = drift_against(OWN, order=range(1000), outcomes=flipped, logprobs=None, higher_is_better=True)
    assert (found.lost, found.gained, found.loss) == (40, 40, 0.0)
    assert found.causes == ("80 flips are more than the engine's own noise",)
    silent = drift_against(
        replace(OWN, repeat=None), order=range(1000), outcomes=flipped, logprobs=None, higher_is_better=True
    )
    assert silent.causes == (), "without A/A nothing says how many flips are noise"


@pytest.mark.parametrize(("shift", "trips"), [(0.0, False), (0.005, False), (0.05, True)])
def test_moved_probabilities_trip(shift: float, trips: bool) -> None:
    found = drift_against(
        OWN, order=range(1000), outcomes=OWN.outcomes, logprobs=probabilities(shift), higher_is_better=True
    )
    assert found.causes == ((f"KL is above {KL_LIMIT}",) if trips else ())


def test_the_first_documents_asked_are_compared() -> None:
    order = (999, 0, 5)
    found = drift_against(OWN, order=order, outcomes=(0.0, 0.0), logprobs=None, higher_is_better=True)
    assert (found.lost, found.gained, found.questions, found.loss) == (1, 0, 2, 0.5)
    turned = drift_against(OWN, order=order, outcomes=(0.0, 0.0), logprobs=None, higher_is_better=False)
    assert (turned.lost, turned.gained, turned.loss) == (0, 1, -0.5)


def test_kl_is_scipy_s() -> None:
    p, q = (0.7, 0.2, 0.1), (0.5, 0.25, 0.25)
    expected = float(stats.entropy(p, q))
    logs = [{0: tuple(math.log(value) + shift for value in row)} for row, shift in ((p, 3.0), (q, -1.0))]
    assert kl_divergence(*logs) == pytest.approx(expected)
    # Documents of one alone, or with other choices, are left out.
    assert kl_divergence({0: logs[0][0], 1: (0.0,)}, {0: logs[1][0], 1: (0.0, -1.0), 2: (0.0,)}) == pytest.approx(
        expected
    )
    assert kl_divergence({0: (0.0,)}, {1: (0.0,)}) is None


@pytest.mark.parametrize(("flips", "questions", "repeat"), [(5, 400, (0, 375)), (80, 1000, (2, 250)), (3, 10, (3, 10))])
def test_flips_are_compared_as_fisher_does(flips: int, questions: int, repeat: tuple[int, int]) -> None:
    count, again = repeat
    table = np.array([[flips, questions - flips], [count, again - count]])
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    assert more_flips_p(flips, questions, Repeat(questions=again, flips=count)) == pytest.approx(expected)
    assert more_flips_p(0, questions, Repeat(questions=again, flips=count)) == pytest.approx(1.0)
