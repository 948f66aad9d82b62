"""A run with everything that a page shows: made without an engine, judged and written as every run is."""

from __future__ import annotations

import random
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord, write_result_file
from pytest_inferperf.baselines.update import update
from pytest_inferperf.flips import with_flips
from pytest_inferperf.hiding import hider
from pytest_inferperf.judging import judge_case
from pytest_inferperf.measure.load.kept_records import keep_records
from pytest_inferperf.measure.load.records import MEASURED, WARMUP, Records
from pytest_inferperf.model.case import Case, EngineSpec, Task
from pytest_inferperf.model.gates import AccuracyLossCeiling, FrontierFloor, Gate, PerformanceGate
from pytest_inferperf.model.metrics import parse_metric
from pytest_inferperf.model.results import (
    AccuracyResult,
    Answered,
    CaseResult,
    EngineInfo,
    Frontier,
    Hardware,
    PerformanceResult,
    Point,
    Round,
    Session,
)
from pytest_inferperf.model.verdicts import worst
from pytest_inferperf.model.workload import Workload
from pytest_inferperf.report.page.content import Page, Where, page_of
from pytest_inferperf.report.run import run_report
from tests.values import engine_info, one_round

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
"""What a model's name and its answers may hold."""

SECRET = "hf_" + "s3cret" * 4
"""A key where people leave them: in engine options, in the environment, in a prompt, in an answer."""

SIZES = (1, 4, 16, 64)
FLOOR, CEILING = parse_metric("output_throughput_per_gpu"), parse_metric("ttft_ms.p99")
SPEED: tuple[Gate, ...] = (
    PerformanceGate(metric=FLOOR, tolerance=0.05),
    PerformanceGate(metric=CEILING, tolerance=0.10),
)
SWEEP: tuple[Gate, ...] = (
    FrontierFloor(metric=FLOOR, over=parse_metric("output_throughput_per_user"), tolerance=0.05, points=len(SIZES)),
)
ANSWERS: tuple[Gate, ...] = (AccuracyLossCeiling(reference="BF16", points=3.0),)
QUESTIONS = 400
NEEDLE = "Which river runs through Prague?"
"""The prompt of the one document that is looked for."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A run on disk, with its baselines and its past."""

    folder: Path
    records: tuple[ResultRecord, ...]

    @property
    def baselines(self) -> Path:
        """The folder of the baseline files."""
        return self.folder / "baselines"

    @property
    def results(self) -> Path:
        """The folder of earlier results."""
        return self.folder / "results"

    @property
    def file(self) -> Path:
        """The result file of the run."""
        return self.folder / "run.json"

    def page(self) -> Page:
        """Put the page together as a run does."""
        hide = hider({})
        report = run_report(self.records, created="2026-03-01T09:30:00+00:00", environment=ENVIRONMENT, hide=hide)
        return page_of(self.records, report, Where(baselines=self.baselines, history=self.results), hide=hide)


ENVIRONMENT = {"pytest": "9.2.0", "driver": "570.10", "host": "<b>node-17</b>", "launcher": f"token={SECRET}"}


def plant(folder: Path) -> Planted:
    """Write the baselines, the earlier results and the result file of a run that is slower and less right than before."""
    baselines, draws = folder / "baselines", random.Random(6)
    before = [
        judged("test_serving.py::test_throughput[NVFP4]", speed(draws, 1.0), SPEED, baselines),
        judged("test_serving.py::test_interactivity[NVFP4]", sweep(draws, {}), SWEEP, baselines),
        judged("test_answers.py::test_facts[BF16]", answers("BF16", range(360)), ANSWERS, baselines),
    ]
    plan, _ = update(baselines, before, mode="new", reason="", accept_regression=False, now="2026-02-01T08:00:00+00:00")
    assert not plan.refusals, plan.refusals
    for day in range(24):
        factor = 1.0 if day < 16 else 0.9
        then = replace(before[0], result=speed(draws, factor, commit=f"{day:012x}"))
        write_result_file(
            folder / "results" / f"{day:02}.json",
            ResultFile(created=f"2026-02-{day + 2:02}T08:00:00+00:00", environment={}, records=(then,)),
        )
    now = (
        judged(
            "test_serving.py::test_throughput[NVFP4]",
            with_requests(speed(draws, 0.9, driver="580.65")),
            SPEED,
            baselines,
        ),
        judged("test_serving.py::test_interactivity[NVFP4]", sweep(draws, {16: 0.85}), SWEEP, baselines),
        judged("test_answers.py::test_facts[NVFP4]", answers("NVFP4", range(20, 362)), ANSWERS, baselines),
        judged("test_answers.py::test_facts[BF16]", answers("BF16", range(360)), ANSWERS, baselines),
        judged(f"test_hostile.py::test[{HOSTILE}]", speed(draws, 1.0, model=HOSTILE), SPEED, baselines),
    )
    planted = Planted(folder=folder, records=now)
    write_result_file(planted.file, ResultFile(created="2026-03-01", environment=ENVIRONMENT, records=now))
    return planted


def judged(nodeid: str, result: CaseResult, gates: tuple[Gate, ...], root: Path) -> ResultRecord:
    """Judge a result as a run does."""
    verdicts = judge_case(result, gates, root=root, tolerance=0.05, alpha=0.01, nodeid=nodeid)
    return ResultRecord(
        nodeid=nodeid,
        result=with_flips(result, gates, root=root, nodeid=nodeid),
        gates=gates,
        verdicts=verdicts,
        status=worst(verdicts),
    )


def speed(
    draws: random.Random, factor: float, *, model: str = "llama-3.1-8b", driver: str = "570.10", commit: str = "c0ffee"
) -> CaseResult:
    """Return six sessions at a speed."""
    return CaseResult(
        case=Case(engine=spec(model, "NVFP4"), workload=Workload(isl=1024, osl=256, concurrency=64)),
        engine=info("NVFP4"),
        performance=sessions(draws, 64, factor),
        context={"driver": driver, "git_commit": commit, "launcher": f"token={SECRET}"},
    )


def with_requests(result: CaseResult) -> CaseResult:
    """Return it with 64 measured requests in each round, a warm-up request, and one that failed."""
    draws = random.Random(7)
    assert result.performance is not None
    rounds = []
    for item in result.performance.sessions[0].rounds:
        kept = Records()
        for number in range(66):
            due = 1.0 + number / 100
            first = due + item.metrics["ttft_ms.p50"] / 1000 * draws.lognormvariate(0, 0.2)
            last = first + 255 * item.metrics["tpot_ms.p50"] / 1000 * draws.lognormvariate(0, 0.1)
            kept.add(
                kind=WARMUP if number == 0 else MEASURED,
                ok=number != 65,
                intended=due,
                sent=due,
                first=first,
                last=last,
                done=last,
                tokens=256,
                first_tokens=1,
            )
        rounds.append(replace(item, records=keep_records(kept)))
    session = replace(result.performance.sessions[0], rounds=tuple(rounds))
    return replace(result, performance=PerformanceResult(sessions=(session, *result.performance.sessions[1:])))


def sweep(draws: random.Random, factors: Mapping[int, float]) -> CaseResult:
    """Return a sweep over the concurrency, each point at a speed of its own."""
    loads = [Workload(isl=1024, osl=256, concurrency=size) for size in SIZES]
    return CaseResult(
        case=Case(engine=spec("llama-3.1-8b", "NVFP4"), workload=replace(loads[0], swept="concurrency", sweep=SIZES)),
        engine=info("NVFP4"),
        frontier=Frontier(
            points=tuple(
                Point(workload=load, performance=sessions(draws, size, factors.get(size, 1.0)))
                for size, load in zip(SIZES, loads, strict=True)
            )
        ),
        context={"driver": "570.10"},
    )


def answers(precision: str, right: Container[int]) -> CaseResult:
    """Return the answers to every question; those in `right` are right."""
    outcomes = tuple(float(number in right) for number in range(QUESTIONS))
    texts = {
        number: Answered(
            prompt=NEEDLE if number == 7 else f"Question {number}: what is {number} + {number}? {HOSTILE}",
            expected="the Vltava" if number == 7 else str(2 * number),
            answer=str(2 * number) if number in right else f"no idea {HOSTILE} {SECRET}",
        )
        for number in range(QUESTIONS)
    }
    return CaseResult(
        case=Case(engine=spec("llama-3.1-8b", precision), task=Task(name="facts")),
        engine=info(precision),
        accuracy=AccuracyResult(
            task="facts",
            metric="exact_match",
            higher_is_better=True,
            score=sum(outcomes) / QUESTIONS,
            outcomes=outcomes,
            documents_digest="d1",
            unparseable=(False,) * QUESTIONS,
            scores={"exact_match": sum(outcomes) / QUESTIONS},
            texts=texts,
        ),
        context={"driver": "570.10"},
    )


def spec(model: str, precision: str) -> EngineSpec:
    """Return the engine that is asked for."""
    return EngineSpec(model="/models/llama", served_model_name=model, quant=precision)


def info(precision: str) -> EngineInfo:
    """Return what the engine says it is."""
    return engine_info(
        backend="tensorrt_llm",
        hardware=Hardware(name="Test GPU", count=8, kind="gpu"),
        quant_algo=None if precision == "BF16" else precision,
        kv_cache_quant_algo="FP8",
        compute_dtype="bfloat16",
        max_model_len=8192,
        checkpoint="/models/llama",
        checkpoint_hash="5f1d0c",
        options={"max_batch_size": 64, "cuda_graph": True, "env": {"HF_TOKEN": SECRET}},
        versions={"tensorrt_llm": "1.2.1", "modelopt": "0.47.0"},
        load_s=41.5,
    )


def sessions(draws: random.Random, size: int, factor: float) -> PerformanceResult:
    """Return six sessions of three rounds: the larger the batch, the more tokens for all and the fewer for each."""
    measured = []
    for _ in range(6):
        speed_of_session = draws.gauss(factor, 0.004 * factor)
        rounds = tuple(loaded_round(size, speed_of_session * draws.gauss(1.0, 0.002)) for _ in range(3))
        measured.append(Session(warmup_rounds=1, rounds=rounds))
    return PerformanceResult(sessions=tuple(measured))


def loaded_round(size: int, factor: float) -> Round:
    """Return a round at a speed."""
    per_user = 160 * factor / size**0.35
    latencies = {"ttft_ms": 18 * size**0.5, "tpot_ms": 1000 / per_user, "e2e_latency_ms": 256_000 / per_user}
    tails = {"p50": 1.0, "p90": 1.12, "p95": 1.2, "p99": 1.45}
    return one_round(
        {
            "output_throughput": size * per_user,
            "output_throughput_per_gpu": size * per_user / 8,
            "output_throughput_per_user": per_user,
            **{
                f"{name}.{at}": value * tail / factor for name, value in latencies.items() for at, tail in tails.items()
            },
        },
        duration_s=256 / per_user,
        num_requests=size,
        input_tokens=1024 * size,
        output_tokens=256 * size,
    )
