"""The load generator: sends the load that a plan describes, and returns what happened.

The load has three parts. Closed loop: the first `concurrency` requests are warm-up (they start all at once, which no
later ones do), then come the measured ones, and fillers keep the concurrency until the last measured request has ended.
Open loop: warm-up lasts until the first answer; of a trace every request is measured. Latencies are of measured requests; rates and the concurrency held are of
the window from the end of the warm-up to the end of the last measured request. Fillers under way are cut off then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.sse import CountTokens
from pytest_inferperf.measure.load.conductor import Conductor
from pytest_inferperf.measure.load.interrupt import Interrupt
from pytest_inferperf.measure.load.parts import Part, whole_run
from pytest_inferperf.measure.load.plan import Failure, LoadPlan, LoadRun
from pytest_inferperf.measure.load.sender import Sender
from pytest_inferperf.measure.load.supply import SizesOf, Spare, Supply, TalkOf
from pytest_inferperf.measure.progress import Live, watched

__all__ = ["Failure", "LoadPlan", "LoadRun", "run_load", "run_part"]


def run_load(
    endpoint: Endpoint,
    plan: LoadPlan,
    make_body: Callable[[int], bytes],
    *,
    sizes_of: SizesOf | None = None,
    make_spare: Spare | None = None,
    talk_of: TalkOf | None = None,
    count_tokens: CountTokens | None = None,
    live: Live | None = None,
    watch: Callable[[list[float]], None] | None = None,
) -> LoadRun:
    """Send the load that `plan` describes and return what happened; `LoadRun` is judged by `summary`.

    `make_body(i)` returns the body of request i, counted over warm-up, measured and fillers; `sizes_of(i)` says how many
    tokens its prompt has and its answer must have, where that is not `plan.osl` for all. With `make_spare` both are of
    measured requests alone, counted from 0, and it writes the others. `talk_of(i)` begins the conversation of one of them,
    whose later turns are measured too, as many as `plan.later_turns` says. `live` is shown how far
    the run is, and `watch([share])` some times a second what share of its core this process has used for what could not
    wait; it may raise to end the run. Ctrl-C ends the run and keeps what was measured. Raises `EngineError` where no connection can be opened, or the limit of open files is too low.
    """
    supply = Supply(endpoint, plan, make_body, sizes_of, make_spare, talk_of)
    conductor = Conductor(watch=watch)
    with Interrupt() as interrupt:
        part = run_part(endpoint, plan, supply, conductor, interrupt, count_tokens=count_tokens, live=live)
        return whole_run(plan, [part], interrupted=interrupt.seen)


def run_part(
    endpoint: Endpoint,
    plan: LoadPlan,
    supply: Supply,
    conductor: Conductor,
    interrupt: Interrupt,
    *,
    count_tokens: CountTokens | None = None,
    live: Live | None = None,
) -> Part:
    """Send what `supply` hands out, from this thread, until `conductor` says that the load has ended, or Ctrl-C.

    Raises `EngineError` as `run_load` does, and what `conductor` raises.
    """
    sender = Sender(endpoint, plan, supply, conductor, count_tokens)
    collecting = gc.isenabled()
    # A collection in a process that holds a large heap stops the clock for tens of milliseconds.
    gc.disable()
    try:
        with watched(lambda: str(sender.state()), live):
            return sender.run(interrupt)
    finally:
        sender.close()
        if collecting:
            gc.enable()
