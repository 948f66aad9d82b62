"""Interleaved blocks: order, prompts, launches, and what must not be compared. No real clock is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.errors import EngineError, InvalidRun
from pytest_inferperf.measure import blocks
from pytest_inferperf.measure.blocks import held_reference, measure_blocks
from pytest_inferperf.measure.interruption import ComparisonInterrupted
from pytest_inferperf.measure.progress import Progress
from pytest_inferperf.model.case import EngineSpec, ReferenceEngine, Workload
from pytest_inferperf.model.results import Comparison, Hardware
from tests.values import engine_info

INFO = engine_info(max_model_len=100)
CANDIDATE = EngineSpec(model="m", served_model_name="m", engine_options=(("use_cache", True),))
REFERENCE = ReferenceEngine(
    label="engine_options.use_cache=false", spec=replace(CANDIDATE, engine_options=(("use_cache", False),))
)
WORKLOAD = Workload(isl=4, osl=3, concurrency=2, rounds=1, warmup_rounds=1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0


class FakeEngine(Engine):
    """Takes `round_s` of the fake clock for a round, and logs what happens to it."""

    prefix_token_id = 1
    eos_token_id = 2
    vocab_size = 50
    special_token_ids = frozenset({1, 2})
    can_relaunch = True

    def __init__(self, world: World, name: str, spec: EngineSpec, round_s: float) -> None:
        self.world = world
        self.name = name
        self.spec = spec
        self.info = INFO
        self.round_s = round_s
        self.loaded = True
        self.failure: BaseException | None = None
        self.failing_requests = 0
        world.log.append(f"open {name}")

    def clock_s(self) -> float:
        return self.world.clock.now_s

    def relaunch(self) -> None:
        self.loaded = True
        self.world.log.append(f"launch {self.name}")

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        assert self.loaded
        self.world.log.append(f"round {self.name}")
        self.world.asked.append((self.name, [request.prompt for request in requests]))
        if self.failure is not None:
            raise self.failure
        self.world.clock.now_s += self.round_s
        return [
            Generation(
                token_ids=(7,) * (0 if index < self.failing_requests else request.max_tokens),
                text="",
                finish_reason="length",
                prompt_tokens=len(request.prompt),
                token_times_s=()
                if index < self.failing_requests
                else tuple(0.1 * (step + 1) for step in range(request.max_tokens)),
            )
            for index, request in enumerate(requests)
        ]

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        raise NotImplementedError

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        raise NotImplementedError

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        raise NotImplementedError

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        raise NotImplementedError

    def peak_memory_bytes(self) -> int:
        return 2**30

    def close(self) -> None:
        if self.loaded:
            self.loaded = False
            self.world.log.append(f"close {self.name}")


@dataclass
class World:
    """A candidate that is open, and a reference that can be opened."""

    clock: Clock
    prepare: Callable[[FakeEngine], None] = lambda engine: None

    def __post_init__(self) -> None:
        self.log: list[str] = []
        self.asked: list[tuple[str, list[tuple[int, ...]]]] = []
        self.opened: list[FakeEngine] = []
        self.candidate = FakeEngine(self, "B", CANDIDATE, 1.0)
        self.log.clear()

    def open(self, reference: ReferenceEngine) -> Engine:
        engine = FakeEngine(self, "A", reference.spec, 2.0)
        self.opened.append(engine)
        self.prepare(engine)
        return engine

    def measure(
        self, count: int = 1, *, reload: bool = False, workload: Workload = WORKLOAD, rounds_seen: int = 0
    ) -> Comparison:
        return measure_blocks(
            self.candidate,
            replace(REFERENCE, reload=reload),
            workload,
            open_reference=self.open,
            next_look=lambda found: count if len(found.blocks) < count else None,
            rounds_seen=rounds_seen,
        )


@pytest.fixture
def world() -> World:
    return World(Clock())


def test_rounds_run_a_b_b_a_after_a_warm_up_of_both(world: World) -> None:
    found = world.measure(2)
    block = ["round A", "round B", "round B", "round A"]
    assert world.log == ["open A", "round A", "round B", *block, *block, "close A"]
    assert world.candidate.loaded
    assert (len(found.blocks), found.warmup_rounds, found.engine) == (2, 1, INFO)
    for item in found.blocks:
        assert [one.duration_s for one in item.reference] == [2.0, 2.0]
        assert [one.duration_s for one in item.candidate] == [1.0, 1.0]
        assert item.candidate[0].metrics["output_throughput"] == 6.0


def test_both_engines_get_the_same_prompts_and_every_block_new_ones(world: World) -> None:
    world.measure(2)
    warm = world.asked[:2]
    assert warm[0][1] == warm[1][1]
    seen = []
    for start in (2, 6):
        a1, b1, b2, a2 = (prompts for _, prompts in world.asked[start : start + 4])
        assert a1 == b1
        assert a2 == b2
        seen += [a1, a2]
    prompts = [prompt for group in (warm[0][1], *seen) for prompt in group]
    assert len(set(prompts)) == len(prompts) == 10


def test_blocks_have_no_prompt_that_the_candidate_has_answered_since_its_launch(world: World) -> None:
    """Its cache would answer them faster than the reference can."""
    world.measure(2)
    seen = {prompt for _, prompts in world.asked[2:] for prompt in prompts}
    world.asked.clear()
    world.measure(2, rounds_seen=4)
    assert not seen & {prompt for _, prompts in world.asked[2:] for prompt in prompts}


def test_prompts_hold_only_tokens_that_both_engines_know(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.vocab_size, engine.special_token_ids = 9, frozenset({3})

    world.prepare = prepare
    world.measure()
    tokens = {token for _, prompts in world.asked for prompt in prompts for token in prompt}
    assert tokens <= {0, 4, 5, 6, 7, 8}


def test_reload_launches_each_engine_anew_for_every_block(world: World) -> None:
    found = world.measure(3, reload=True)
    a = ["open A", "round A", "round A", "round A", "close A"]
    b = ["launch B", "round B", "round B", "round B"]
    assert world.log == ["close B", *a, *b, *b, "close B", *a, *a, *b]
    assert found.reference.reload
    assert [len(session.rounds) for session in found.candidate.sessions] == [2, 2, 2]
    assert world.candidate.loaded


def test_reload_hands_the_candidate_back_loaded(world: World) -> None:
    world.measure(2, reload=True)
    assert world.log[-2:] == ["close A", "launch B"]
    assert world.candidate.loaded


def test_never_two_engines_at_once_with_reload(world: World) -> None:
    def alone(engine: FakeEngine) -> None:
        assert not world.candidate.loaded

    world.prepare = alone
    world.measure(4, reload=True)
    assert len(world.opened) == 4


def test_held_reference_counts_as_one_session(world: World) -> None:
    found = world.measure(3)
    assert [len(session.rounds) for session in found.candidate.sessions] == [6]


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("failure", [EngineError("died"), KeyboardInterrupt(), ValueError("a bug")])
def test_the_reference_is_closed_whatever_happens(world: World, reload: bool, failure: BaseException) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.failure = failure

    world.prepare = prepare
    with pytest.raises(type(failure)):
        world.measure(2, reload=reload)
    assert not any(engine.loaded for engine in world.opened)
    # Other tests share the candidate, but after Ctrl-C none is run.
    assert world.candidate.loaded is not (reload and isinstance(failure, KeyboardInterrupt))


def test_a_failing_candidate_closes_the_reference(world: World) -> None:
    world.candidate.failure = EngineError("died")
    with pytest.raises(EngineError, match="died"):
        world.measure(2)
    assert not world.opened[0].loaded


def test_a_reference_that_does_not_open_names_reload(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        raise EngineError("out of memory")

    world.prepare = prepare
    with pytest.raises(EngineError) as caught:
        world.measure()
    assert str(caught.value) == (
        "the reference engine engine_options.use_cache=false did not open beside the candidate: out of memory\n"
        "Where two engines do not fit at once, let each block load them in turn: speedup_floor(…, reload=True), or "
        "--inferperf-against=…,reload=true"
    )


def test_reload_needs_an_engine_that_can_be_launched_again(world: World) -> None:
    class OnceOnly(FakeEngine):
        can_relaunch = False

    world.candidate = OnceOnly(world, "B", CANDIDATE, 1.0)
    world.log.clear()
    with pytest.raises(EngineError, match="reload=True launches the candidate anew, and OnceOnly cannot be"):
        world.measure(reload=True)
    assert world.log == []


def test_another_engine_than_the_one_asked_for_is_invalid(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.info = replace(INFO, quant_algo="FP8")

    world.prepare = prepare
    with pytest.raises(InvalidRun, match=r"^the reference engine_options.use_cache=false: the engine runs FP8 where"):
        world.measure()


def test_a_workload_that_does_not_fit_the_reference_is_invalid(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.info = replace(INFO, max_model_len=5)

    world.prepare = prepare
    with pytest.raises(InvalidRun, match="do not fit the engine's context of 5 tokens"):
        world.measure()


def test_no_block_is_added_to_failed_requests(world: World) -> None:
    def prepare(engine: FakeEngine) -> None:
        engine.failing_requests = 1

    world.prepare = prepare
    found = world.measure(10)
    assert (len(found.blocks), found.num_failed_requests) == (1, 2)


@pytest.mark.parametrize(("reload", "stretches"), [(False, 1), (True, 4)])
def test_the_machine_is_watched_while_rounds_are_measured(
    world: World, monkeypatch: pytest.MonkeyPatch, reload: bool, stretches: int
) -> None:
    """Not while an engine loads or warms up: an idle GPU has a low clock."""

    class Watch:
        def __init__(self, hardware: Hardware, *, devices: Sequence[str]) -> None:
            self.figures = {"cpu.others": float(hardware.count)}

        def __enter__(self) -> Watch:
            world.log.append("watch")
            return self

        def __exit__(self, *_: object) -> None:
            world.log.append("stop")

    monkeypatch.setattr(blocks, "Telemetry", Watch)
    found = world.measure(2, reload=reload)
    assert found.telemetry == ({"cpu.others": 2.0},) * stretches
    text = " ".join(world.log)
    warm, watched = text.split("watch ", 1)
    assert warm.endswith("round A " if reload else "round A round B ")
    assert watched.startswith("round A round A stop" if reload else "round A round B round B round A round A")


@pytest.mark.parametrize(
    ("reload", "call", "sides"),
    [
        # Warm-up, then A B B A and A B; with reload A A B B, and B of the next block, which is the candidate's turn.
        (False, 5, [(2, 2), (1, 1)]),
        (False, 2, [(1, 0)]),
        (False, 1, []),
        (True, 6, [(2, 2), (0, 1)]),
        (True, 2, [(2, 0)]),
    ],
)
def test_ctrl_c_brings_the_rounds_so_far(
    world: World, monkeypatch: pytest.MonkeyPatch, reload: bool, call: int, sides: list[tuple[int, int]]
) -> None:
    answer, calls = world.candidate.generate, itertools.count(1)

    def generate(requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        if next(calls) == call:
            raise KeyboardInterrupt
        return answer(requests, concurrency=concurrency)

    monkeypatch.setattr(world.candidate, "generate", generate)
    with pytest.raises(ComparisonInterrupted) as raised:
        world.measure(3, reload=reload)
    found = raised.value.found
    assert [(len(block.reference), len(block.candidate)) for block in found.blocks] == sides
    assert found.warmup_rounds == 1
    assert not world.opened[-1].loaded


def test_ctrl_c_before_the_engines_have_met_brings_nothing(world: World) -> None:
    def refuse(reference: ReferenceEngine) -> Engine:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        measure_blocks(world.candidate, REFERENCE, WORKLOAD, open_reference=refuse, next_look=lambda _found: None)
    assert not isinstance(raised.value, ComparisonInterrupted)


def test_looks_are_asked_for_after_every_block(world: World) -> None:
    seen = []

    def next_look(found: Comparison) -> int | None:
        seen.append(len(found.blocks))
        return 3 if len(found.blocks) < 3 else None

    lines: list[str] = []
    measure_blocks(
        world.candidate,
        REFERENCE,
        WORKLOAD,
        open_reference=world.open,
        next_look=next_look,
        progress=Progress(lines.append),
    )
    assert seen == [1, 2, 3]
    assert lines[1] == "compare with engine_options.use_cache=false: block 2 of 3"


def test_a_held_reference_takes_turns_with_the_candidate(world: World) -> None:
    with held_reference(world.candidate, replace(REFERENCE, reload=True), world.open) as engine:
        assert engine is world.opened[0]
        assert not world.candidate.loaded
    assert world.log == ["close B", "open A", "close A", "launch B"]
