"""What a prefix cache may know of conversations: what was said in them before, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_inferperf.measure.load.talks import said_before

ANSWERED = [
    # Conversation, turn, prompt tokens, output tokens.
    (0, 1, 10, 4),
    (0, 2, 20, 4),
    (0, 3, 30, 4),
    (1, 1, 100, 8),
    (1, 2, 120, 8),
    (2, 1, 1000, 16),
]


def known(rows: list[tuple[int, int, int, int]]) -> int:
    table = np.array(rows, dtype=np.int32).reshape(-1, 4)
    return said_before(dict(zip(("number", "turn", "prompt_tokens", "tokens"), table.T, strict=True)))


def test_each_turn_knows_what_was_sent_and_received_before_it() -> None:
    assert known(ANSWERED) == (10 + 4) + (20 + 4) + (100 + 8)
    assert known(ANSWERED[::-1]) == known(ANSWERED)
    assert known([]) == 0


@pytest.mark.parametrize(("failed", "less"), [((0, 3), 20 + 4), ((1, 2), 100 + 8)])
def test_a_turn_that_failed_makes_nothing_known(failed: tuple[int, int], less: int) -> None:
    assert known([row for row in ANSWERED if row[:2] != failed]) == known(ANSWERED) - less
