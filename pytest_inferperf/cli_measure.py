"""One workload, sent once to a server that runs already: what `inferperf measure` does between its options and its output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_inferperf.errors import InvalidRun, SettingsError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.limits import LIMITS
from pytest_inferperf.model.workload import Workload

if TYPE_CHECKING:
    from pytest_inferperf.cluster.connection import Connection
    from pytest_inferperf.engines.interface import Engine, Serving
    from pytest_inferperf.engines.load_hosts import LoadHosts
    from pytest_inferperf.measure.agreement import Agreement
    from pytest_inferperf.measure.load.generator import LoadRun
    from pytest_inferperf.measure.progress import Live

__all__ = ["Measured", "check_measure", "measure_once"]

_LEAST_VOCABULARY = 20
_OTHER_SEED = 1_000_003
"""From one attempt at a load to the next: those that are given up have sent their prompts."""

_PLACES_S = 600.0
"""Time in which a cluster must have room for the hosts of a load."""

_INI_ADVICE = ", or set inferperf_"
"""How a message that ends in advice about ini settings goes on: there are none here."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a run."""

    run: LoadRun
    isl: int
    """Mean length of the prompts where the server does not count them, tokens."""

    invalid: str
    """Why it must not be judged; "" where it can be."""

    agreement: Agreement | None = None
    """How some of the answers compare with those at concurrency 1; None where none was asked for again."""


def check_measure(arguments: argparse.Namespace) -> None:
    """Refuse values that no run could have. Raises `SettingsError`."""
    size = arguments.vocab_size
    if size is not None and size < _LEAST_VOCABULARY:
        raise SettingsError(f"--vocab-size {size}: must be at least {_LEAST_VOCABULARY} tokens.")
    if arguments.compare < 0:
        raise SettingsError(f"--compare {arguments.compare}: must be at least 0.")
    if arguments.audit and not arguments.compare:
        raise SettingsError("--audit repeats prompts whose answers were kept for --compare, which is 0.")
    if arguments.retries < 0:
        raise SettingsError(f"--retries {arguments.retries}: must be at least 0.")
    if arguments.processes is not None and arguments.processes < 1:
        raise SettingsError(f"--processes {arguments.processes}: must be at least 1.")
    _check_hosts(arguments)
    if not arguments.timeout > 0:
        raise SettingsError(f"--timeout {arguments.timeout:g}: must be above 0 seconds.")


def _check_hosts(arguments: argparse.Namespace) -> None:
    if arguments.ray is not None:
        from pytest_inferperf.cluster.connection import check_address

        check_address(arguments.ray, option="--ray")
    if arguments.hosts is None:
        return
    if arguments.ray is None:
        raise SettingsError(f"--hosts {arguments.hosts}: they are nodes of a Ray cluster; say which: --ray=auto.")
    if arguments.hosts < 1:
        raise SettingsError(f"--hosts {arguments.hosts}: must be at least 1.")


def measure_once(arguments: argparse.Namespace, workload: Workload, *, live: Live | None = None) -> Measured:
    """Send the workload once, and look at some of the answers again. `live` is shown how far the load is.

    Raises `EngineError` where the server cannot be asked, `InvalidRun` where a request does not fit, and `SettingsError`.
    """
    from pytest_inferperf.engines.openai.connecting import open_url
    from pytest_inferperf.measure.serving import serving_of

    spec = EngineSpec(
        model=arguments.model,
        served_model_name=arguments.model,
        backend="openai",
        url=arguments.url,
        api_key_env=arguments.api_key_env,
        engine_options=tuple(_engine_options(arguments).items()),
    )
    with open_url(spec, timeout_s=arguments.timeout) as engine, _load_hosts(arguments) as hosts:
        serving = serving_of(engine, workload)
        assert serving is not None
        # A seed that is given repeats a run, prompts and all.
        serving = replace(serving, fresh_prompts=arguments.seed is None, hosts=hosts)
        found = _with_more(_send(arguments, workload, engine, serving, live))
        return _look_again(arguments, workload, engine, found) if not found.invalid and arguments.compare else found


@contextmanager
def _load_hosts(arguments: argparse.Namespace) -> Iterator[LoadHosts | None]:
    """Hold the hosts of `--ray`, which is connected to once they are needed; None without it."""
    if arguments.ray is None:
        yield None
        return
    from pytest_inferperf.cluster.connection import connect
    from pytest_inferperf.cluster.load_hosts import ClusterLoadHosts

    with ExitStack() as stack:

        @cache
        def connection() -> Connection:
            found = connect(arguments.ray)
            stack.callback(found.close)
            return found

        hosts = ClusterLoadHosts(connection, wanted=arguments.hosts or 0, timeout_s=_PLACES_S)
        stack.callback(hosts.close)
        yield hosts


def _engine_options(arguments: argparse.Namespace) -> dict[str, str]:
    options = {"ca_file": arguments.ca_file, "request_model": arguments.model, "tokenizer": arguments.tokenizer}
    return {name: value for name, value in options.items() if value}


def _send(
    arguments: argparse.Namespace,
    workload: Workload,
    engine: Engine,
    serving: Serving,
    live: Live | None,
) -> Measured:
    from pytest_inferperf.measure.load.rounds import send_round
    from pytest_inferperf.measure.workload import draw_requests, make_requests, vocabulary_of

    vocabulary = vocabulary_of(engine, workload)
    if arguments.vocab_size is not None:
        vocabulary = list(range(arguments.vocab_size // 10, arguments.vocab_size))
    if _is_plain(workload, serving):
        return _send_plain(arguments, workload, serving, len(vocabulary) + vocabulary[0], live)
    requests = (
        make_requests(engine, workload, round_index=0)
        if workload.dataset
        else draw_requests(vocabulary, workload, round_index=0)
    )
    sent = send_round(
        serving,
        workload,
        requests,
        kept=arguments.compare,
        timeout_s=arguments.timeout,
        retries=arguments.retries,
        processes=arguments.processes,
        live=live,
    )
    return Measured(run=sent.run, isl=sent.isl, invalid=sent.check(max_failed_share=arguments.allow_failed))


def _with_more(found: Measured) -> Measured:
    """Say how more processes are asked for where one had too much to do, and there was none that could be had unasked."""
    more = 2 * max(1, len(found.run.clocks))
    if "client-bound: " not in found.invalid or found.run.hosts or more > found.run.plan.most_parts:
        return found
    return replace(
        found,
        invalid=f"{found.invalid} Where there are cores for more processes, write --processes {more}; on other machines, "
        "--ray ADDRESS --hosts N.",
    )


def _is_plain(workload: Workload, serving: Serving) -> bool:
    """Whether prompts can be written while the run goes on, as many as there may be, none of them kept."""
    from pytest_inferperf.engines.interface import GenerationRequest

    fixed = all(isinstance(value, int) and value for value in (workload.isl, workload.osl))
    if not fixed or workload.shared_prefix or serving.encode is not None:
        return False
    request = GenerationRequest(prompt=(1,), max_tokens=1, ignore_eos=True)
    theirs: dict[str, Any] = json.loads(serving.body(request))
    ours: dict[str, Any] = json.loads(serving.endpoint.body("a" if serving.endpoint.chat else [1], osl=1))
    # A server of another dialect is asked in its own.
    return theirs.keys() == ours.keys() and type(theirs.get("prompt")) is type(ours.get("prompt"))


def _send_plain(
    arguments: argparse.Namespace, workload: Workload, serving: Serving, vocab_size: int, live: Live | None
) -> Measured:
    from pytest_inferperf.measure.load.plan import LoadPlan
    from pytest_inferperf.measure.load.prompts import SyntheticBodies
    from pytest_inferperf.measure.load.rounds import arrivals_of
    from pytest_inferperf.measure.load.spread import spread_load
    from pytest_inferperf.measure.load.summary import check_load

    isl, osl = workload.input_lengths.largest, workload.output_lengths.largest
    plan = LoadPlan(
        num_requests=workload.requests_per_round,
        osl=osl,
        concurrency=workload.concurrency,
        arrivals=arrivals_of(workload, 0),
        timeout_s=arguments.timeout,
        retries=arguments.retries,
        kept=arguments.compare,
    )

    def write(attempt: int) -> SyntheticBodies:
        seed = workload.seed + _OTHER_SEED * attempt
        return SyntheticBodies(serving.endpoint, isl=isl, osl=osl, seed=seed, vocab_size=vocab_size)

    run = spread_load(serving.endpoint, plan, write, processes=arguments.processes, hosts=serving.hosts, live=live)
    exact = None if serving.endpoint.chat else isl
    return Measured(run=run, isl=isl, invalid=check_load(run, max_failed_share=arguments.allow_failed, isl=exact))


def _look_again(arguments: argparse.Namespace, workload: Workload, engine: Engine, found: Measured) -> Measured:
    """Compare some answers with those at concurrency 1, as tests do, and look for a cache where that is asked for."""
    from pytest_inferperf.measure.agreement import check_agreement
    from pytest_inferperf.measure.load.summary import summarise_load
    from pytest_inferperf.measure.witness import Honesty, Witness, with_agreement

    limits = {item.ini: item.default for item in LIMITS}
    honesty = Honesty(compared=arguments.compare, max_count_error=limits["inferperf_max_count_error"])
    witness = Witness(honesty, seed=workload.seed)
    witness.saw_outputs(found.run.outputs, workload)
    try:
        agreement = witness.ask_again(engine)
        rounds = with_agreement([summarise_load(found.run, isl=found.isl, check=False)], agreement)
        invalid = check_agreement(rounds, limits)
        if arguments.audit and not invalid:
            witness.audit(engine, workload)
    except InvalidRun as error:
        agreement, invalid = None, str(error)
    except KeyboardInterrupt:
        agreement, invalid = (
            None,
            "interrupted while answers were asked for again at concurrency 1 (--compare 0 asks none)",
        )
    return replace(found, invalid=invalid.partition(_INI_ADVICE)[0], agreement=agreement)
