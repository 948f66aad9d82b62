"""A plan as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_inferperf.model.plan import CasePlan, EnginePlan, Foresight, GateForecast, Plan, ReferencePlan
from pytest_inferperf.report.plan import duration, plan_lines

GATES = (
    GateForecast(gate="output_throughput", aim="tolerance 5 %", state=Foresight.ABLE, text="10 sessions: finds 4 %"),
    GateForecast(
        gate="ttft_ms.p99",
        aim="tolerance 10 %",
        state=Foresight.MISSING,
        text="b/x.json: no such file; key K",
        next_step="pytest {nodeid} --inferperf-update=new",
    ),
)
ENGINE = EnginePlan(
    name="NVFP4 llama",
    checkpoint="cached: llama-NVFP4-00",
    gpus="8 GPUs of SM 100 or later; found 8 x NVIDIA B200 (SM 100, 178 GiB)",
    load_s=84.0,
    cases=(
        CasePlan(nodeid="t.py::test_speed[a]", gates=GATES, duration_s=360.0, longest_s=2136.0),
        CasePlan(nodeid="t.py::test_own[a]", is_case=False),
    ),
)
PLAN = Plan(engines=(ENGINE,), power=0.9, past="results.json")


def test_a_plan() -> None:
    assert plan_lines(PLAN) == [
        "engine NVFP4 llama",
        "  checkpoint  cached: llama-NVFP4-00",
        "  GPUs        8 GPUs of SM 100 or later; found 8 x NVIDIA B200 (SM 100, 178 GiB)",
        "  load        about 84 s",
        "  t.py::test_speed[a]  about 6 min, 36 min if every look is needed",
        "    ok       output_throughput  tolerance 5 %   10 sessions: finds 4 %",
        "    MISSING  ttft_ms.p99        tolerance 10 %  b/x.json: no such file; key K",
        "  t.py::test_own[a]  (asserts of its own, no gates)",
        "",
        "1 case, 1 engine, 2 gates: about 7 min, by results.json",
        "1 gate has no baseline",
        "",
        "Next: pytest 't.py::test_speed[a]' --inferperf-update=new",
    ]


def test_without_past_results() -> None:
    case = replace(ENGINE.cases[0], gates=GATES[:1], duration_s=None, longest_s=None)
    engine = replace(ENGINE, load_s=None, cases=(case,))
    lines = plan_lines(replace(PLAN, engines=(engine,), past=""))
    assert "  t.py::test_speed[a]" in lines
    assert not any("load" in line for line in lines)
    assert lines[-1] == (
        "1 case, 1 engine, 1 gate: time unknown, no past result (--inferperf-past=RESULTS.json names one)"
    )


def test_time_that_is_known_in_part() -> None:
    unknown = replace(ENGINE.cases[0], nodeid="t.py::test_new[a]", gates=(), duration_s=None, longest_s=None)
    lines = plan_lines(replace(PLAN, engines=(replace(ENGINE, cases=(*ENGINE.cases, unknown)),)))
    assert "  t.py::test_new[a]  no past result, no gates" in lines
    assert (
        "2 cases, 1 engine, 2 gates: at least 7 min (1 of 3 loads and cases without a past result), by results.json"
        in lines
    )
    nothing = replace(ENGINE, load_s=None, cases=(unknown,))
    assert "1 case, 1 engine, 0 gates: time unknown, no past result" in plan_lines(replace(PLAN, engines=(nothing,)))


def test_what_does_not_run_takes_no_time_and_asks_for_nothing() -> None:
    skipped = replace(ENGINE, cases=(replace(ENGINE.cases[0], skipped="needs 8 GPUs; found no NVIDIA GPU"),))
    lines = plan_lines(replace(PLAN, engines=(ENGINE, skipped)))
    assert "  load        not opened: no test runs on this machine" in lines
    assert "  t.py::test_speed[a]  does not run here: needs 8 GPUs; found no NVIDIA GPU" in lines
    assert "2 cases, 2 engines, 4 gates: about 7 min, by results.json" in lines
    assert "1 case of them cannot run on this machine" in lines
    assert not any(line.startswith("Next:") for line in plan_lines(replace(PLAN, engines=(skipped,))))


def test_an_engine_that_cannot_be_opened() -> None:
    lines = plan_lines(replace(PLAN, engines=(replace(ENGINE, problem="no backend\nBackends: x", checkpoint=""),)))
    assert lines[1:3] == ["  ERROR       no backend", "              Backends: x"]
    assert "1 engine cannot be opened" in lines


@pytest.mark.parametrize(
    ("state", "one", "more"),
    [
        (Foresight.UNABLE, "1 gate cannot decide at its tolerance", "2 gates cannot decide at their tolerance"),
        (Foresight.UNCALIBRATED, "1 gate is uncalibrated", "2 gates are uncalibrated"),
        (
            Foresight.WEAK,
            "1 gate finds its tolerance with less than 90 % power",
            "2 gates find their tolerance with less than 90 % power",
        ),
        (Foresight.UNKNOWN, "1 gate is known only in the run", "2 gates are known only in the run"),
        (Foresight.MISSING, "1 gate has no baseline", "2 gates have no baseline"),
    ],
)
def test_counts(state: Foresight, one: str, more: str) -> None:
    gate = replace(GATES[0], state=state)
    for gates, expected in (((gate,), one), ((gate, gate), more)):
        case = replace(ENGINE.cases[0], gates=gates)
        assert plan_lines(replace(PLAN, engines=(replace(ENGINE, cases=(case,)),)))[-1] == expected


REFERENCES = (
    ReferencePlan(name="BF16 llama", label="BF16", checkpoint="used in place: /m", load_s=60.0),
    ReferencePlan(
        name="NVFP4 llama",
        label="engine_options.use_cache=false",
        checkpoint="",
        reload=True,
        python="/old/bin/python",
        problem="model ./nowhere: no such folder",
    ),
)


def test_reference_engines() -> None:
    lines = plan_lines(replace(PLAN, engines=(replace(ENGINE, references=REFERENCES),)))
    assert lines[4:11] == [
        "  reference   BF16 llama; loaded beside it, both held at once",
        "              checkpoint used in place: /m",
        "              load about 60 s",
        "  reference   NVFP4 llama, called engine_options.use_cache=false, under /old/bin/python; loaded in turns with it, "
        "never both at once",
        "              ERROR model ./nowhere: no such folder",
        "              load no past result",
        "  t.py::test_speed[a]  about 6 min, 36 min if every look is needed",
    ]
    assert "1 case, 1 engine, 2 reference engines, 2 gates: about 7 min, by results.json" in lines
    assert "1 engine cannot be opened" in lines
    untimed = plan_lines(replace(PLAN, past="", engines=(replace(ENGINE, references=REFERENCES[:1]),)))
    assert not any("load about" in line for line in untimed)


def test_what_stands_in_for_the_baselines() -> None:
    assert plan_lines(replace(PLAN, against="old.json: its sessions"))[:2] == ["against old.json: its sessions", ""]


def test_sessions_that_the_mark_asks_for() -> None:
    case = replace(ENGINE.cases[0], sessions=3)
    lines = plan_lines(replace(PLAN, engines=(replace(ENGINE, cases=(case,)),)))
    assert "  t.py::test_speed[a]  about 6 min, 3 sessions or more, 36 min if every look is needed" in lines
    untimed = plan_lines(
        replace(PLAN, past="", engines=(replace(ENGINE, cases=(replace(case, longest_s=None, duration_s=None),)),))
    )
    assert "  t.py::test_speed[a]  3 sessions or more" in untimed


def test_a_reason_of_several_lines() -> None:
    case = replace(ENGINE.cases[0], gates=(replace(GATES[0], text="bad file\nDid you mean x?"),))
    lines = plan_lines(replace(PLAN, engines=(replace(ENGINE, cases=(case,)),)))
    assert "      Did you mean x?" in lines


def test_nothing_to_plan() -> None:
    assert plan_lines(Plan(engines=(), power=0.9)) == ["nothing to plan: no test with an inferperf mark was collected"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1 s"), (8.4, "8 s"), (84.0, "84 s"), (119.6, "120 s"), (360.0, "6 min"), (7800.0, "2 h 10 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
