"""The texts users read, in full."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.lines import failure_message, gate_rows, number, summary_lines

FILE = "baselines/performance/nvidia-b200-8x/llama-3.1-8b-instruct.json"
FAILED = GateVerdict(
    gate="output_throughput_per_gpu",
    status=Status.FAIL,
    unit="tok/s/GPU",
    measured=18422.5,
    limit=19000.0,
    baseline=20000.0,
    tolerance=0.05,
    source=FILE,
    reason="18422.5 tok/s/GPU is below its floor 19000 (-7.9 % vs baseline 20000)",
)
PASSED = GateVerdict(
    gate="ttft_ms.p99",
    status=Status.PASS,
    unit="ms",
    higher_is_better=False,
    measured=171.0,
    limit=198.0,
    baseline=180.0,
    tolerance=0.1,
    source=FILE,
)
OPEN = GateVerdict(gate="exact_match loss vs BF16", status=Status.INCONCLUSIVE, reason="needs 400 more questions")
INVALID = GateVerdict(gate="ttft_ms.p99", status=Status.INVALID, reason="the run is invalid: the GPU was throttled")


def test_failure_in_full() -> None:
    assert failure_message([FAILED, PASSED], "test_x.py::test_y[a b]").splitlines() == [
        "output_throughput_per_gpu 18422.5 tok/s/GPU is below its floor 19000 (-7.9 % vs baseline 20000); "
        "1 of 2 gates failed",
        f"  FAIL  output_throughput_per_gpu  18422.5 >= 19000.0 tok/s/GPU  baseline 20000.0 -5 %  {FILE}",
        f"  ok    ttft_ms.p99                 171.00 <=  198.00 ms         baseline 180.00 +10 %  {FILE}",
        'To accept: inferperf baseline update RESULTS.json --mode all --reason "…" --accept-regression, then commit. '
        "RESULTS.json is what --inferperf-json=RESULTS.json writes.",
    ]


def test_sessions_are_accepted_by_recording_as_many_as_a_baseline_has() -> None:
    judged = replace(FAILED, details={"baseline_sessions": 10})
    assert failure_message([judged, PASSED], "test_x.py::test_y").splitlines()[-1] == (
        'To accept: pytest test_x.py::test_y --inferperf-update=all --inferperf-reason="…" '
        "--inferperf-accept-regression, then commit."
    )


def test_inconclusive_and_invalid_lead_the_first_line() -> None:
    first = failure_message([OPEN, PASSED], "n").splitlines()[0]
    assert first == "INCONCLUSIVE: exact_match loss vs BF16 needs 400 more questions; 1 of 2 gates did not pass"
    first = failure_message([FAILED, INVALID], "n").splitlines()[0]
    assert first == "INVALID: the run is invalid: the GPU was throttled; no gate was judged"


def test_rows_without_a_figure_say_why() -> None:
    assert gate_rows([OPEN])[1].strip() == "needs 400 more questions"


@pytest.mark.parametrize(
    ("value", "text"),
    [(18422.53, "18422.5"), (198.0, "198.00"), (1.5, "1.500"), (0.0123, "0.0123"), (0.0, "0.000"), (None, "-")],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_summary_counts_and_gives_one_next_step() -> None:
    lines = summary_lines([("a.py::t", [FAILED], False), ("b.py::t", [PASSED], True)])
    assert lines[0] == "a.py::t"
    assert lines[2] == "b.py::t  (simulated)"
    assert lines[4:6] == ["", "2 gates in 2 tests: 1 passed, 1 failed"]
    assert sum(line.startswith("To accept") for line in lines) == 1


def test_nothing_to_say() -> None:
    assert summary_lines([]) == []
    assert summary_lines([("a.py::t", [], False)]) == []
