"""The books of a run: which part of the load each request was, what came of it, and what the window holds."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import sub

from pytest_inferperf.engines.openai.connection import ConnectionFailed
from pytest_inferperf.engines.openai.http import HttpError
from pytest_inferperf.engines.openai.late import LateReader
from pytest_inferperf.engines.openai.sse import CountTokens, Decoded, StreamError, decode_stream
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.measure.load.outputs import OutputSample
from pytest_inferperf.measure.load.plan import Failure
from pytest_inferperf.measure.load.records import MEASURED, Records, Sample
from pytest_inferperf.measure.load.slots import Request

__all__ = ["Accounts", "in_window"]


class Accounts:
    """What came of the requests of a run, read from their responses when the generator has time for it."""

    def __init__(self, *, count_tokens: CountTokens | None, kept: int = 0) -> None:
        self._count_tokens = count_tokens
        self.records = Records()
        self.outputs = OutputSample(kept)
        self.itl_ms, self.chunk_gap_ms = Sample(), Sample()
        self.failures: dict[str, Failure] = {}
        self.sources: dict[str, int] = {}
        self.cached_tokens = 0
        self.tokens = 0
        """Output tokens of all answers, warm-up and fillers too."""

    def read(self, request: Request, reader: LateReader, done: float, error: ConnectionFailed | None) -> None:
        """Read a response that ended at `done`, or did not come because of `error`, and keep what it says."""
        kind = request.kind
        turn = 0 if request.talk is None else request.turn + 1
        try:
            if error is not None:
                raise StreamError(error.cause, str(error))
            found = self._decode(reader, request.osl)
        except StreamError as problem:
            if kind == MEASURED:
                failure = self.failures.setdefault(problem.cause, Failure())
                failure.count += 1
                failure.example = failure.example or str(problem)
            # Under closed loop a request is due when it is sent, and one that got no connection never was.
            self.records.add(
                kind=kind,
                ok=False,
                intended=request.intended or done,
                sent=request.sent,
                done=done,
                turn=turn,
                number=request.number,
            )
            return
        times, tokens = found.times, found.tokens
        self.tokens += found.num_tokens
        if kind == MEASURED:
            # An array, because one is copied to another at once.
            gaps = array("d", [1000 * gap for gap in map(sub, times[1:], times)])
            self.chunk_gap_ms.extend(gaps)
            if found.num_tokens == len(times):
                self.itl_ms.extend(gaps)
            else:
                self.itl_ms.extend(
                    gap / count for gap, count in zip(gaps, tokens[1:], strict=True) for _ in range(count)
                )
            self.outputs.offer(request.payload, found)
            self.cached_tokens += found.cached_tokens
            self.sources[found.source] = self.sources.get(found.source, 0) + 1
        self.records.add(
            kind=kind,
            ok=True,
            intended=request.intended,
            sent=request.sent,
            first=times[0],
            last=times[-1],
            done=done,
            tokens=found.num_tokens,
            first_tokens=tokens[0],
            prompt_tokens=-1 if found.prompt_tokens is None else found.prompt_tokens,
            asked_prompt=request.isl,
            turn=turn,
            number=request.number,
        )

    def answer(self, reader: LateReader, osl: int) -> Decoded | None:
        """Return the answer in a response that has ended; None where it is none, which `read` counts."""
        try:
            return self._decode(reader, osl)
        except StreamError:
            return None

    def unasked(self, count: int, now: float, *, after: int, number: int) -> None:
        """Count later turns of conversation `number` that nobody could ask, since turn `after` (from 1) failed."""
        if not count:
            return
        failure = self.failures.setdefault("unasked", Failure())
        failure.count += count
        failure.example = failure.example or "the turn before it in the conversation failed"
        for turn in range(after + 1, after + count + 1):
            self.records.add(kind=MEASURED, ok=False, intended=now, sent=0.0, done=now, turn=turn, number=number)

    def _decode(self, reader: LateReader, osl: int) -> Decoded:
        """Read the answer in a response. Raises `StreamError` for anything but a whole one of the length asked for."""
        try:
            reader.finish()
        except HttpError as error:
            raise StreamError("malformed", str(error)) from None
        if reader.status != 200:
            body = excerpt(b"".join(reader.pieces), 200).strip()
            raise StreamError(f"http_{reader.status}", f"HTTP {reader.status}: {body}")
        kind = reader.headers.get(b"content-type", b"")
        if kind and not kind.lower().startswith(b"text/event-stream"):
            raise StreamError("not_openai", f"the answer is {kind.decode(errors='replace')}, not an event stream")
        found = decode_stream(reader.pieces, reader.times, count_tokens=self._count_tokens)
        if found.num_tokens != osl:
            how = "" if found.source == "usage" else f" (counted by {found.source}: the server sent no usage)"
            raise StreamError("osl", f"{found.num_tokens} tokens came where {osl} were asked for{how}")
        return found


def in_window(records: Records, flying: Sequence[float], start: float, stop: float) -> tuple[float, float, float]:
    """Return for a window the requests in flight, in the mean, the requests with success, and their tokens.

    `flying` holds when the requests that were cut off at `stop` had been sent; each counts for as much of a request as
    it had time, next to the mean request, and for one at most.
    """
    import numpy as np

    duration = stop - start
    if duration <= 0:
        return 0.0, 0.0, 0.0
    columns = records.columns()
    sent, done, good = columns["sent"], columns["done"], columns["ok"]
    # A request that never got a connection was not sent.
    sent = np.where(sent > 0, sent, done)
    inside = np.clip(np.minimum(done, stop) - np.maximum(sent, start), 0.0, None)
    cut = np.array([stop - max(start, began) for began in flying])
    held = (float(inside.sum()) + float(cut.sum())) / duration
    spans = (done - sent)[good]
    shares = inside[good] / np.maximum(spans, 1e-9)
    # A request that hangs is no more than one.
    rest = float(np.minimum(cut / spans.mean(), 1.0).sum()) if len(spans) and spans.mean() > 0 else 0.0
    tokens = columns["tokens"][good]
    requests = float(shares.sum()) + rest
    return held, requests, float((shares * tokens).sum()) + (rest * float(tokens.mean()) if len(tokens) else 0.0)
