"""The load that one test puts on an engine, and the part of a case's identity that it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_inferperf.model.lengths import Lengths, parse_lengths

__all__ = ["ENDPOINTS", "OPEN_LOOP_REQUESTS", "WORKLOAD_IDENTITY", "Workload", "spell"]

OPEN_LOOP_REQUESTS = 100
"""Requests of a round under open loop, where the mark says nothing."""

ENDPOINTS = ("completions", "chat")
"""Where requests of a server go."""

WORKLOAD_IDENTITY = (
    "endpoint",
    "dataset",
    "turns",
    "think_time",
    "trace",
    "trace_speed",
    "isl",
    "osl",
    "concurrency",
    "request_rate",
    "arrival",
    "burstiness",
    "shared_prefix",
    "num_requests",
    "seed",
)
"""Names of a case's identity that the workload gives; each stands in it only where it has a meaning."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is sent to the engine, and how often."""

    isl: int | str = 0
    """Input sequence length, tokens, or a distribution: "uniform(819,1024)", "normal(1024,100)"; 0 where a file says it."""

    osl: int | str = 0
    """Output sequence length, tokens, or a distribution; each request gets exactly what was drawn (`ignore_eos`); 0 where
    a file says it."""

    dataset: str = ""
    """The file that prompts are read from, known by its stem and content: `prompts-1a2b3c4d`. "" for synthetic prompts."""

    dataset_path: str = ""
    """Where that file is (absolute). Context, not identity."""

    turns: int = 1
    """Most turns of each conversation that are asked, one after the other."""

    think_time: float = 0.0
    """Seconds from an answer to the next turn of its conversation, at least."""

    trace: str = ""
    """The file that times and lengths of requests are read from, known as `dataset` is; "" for none."""

    trace_path: str = ""
    """Where that file is (absolute). Context, not identity."""

    trace_speed: float = 1.0
    """How many times as fast the trace is replayed."""

    concurrency: int = 1
    """Closed loop: requests in flight. 0 under open loop."""

    request_rate: float = 0.0
    """Open loop: requests per second, in the mean. 0 under closed loop."""

    arrival: str = "poisson"
    """Open loop: how requests arrive, a name of `measure.load.arrivals`."""

    burstiness: float = 1.0
    """Open loop: shape of gamma arrivals; below 1 comes in bursts."""

    shared_prefix: float = 0.0
    """Share of each prompt, from its start, that all prompts have in common."""

    endpoint: str = "completions"
    """One of `ENDPOINTS`: `chat` sends each prompt as the message of a user."""

    swept: str = ""
    """The loop that is swept, `concurrency` or `request_rate`; "" for one load. The field itself then has the first value."""

    sweep: tuple[int | float, ...] = ()
    """The values of `swept`, one for each point."""

    num_requests: int = 0
    """Requests per round; 0 means one per concurrent slot, or `OPEN_LOOP_REQUESTS`."""

    rounds: int = 5
    """Measured passes of the workload inside one session."""

    warmup_rounds: int = 1
    """Passes before the measured ones; run, counted, not judged."""

    seed: int = 0
    sessions: int = 0
    """Launches of the engine to begin with; 0 means 1 when judged (more follow while a verdict is open), 10 when
    recorded."""

    hosts: int = 0
    """Nodes of a cluster that send the load to a server; 0 for none, until this machine is too small."""

    share_node: bool = False
    """Whether other engines may run beside it on the node of a cluster; by default a node is measured alone."""

    @property
    def is_open_loop(self) -> bool:
        """Whether requests are due by the clock, whether or not earlier ones were answered."""
        return self.request_rate > 0 or bool(self.trace)

    @property
    def open_loop_keyword(self) -> str:
        """What makes it an open loop: `request_rate=20`, `trace=…`."""
        return f"trace={self.trace!r}" if self.trace else f"request_rate={self.request_rate:g}"

    @property
    def file(self) -> str:
        """What the file of the workload is called; "" where it has none."""
        return self.dataset or self.trace

    def points(self) -> tuple[Workload, ...]:
        """Return the workload of each point of a sweep; itself where it is none."""
        if not self.swept:
            return (self,)
        return tuple(replace(self, swept="", sweep=(), **{self.swept: value}) for value in self.sweep)  # type: ignore[arg-type]

    @property
    def load_name(self) -> str:
        """What an id calls the load: `c64`, `r2.5`, `r20-constant`; of a sweep `c1-8-64`."""
        return "-".join(self._loop_names())

    @property
    def input_lengths(self) -> Lengths:
        """The lengths of prompts."""
        return parse_lengths(self.isl)

    @property
    def output_lengths(self) -> Lengths:
        """The lengths of outputs."""
        return parse_lengths(self.osl)

    def shared_tokens(self, isl: int) -> int:
        """Return how many tokens of a prompt of this length are those of every prompt."""
        return round(self.shared_prefix * isl)

    @property
    def default_requests(self) -> int:
        """Requests per round where `num_requests` says nothing."""
        return OPEN_LOOP_REQUESTS if self.is_open_loop else self.concurrency

    @property
    def requests_per_round(self) -> int:
        """The number of requests one round sends; of conversations, with more turns than one, how many it begins."""
        return self.num_requests or self.default_requests

    @property
    def words(self) -> str:
        """The load as a line of progress names it."""
        if self.trace:
            return f"{self.endpoint} trace {self.trace} at {spell(self.trace_speed)} times its speed"
        loop = f"request rate {spell(self.request_rate)}" if self.is_open_loop else f"concurrency {self.concurrency}"
        chat = f"{self.endpoint} " if self.endpoint != "completions" else ""
        osl = f" {self.turns} turns" if self.turns > 1 else ""
        osl += f" osl {self.osl}" if self.osl else ""
        return f"{chat}{self.dataset or f'isl {self.isl}'}{osl} {loop}"

    def identity(self) -> dict[str, str | int]:
        """Return the names of `WORKLOAD_IDENTITY` that have a meaning. A rate is a string such as "2.5": `-m` takes no float."""
        found: dict[str, str | int] = {}
        for name, value in (("dataset", self.dataset), ("trace", self.trace), ("isl", self.isl)):
            if value:
                found[name] = value
        if self.turns > 1:
            found["turns"] = self.turns
            found |= {"think_time": spell(self.think_time)} if self.think_time else {}
        if self.osl:
            found["osl"] = self.osl
        if self.endpoint != "completions":
            found["endpoint"] = self.endpoint
        if self.trace:
            found |= {"trace_speed": spell(self.trace_speed)} if self.trace_speed != 1 else {}
        elif self.is_open_loop:
            found |= {"request_rate": spell(self.request_rate), "arrival": self.arrival}
            if self.arrival == "gamma":
                found["burstiness"] = spell(self.burstiness)
        else:
            found["concurrency"] = self.concurrency
        if self.shared_prefix:
            found["shared_prefix"] = spell(self.shared_prefix)
        if self.swept:
            found[self.swept] = ",".join(map(spell, self.sweep))
            return found | ({"num_requests": self.num_requests} if self.num_requests else {}) | {"seed": self.seed}
        return found | {"num_requests": self.requests_per_round, "seed": self.seed}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Workload:
        """Make the workload that has this identity."""
        values = {name: identity[name] for name in ("num_requests", "seed")}
        plain = ("isl", "osl", "dataset", "turns", "trace", "arrival", "endpoint")
        values |= {name: identity[name] for name in plain if name in identity}
        values |= {
            name: float(identity[name])
            for name in ("request_rate", "burstiness", "shared_prefix", "think_time", "trace_speed")
            if name in identity
        }
        return cls(**values, concurrency=identity.get("concurrency", 0))

    def names(self) -> list[str]:
        """List the parts of an id that are always there: `isl1024` or the name of a file, `osl1024`, and `c64` or `r2.5`."""
        lengths = [self.file or f"isl{self.input_lengths.short}"]
        lengths += [f"turns{self.turns}"] if self.turns > 1 else []
        lengths += [f"think{spell(self.think_time)}"] if self.turns > 1 and self.think_time else []
        lengths += [f"osl{self.output_lengths.short}"] if self.osl else []
        prefix = [f"prefix{spell(self.shared_prefix)}"] if self.shared_prefix else []
        endpoint = [self.endpoint] if self.endpoint != "completions" else []
        return [*endpoint, *lengths, *prefix, *self._loop_names()]

    def _loop_names(self) -> list[str]:
        if self.trace:
            return [f"x{spell(self.trace_speed)}"] if self.trace_speed != 1 else []
        values = "-".join(map(spell, self.sweep or (self.request_rate or self.concurrency,)))
        if not self.is_open_loop:
            return [f"c{values}"]
        shape = spell(self.burstiness) if self.arrival == "gamma" else ""
        return [f"r{values}", *([f"{self.arrival}{shape}"] if self.arrival != "poisson" else [])]


def spell(value: float) -> str:
    """Spell a number without loss: 20.0 is `20`, 2.5 is `2.5`."""
    return str(int(value)) if value == int(value) else repr(value)
