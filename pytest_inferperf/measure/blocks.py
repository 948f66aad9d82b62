"""Two engines measured side by side: A B B A blocks of rounds, added only while a verdict is open.

Both engines of a block see the same hour, the same neighbours and the same prompts, so what they share cancels in the
difference. Where both are held at once the rounds run reference, candidate, candidate, reference. Where they are not,
each block launches each engine anew for two rounds, the reference first in every other block.

A block is of one node. Where that is lost, what is without its telemetry begins again on another one, once: engines that are
held are watched from the first block to the last, and engines that take turns for two rounds each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from pytest_inferperf.engines.interface import Engine
from pytest_inferperf.errors import EngineError, InvalidRun, NodeLost
from pytest_inferperf.measure.agreement import Agreement
from pytest_inferperf.measure.interruption import ComparisonInterrupted, rounds_so_far
from pytest_inferperf.measure.progress import SILENT, Live, Progress
from pytest_inferperf.measure.session import run_round
from pytest_inferperf.measure.telemetry import Telemetry
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.measure.witness import Honesty, Witness, with_agreement
from pytest_inferperf.measure.workload import draw_requests, make_requests, vocabulary_of
from pytest_inferperf.model.case import ReferenceEngine, Workload
from pytest_inferperf.model.gates import NO_RULES, MeasureRules
from pytest_inferperf.model.results import Abba, Comparison, Round

__all__ = ["held_reference", "measure_blocks"]

Opener = Callable[[ReferenceEngine], Engine]


def measure_blocks(
    candidate: Engine,
    reference: ReferenceEngine,
    workload: Workload,
    *,
    open_reference: Opener,
    next_look: Callable[[Comparison], int | None],
    rules: MeasureRules = NO_RULES,
    progress: Progress = SILENT,
    gpu_hour_price: float = 0.0,
    honesty: Honesty | None = None,
    rounds_seen: int = 0,
    occasion: int = 0,
) -> Comparison:
    """Measure blocks until `next_look` has seen enough of them.

    Args:
        candidate: The loaded engine; loaded again when this returns or raises, also where `reference.reload` closed it.
        reference: The engine to open beside it.
        workload: Its warm-up rounds run on both engines before the first block, or with `reload` after every launch.
        open_reference: Opens the reference engine; it is closed here.
        next_look: Says how many blocks, in all, are needed next; None when the verdict stands.
        rules: What the gates of the case ask of the measurement.
        progress: Receives a line for each block, and how far its rounds are.
        gpu_hour_price: As in `run_round`.
        rounds_seen: Rounds of the workload that the candidate has answered since its launch, after those of warm-up: their
            prompts may be in its cache, and are not in that of the reference.
        occasion: How often the workload was measured on the candidate before, by other tests.
        honesty: How closely the candidate's answers are looked at: after all blocks, or with `reload` after each.

    Raises `InvalidRun` for an engine or a round whose figures cannot be trusted, `EngineError` where an engine fails or
    does not open, and `ComparisonInterrupted` on Ctrl-C, with the rounds so far.

    """
    blocks = _Blocks(
        candidate, reference, workload, open_reference, rules, progress, gpu_hour_price, honesty, rounds_seen, occasion
    )
    return blocks.measure(next_look)


@contextlib.contextmanager
def held_reference(candidate: Engine, reference: ReferenceEngine, open_reference: Opener) -> Iterator[Engine]:
    """Hold the reference engine, in the place of the candidate where both do not fit. Raises `EngineError`."""
    if not reference.reload:
        with _open_beside(reference, open_reference) as engine:
            yield engine
        return
    with _turns(candidate) as turns:
        turns.close()
        with open_reference(reference) as engine:
            yield engine


@contextlib.contextmanager
def _open_beside(reference: ReferenceEngine, open_reference: Opener) -> Iterator[Engine]:
    try:
        engine = open_reference(reference)
    except NodeLost:
        # The candidate is lost as well, and no `reload` would help.
        raise
    except EngineError as error:
        raise EngineError(
            f"the reference engine {reference.label} did not open beside the candidate: {error}\n"
            "Where two engines do not fit at once, let each block load them in turn: speedup_floor(…, reload=True), or "
            "--inferperf-against=…,reload=true"
        ) from error
    with engine:
        yield engine


class _Turns:
    """The candidate, closed while the reference has the machine."""

    def __init__(self, candidate: Engine) -> None:
        self._candidate = candidate
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._candidate.close()

    def launch(self) -> Engine:
        # What does not start once is not tried again.
        self._closed = False
        self._candidate.relaunch()
        return self._candidate

    def restore(self) -> None:
        if self._closed:
            self.launch()


@contextlib.contextmanager
def _turns(candidate: Engine) -> Iterator[_Turns]:
    """Give the candidate into the hands of the block, and have it loaded at the end: other tests share it."""
    if not candidate.can_relaunch:
        raise EngineError(
            f"reload=True launches the candidate anew, and {type(candidate).__name__} cannot be launched again. Its class "
            "has to define relaunch and can_relaunch; or leave reload out, so that both engines are held at once."
        )
    turns = _Turns(candidate)
    try:
        yield turns
    except (KeyboardInterrupt, SystemExit):
        # Nobody waits for a model to load once Ctrl-C was pressed.
        raise
    except BaseException:
        turns.restore()
        raise
    turns.restore()


class _Blocks:
    """The rounds so far, and what decides their prompts."""

    def __init__(
        self,
        candidate: Engine,
        reference: ReferenceEngine,
        workload: Workload,
        open_reference: Opener,
        rules: MeasureRules,
        progress: Progress,
        gpu_hour_price: float,
        honesty: Honesty | None,
        rounds_seen: int,
        occasion: int,
    ) -> None:
        self._candidate = candidate
        self._rules = rules
        self._reference = reference
        self._workload = workload
        self._rounds_seen, self._occasion = rounds_seen, occasion
        self._open = open_reference
        self._gpu_hour_price = gpu_hour_price
        self._progress = progress.within(f"compare with {reference.label}")
        self._live: Live | None = None
        self._honesty = honesty
        # Prompts must fit both engines; the candidate may be closed when the reference is there.
        self._vocabulary = vocabulary_of(candidate, workload)
        self._found: Comparison | None = None
        self._telemetry: list[Mapping[str, float]] = []
        self._under_way: tuple[list[Round], list[Round]] = ([], [])
        """Rounds of the block that is being measured: of the reference, and of the candidate."""

    def measure(self, next_look: Callable[[Comparison], int | None]) -> Comparison:
        try:
            found = self._measure(next_look)
        except KeyboardInterrupt:
            if self._found is None:
                raise
            part = Abba(reference=tuple(self._under_way[0]), candidate=tuple(self._under_way[1]))
            blocks = (*self._found.blocks, part) if part.reference or part.candidate else self._found.blocks
            found = replace(self._found, blocks=blocks, warmup_rounds=self._workload.warmup_rounds)
            raise ComparisonInterrupted(replace(found, telemetry=tuple(self._telemetry))) from None
        return replace(found, telemetry=tuple(self._telemetry))

    def _measure(self, next_look: Callable[[Comparison], int | None]) -> Comparison:
        if self._reference.reload:
            with _turns(self._candidate) as turns:
                return self._grow(next_look, lambda number: self._block_in_turns(turns, number))
        try:
            return self._held(next_look)
        except NodeLost:
            self._candidate.relaunch()
            self._found, self._under_way = None, ([], [])
            return self._held(next_look)

    def _held(self, next_look: Callable[[Comparison], int | None]) -> Comparison:
        with _open_beside(self._reference, self._open) as engine:
            self._meet(engine)
            for one in (engine, self._candidate):
                self._warm_up(one)
            witness = self._witness()
            with self._watched(self._candidate, engine):
                found = self._grow(next_look, lambda number: self._held_block(engine, number, witness))
            return _with_agreement(found, self._ask_again(witness))

    @contextlib.contextmanager
    def _watched(self, *engines: Engine) -> Iterator[None]:
        largest = max(engines, key=lambda one: one.watched_hardware.count)
        with largest.watch() or Telemetry(largest.watched_hardware, devices=largest.devices) as telemetry:
            yield
        self._telemetry.append(telemetry.figures)

    def _grow(self, next_look: Callable[[Comparison], int | None], block: Callable[[int], Abba]) -> Comparison:
        blocks: tuple[Abba, ...] = ()
        wanted: int | None = 1
        while wanted is not None and len(blocks) < wanted:
            of = f" of {wanted}" if wanted > 1 else ""
            words = f"block {len(blocks) + 1}{of}"
            self._progress(words)
            self._live = self._progress.within(words).live
            blocks = (*blocks, block(len(blocks)))
            self._under_way = ([], [])
            assert self._found is not None  # a block has met the reference
            found = self._found = Comparison(
                reference=self._reference,
                engine=self._found.engine,
                blocks=blocks,
                warmup_rounds=self._workload.warmup_rounds,
            )
            wanted = None if self._too_many_failed(found) else next_look(found)
        assert self._found is not None
        return self._found

    def _too_many_failed(self, found: Comparison) -> bool:
        rounds = [one for block in found.blocks for one in (*block.reference, *block.candidate)]
        return found.num_failed_requests > self._rules.max_failed_share * sum(one.num_requests for one in rounds)

    def _witness(self) -> Witness | None:
        return Witness(self._honesty, seed=self._workload.seed) if self._honesty is not None else None

    def _ask_again(self, witness: Witness | None) -> Agreement | None:
        """Ask the candidate again for some of what it answered, while it is still the one that answered."""
        return witness.ask_again(self._candidate) if witness is not None else None

    def _held_block(self, reference: Engine, number: int, witness: Witness | None) -> Abba:
        first, second = self._rounds(number)
        a1 = self._measured(reference, first)
        b1, b2 = (self._measured(self._candidate, index, witness) for index in (first, second))
        a2 = self._measured(reference, second)
        return Abba(reference=(a1, a2), candidate=(b1, b2))

    def _block_in_turns(self, turns: _Turns, number: int) -> Abba:
        before = len(self._telemetry)
        try:
            return self._reloaded_block(turns, number)
        except NodeLost:
            del self._telemetry[before:]
            self._under_way = ([], [])
            # Whichever of the two is launched first goes on elsewhere, and the other one with it.
            return self._reloaded_block(turns, number)

    def _reloaded_block(self, turns: _Turns, number: int) -> Abba:
        sides = [self._fresh_reference, self._fresh_candidate]
        if number % 2:
            sides.reverse()
        one = sides[0](turns, number)
        where = self._candidate.where
        other = sides[1](turns, number)
        if self._candidate.where != where:
            raise NodeLost(f"{where} was lost between the two sides of a block")
        reference, candidate = (other, one) if number % 2 else (one, other)
        return Abba(reference=reference, candidate=candidate)

    def _fresh_candidate(self, turns: _Turns, number: int) -> tuple[Round, ...]:
        engine = turns.launch()
        reason = check_engine(engine.spec, engine.info)
        if reason:
            raise InvalidRun(reason)
        witness = self._witness()
        rounds = self._two_rounds(engine, number, witness)
        return with_agreement(rounds, self._ask_again(witness))

    def _fresh_reference(self, turns: _Turns, number: int) -> tuple[Round, ...]:
        turns.close()
        with self._open(self._reference) as engine:
            self._meet(engine)
            return self._two_rounds(engine, number)

    def _two_rounds(self, engine: Engine, number: int, witness: Witness | None = None) -> tuple[Round, ...]:
        self._warm_up(engine)
        with self._watched(engine):
            return tuple(self._measured(engine, index, witness) for index in self._rounds(number))

    def _measured(self, engine: Engine, index: int, witness: Witness | None = None) -> Round:
        """Run a round that counts, and keep it beside the others of its block."""
        mine = self._under_way[engine is self._candidate]
        try:
            mine.append(self._round(engine, index, witness))
        except KeyboardInterrupt as error:
            mine += rounds_so_far(error)
            raise
        return mine[-1]

    def _rounds(self, number: int) -> tuple[int, int]:
        first = self._workload.warmup_rounds + self._rounds_seen + 2 * number
        return first, first + 1

    def _meet(self, engine: Engine) -> None:
        """Check the reference as the candidate was checked, and let it narrow the prompts to what both can read."""
        reason = check_engine(self._reference.spec, engine.info)
        if reason:
            raise InvalidRun(f"the reference {self._reference.label}: {reason}")
        if self._found is None:
            known = set(vocabulary_of(engine, self._workload))
            self._vocabulary = [token for token in self._vocabulary if token in known]
            self._found = Comparison(reference=self._reference, engine=engine.info)

    def _warm_up(self, engine: Engine) -> None:
        engine.forget_peak_memory()
        for index in range(self._workload.warmup_rounds):
            self._round(engine, index)

    def _round(self, engine: Engine, index: int, witness: Witness | None = None) -> Round:
        requests = (
            make_requests(engine, self._workload, round_index=index)
            if self._workload.dataset
            else draw_requests(self._vocabulary, self._workload, round_index=index)
        )
        return run_round(
            engine,
            self._workload,
            requests,
            round_index=index,
            rules=self._rules,
            gpu_hour_price=self._gpu_hour_price,
            witness=witness,
            live=self._live,
            occasion=self._occasion,
        )


def _with_agreement(found: Comparison, agreement: Agreement | None) -> Comparison:
    """Put the agreement of the candidate into the last of its rounds."""
    if not found.blocks:
        return found
    last = replace(found.blocks[-1], candidate=with_agreement(found.blocks[-1].candidate, agreement))
    return replace(found, blocks=(*found.blocks[:-1], last))
