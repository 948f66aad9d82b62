"""The report of a self-test, in full text."""

from __future__ import annotations

import json

from pytest_inferperf.gates.reliance import Reliance
from pytest_inferperf.report.selftest import GateProof, SelfTestReport, report_json, report_lines


def proof(gate: str, **values: object) -> GateProof:
    found = {"clean": "PASS", "injected": "slowdown:12%", "found": "FAIL", "unit": "%", **values}
    return GateProof(nodeid="t.py::test_it", gate=gate, **found)  # type: ignore[arg-type]


def sessions(own: float, least: float | None, more: int | None) -> Reliance:
    return Reliance(own=own, least=least, more=more, counted="stored session")


REPORT = SelfTestReport(
    proofs=(
        proof("output_throughput", reliance=sessions(0.05, 0.05, 0)),
        proof("tpot_ms.p50", reliance=sessions(0.03, 0.04199, 7)),
        proof("ttft_ms.p99", reliance=sessions(0.03, 0.2, None)),
        proof("itl_ms.p50", reliance=sessions(0.03, None, 1)),
        proof("exact_match", unit="points", distance=7.474),
        proof("acc", found="PASS", problem="does not fail: 0.1 <= 3 points is PASS"),
        proof("f1", clean="FAIL", injected="", found="", problem="does not pass as it is: has no baseline"),
    ),
    skipped={"t.py::test_gpu": "Skipped: no GPU"},
    problems=("t.py::test_big: not judged: out of memory",),
)


def test_lines() -> None:
    assert report_lines(REPORT) == [
        "t.py::test_it",
        "  ok   output_throughput  PASS clean, FAIL with slowdown:12%",
        "       detects its own tolerance of 5 %",
        "  ok   tpot_ms.p50        PASS clean, FAIL with slowdown:12%",
        "       cannot detect its own tolerance of 3 %: relies on 4.2 or more; 7 more stored sessions would do",
        "  ok   ttft_ms.p99        PASS clean, FAIL with slowdown:12%",
        "       cannot detect its own tolerance of 3 %: relies on 20 or more; nothing would do",
        "  ok   itl_ms.p50         PASS clean, FAIL with slowdown:12%",
        "       nobody knows what it detects: uncalibrated, 1 more stored session would tell",
        "  ok   exact_match        PASS clean, FAIL with slowdown:12%",
        "       a plain limit, 7.47 points away",
        "  BAD  acc                PASS clean, PASS with slowdown:12%",
        "       does not fail: 0.1 <= 3 points is PASS",
        "  BAD  f1                 FAIL clean",
        "       does not pass as it is: has no baseline",
        "skipped: t.py::test_gpu: Skipped: no GPU",
        "BAD: t.py::test_big: not judged: out of memory",
        "",
        "5 of 7 gates pass clean and fail with a regression; 3 cannot be relied on to detect a loss as large as their "
        "tolerance",
    ]


def test_what_counts_as_proven() -> None:
    good = REPORT.proofs[:1]
    assert SelfTestReport(proofs=good, skipped={}, problems=()).proven
    assert not SelfTestReport(proofs=good, skipped={}, problems=("one",)).proven
    assert not SelfTestReport(proofs=(), skipped={"t": "no GPU"}, problems=()).proven
    assert not SelfTestReport(proofs=REPORT.proofs[:6], skipped={}, problems=()).proven
    assert [item.gate for item in REPORT.unreliable] == ["tpot_ms.p50", "ttft_ms.p99", "itl_ms.p50"]


def test_json() -> None:
    data = json.loads(json.dumps(report_json(REPORT)))
    assert data["proven"] is False
    assert data["skipped"] == {"t.py::test_gpu": "Skipped: no GPU"}
    second = data["gates"][1]
    assert second == {
        "nodeid": "t.py::test_it",
        "gate": "tpot_ms.p50",
        "clean": "PASS",
        "injected": "slowdown:12%",
        "found": "FAIL",
        "problem": "",
        "proven": True,
        "unit": "%",
        "distance": None,
        "tolerance": 3.0,
        "detectable": second["detectable"],
        "detects_its_tolerance": False,
        "more_needed": 7,
        "counted": "stored session",
    }
