"""The longest first, as values: how long a test takes by its result, and who gets which."""

from __future__ import annotations

from pytest_inferperf.baselines.past import Past, Took, took
from pytest_inferperf.baselines.result_file import ResultFile, ResultRecord
from pytest_inferperf.model.case import Case, EngineSpec, ReferenceEngine, Task, Workload
from pytest_inferperf.model.results import AccuracyResult, CaseResult, Comparison, PerformanceResult, Session
from pytest_inferperf.planning.order import Waiting, end_of, expected, next_of
from tests.values import engine_info, one_round

LLAMA = EngineSpec(model="m", served_model_name="llama")
ENGINE = engine_info(load_s=60.0)


def rounds(count: int, seconds: float, warmup: int = 0) -> Session:
    return Session(rounds=tuple(one_round({}, duration_s=seconds) for _ in range(count)), warmup_rounds=warmup)


def measured(*sessions: Session) -> CaseResult:
    case = Case(engine=LLAMA, workload=Workload(isl=8, osl=8))
    return CaseResult(case=case, engine=ENGINE, performance=PerformanceResult(sessions=sessions))


def answered(seconds: float) -> AccuracyResult:
    return AccuracyResult(
        task="t",
        metric="acc",
        higher_is_better=True,
        score=1.0,
        outcomes=(1.0,),
        documents_digest="d",
        duration_s=seconds,
    )


def waiting(*rows: tuple[str, str, str]) -> list[Waiting]:
    return [Waiting(nodeid=nodeid, engine=engine, kind=kind) for nodeid, engine, kind in rows]


def quick(seconds: float) -> Took:
    return Took(load_s=0.0, work_s=seconds)


def test_a_measurement_takes_its_rounds_and_a_load_for_each_session() -> None:
    # Two warm-up rounds beside four of 10 s; the second session is a launch of its own.
    found = took(measured(rounds(4, 10.0, warmup=2), rounds(4, 10.0, warmup=2)))
    assert found == Took(load_s=60.0, work_s=120.0 + 60.0)
    assert found.total_s == 240.0


def test_an_evaluation_takes_its_answers_and_those_of_its_reference() -> None:
    reference = ReferenceEngine(label="BF16", spec=LLAMA)
    compared = Comparison(reference=reference, engine=ENGINE, accuracy=answered(100.0))
    case = Case(engine=LLAMA, task=Task(name="t"))
    result = CaseResult(case=case, engine=ENGINE, accuracy=answered(300.0), comparisons=(compared,))
    assert took(result) == Took(load_s=60.0, work_s=300.0 + 60.0 + 100.0)


def test_what_counts_is_the_last_run_that_was_not_cut_short() -> None:
    def file(created: str, seconds: float, invalid: str = "") -> ResultFile:
        case = Case(engine=LLAMA, task=Task(name="t"))
        result = CaseResult(case=case, engine=ENGINE, accuracy=answered(seconds), invalid=invalid)
        return ResultFile(created=created, environment={}, records=(ResultRecord(nodeid="t", result=result),))

    past = Past([file("2026-01-01", 10.0), file("2026-01-03", 1.0, invalid="throttled"), file("2026-01-02", 20.0)])
    assert past.took == {"t": Took(load_s=60.0, work_s=20.0)}


def test_an_unknown_test_takes_as_long_as_the_longest_of_its_kind() -> None:
    tests = waiting(
        ("a", "1", "speed"), ("b", "1", "speed"), ("c", "1", "task"), ("new", "2", "speed"), ("x", "2", "y")
    )
    past = {"a": quick(10), "b": quick(30), "c": quick(90)}
    assert [item.work_s for item in expected(tests, past)] == [10, 30, 90, 30, 90]


def test_a_worker_is_promised_what_it_would_take_once_it_is_free() -> None:
    free_s = {"early": 10.0, "late": 100.0}
    assert next_of("early", free_s, [80.0, 70.0, 5.0]) == 0
    # At 90 s the other takes the second, and the third is left.
    assert next_of("late", free_s, [80.0, 70.0, 5.0]) == 2


def test_a_worker_that_comes_too_late_for_all_of_it_is_promised_nothing() -> None:
    assert next_of("late", {"early": 0.0, "late": 100.0}, [40.0, 40.0]) is None
    assert next_of("late", {"late": 100.0}, [40.0, 40.0]) == 0


def test_of_tests_that_take_no_time_everybody_gets_some() -> None:
    free_s = {"a": 0.0, "b": 0.0}
    assert [next_of(one, free_s, [0.0, 0.0]) for one in free_s] == [0, 1]


def test_a_run_ends_with_whoever_is_free_last() -> None:
    # At 5 s one begins 20 s, at 10 s the other begins 3 s.
    assert end_of([10.0, 5.0], [20.0, 3.0]) == 25.0
    assert end_of([], [3.0]) == 3.0
