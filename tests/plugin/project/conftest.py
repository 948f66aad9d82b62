"""A user's project for the plugin tests: a scripted engine and scripted answers instead of a model.

`engine.json` in the project scripts both; what is not in it has the defaults below. Every build, relaunch and close is
logged in `engines.log`, so that a test can count them. `session_factors` are the speeds of the sessions: .97 makes one
3 % slower, and the last holds for all that follow. A run begins with the first, whatever ran before it. `slower_at` says
how many times as long a token takes at a concurrency: `{"4": 1.5}`.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.errors import EngineError
from pytest_inferperf.evaluate import run as evaluate_run
from pytest_inferperf.evaluate.interim import Asking
from pytest_inferperf.model.case import EngineSpec, Task
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS
from pytest_inferperf.model.results import AccuracyResult, EngineInfo, Hardware, Repeat

DEFAULTS: dict[str, Any] = {
    "round_s": 0.0,
    "ttft_ms": 100.0,
    "tpot_ms": 10.0,
    "failed": 0,
    "short_by": 0,
    "quant_algo": "as asked",
    "build_error": "",
    "generate_error": "",
    "hardware": "Test CPU",
    "kind": "cpu",
    "can_relaunch": True,
    "relaunch_error": "",
    "session_factors": [1.0],
    "slower_at": {},
    "right": {"BF16": 900},
    "unparseable": {"BF16": 0},
    "questions": 1000,
    "digest": "d1",
    "perplexity": False,
    "noise": 0.0,
    "by": {},
    "passage": 10,
    "shift": {},
    "aa_flips": 0,
}
"""`by` overrides the rest for a precision ("BF16") or an engine option ("use_cache=false")."""


def script(root: Path) -> dict[str, Any]:
    """Read the project's script."""
    path = root / "engine.json"
    return DEFAULTS | (json.loads(path.read_text()) if path.exists() else {})


class ScriptedEngine(Engine):
    """Answers as the script says."""

    def __init__(self, spec: EngineSpec, root: Path) -> None:
        self.spec = spec
        self.root = root
        self.script = script(root)
        self.options = [f"{name}={json.dumps(value)}" for name, value in spec.engine_options]
        for name in (spec.precision, *self.options):
            self.script |= self.script["by"].get(name, {})
        if self.script["build_error"]:
            raise EngineError(self.script["build_error"])
        self.noise = random.Random(spec.precision)
        self.scripted_s = 0.0
        type(self).can_relaunch = self.script["can_relaunch"]
        self.session = 0
        quant = QUANTIZATIONS.get(spec.quant)
        algo = quant.quant_algo if quant is not None else spec.quant
        self.info = EngineInfo(
            backend="scripted",
            hardware=Hardware(name=self.script["hardware"], count=2, kind=self.script["kind"]),
            quant_algo=algo if self.script["quant_algo"] == "as asked" else self.script["quant_algo"],
            kv_cache_quant_algo=KV_CACHE_DTYPES[spec.kv_cache_dtype].kv_cache_quant_algo,
            compute_dtype="float32",
            simulated=algo is not None,
            max_model_len=4096,
            checkpoint=spec.model,
            checkpoint_hash="c0ffee",
        )
        self.log("build")

    def log(self, event: str) -> None:
        with (self.root / "engines.log").open("a") as stream:
            stream.write(" ".join([event, self.spec.precision, *self.options]) + "\n")

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        return [tuple(text.encode()) for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        return [bytes(sequence).decode() for sequence in sequences]

    @property
    def prefix_token_id(self) -> int:
        return 1

    @property
    def eos_token_id(self) -> int:
        return 2

    @property
    def vocab_size(self) -> int:
        return 128

    @property
    def special_token_ids(self) -> frozenset[int]:
        return frozenset({1, 2})

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        if self.script["generate_error"]:
            raise EngineError(self.script["generate_error"])
        if all(bytes(request.prompt).startswith(b"question ") for request in requests):
            right, unparseable = self.said("right"), self.said("unparseable")
            return [self.answer(request, right, unparseable) for request in requests]
        time.sleep(self.script["round_s"])
        slower = math.exp(self.noise.gauss(0, self.script["noise"])) * self.script["slower_at"].get(
            str(concurrency), 1.0
        )
        answers = []
        for index, request in enumerate(requests):
            tokens = 0 if index < self.script["failed"] else request.max_tokens - self.script["short_by"]
            factors = self.script["session_factors"]
            speed = 1000 * factors[min(self.session, len(factors) - 1)]
            first, step = self.script["ttft_ms"] / speed, slower * self.script["tpot_ms"] / speed
            answers.append(
                Generation(
                    token_ids=(65,) * tokens,
                    text="A" * tokens,
                    finish_reason="length",
                    prompt_tokens=len(request.prompt),
                    token_times_s=tuple(first + step * position for position in range(tokens)),
                )
            )
        if not self.script["round_s"]:
            self.scripted_s += max((item.token_times_s[-1] for item in answers if item.token_times_s), default=0.0)
        return answers

    def clock_s(self) -> float:
        """Read a clock on which a round takes as long as its tokens say, where the script gives it no time to sleep."""
        return time.perf_counter() + self.scripted_s

    def answer(self, request: GenerationRequest, right: int, unparseable: int) -> Generation:
        """Answer question N of a task: the first `right` ones with 42, the last `unparseable` ones with nothing."""
        number = int(bytes(request.prompt).decode().removeprefix("question "))
        text = "42" if number < right else "17"
        if number >= self.script["questions"] - unparseable:
            text = ""
        ids = (*text.encode(), 2)
        times = tuple(0.001 * (position + 1) for position in range(len(ids)))
        return Generation(
            token_ids=ids,
            text=text,
            finish_reason="stop",
            prompt_tokens=len(request.prompt),
            token_times_s=times,
        )

    def said(self, key: str) -> int:
        """Read a figure of the script that depends on the precision."""
        figures = script(self.root)[key]
        return int(figures.get(self.spec.precision, figures["BF16"] if key == "right" else 0))

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        for position in range(request.max_tokens):
            yield TokenChunk(token_ids=(65,), text="A", time_s=0.1 * (position + 1))

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        logprob = -self.said("right") / 1000
        return [LogLikelihood(logprob=logprob, is_greedy=False) for _ in requests]

    def peak_memory_bytes(self) -> int:
        return 2**30

    def relaunch(self) -> None:
        if not self.can_relaunch:
            super().relaunch()
        if self.script["relaunch_error"]:
            raise EngineError(self.script["relaunch_error"])
        self.session += 1
        self.log("relaunch")

    def close(self) -> None:
        self.log("close")


def scripted_evaluate(engine: Engine, task: Task, *, asking: Asking | None = None, **_: object) -> AccuracyResult:
    """Ask the engine every scripted question, then look as the real evaluation does, in the order of asking.

    How many questions a look took, and whether some were asked twice, is logged in `asked.log`.
    """
    assert asking is not None
    decided = asking.decided
    said = script(_root)
    whole = scripted_answers(engine, said, task)
    count = len(whole.outcomes)
    groups = tuple(number // said["passage"] for number in range(count)) if task.group_by else None
    order = asking.order(count, groups)
    looks = [size for size in asking.looks(count) if size < count]
    shift = said["shift"].get(engine.spec.precision, 0.0)
    logprobs = {document: (math.log(0.5 + shift), math.log(0.5 - shift)) for document in order[:256]}
    whole = replace(whole, groups=groups, logprobs=None if said["perplexity"] else logprobs)
    log = _root / "asked.log"
    for size in looks if decided is not None else ():
        asked = sorted(order[:size])
        flags = whole.unparseable
        part = replace(
            whole,
            asked=tuple(document in set(asked) for document in range(count)),
            outcomes=tuple(whole.outcomes[document] for document in asked),
            score=sum(whole.outcomes[document] for document in asked) / size,
            unparseable=None if flags is None else tuple(flags[document] for document in asked),
            logprobs={document: row for document, row in logprobs.items() if document in set(asked)},
            sequential=True,
        )
        if decided is not None and decided(part):
            log.write_text(f"{size}")
            return part
    log.write_text(f"{count}" + (f" and {looks[0]} twice" if asking.repeat else ""))
    repeat = Repeat(questions=looks[0], flips=said["aa_flips"]) if asking.repeat else None
    return replace(whole, sequential=decided is not None and bool(looks), repeat=repeat)


def scripted_answers(engine: Engine, said: dict[str, Any], task: Task) -> AccuracyResult:
    """Ask the engine every question: 42 is right, nothing is unparseable."""
    count = said["questions"]
    questions = engine.encode([f"question {number}" for number in range(count)])
    if said["perplexity"]:
        asked = [LogLikelihoodRequest(context=(engine.prefix_token_id,), continuation=item) for item in questions]
        outcomes = tuple(-answer.logprob for answer in engine.loglikelihood(asked, concurrency=64))
        return AccuracyResult(
            task=task.name,
            metric="bits_per_byte",
            higher_is_better=False,
            score=fmean(outcomes),
            outcomes=outcomes,
            documents_digest=said["digest"],
            scores={"bits_per_byte": fmean(outcomes)},
        )
    prompts = [GenerationRequest(prompt=item, max_tokens=8) for item in questions]
    texts = [answer.text for answer in engine.generate(prompts, concurrency=64)]
    right = sum(text == "42" for text in texts)
    return AccuracyResult(
        task=task.name,
        metric="exact_match",
        higher_is_better=True,
        score=right / count,
        outcomes=tuple(float(text == "42") for text in texts),
        documents_digest=said["digest"],
        unparseable=tuple(not text for text in texts),
        scores={"exact_match": right / count},
    )


_real_evaluate = evaluate_run.evaluate


_root = Path()


def pytest_configure(config: pytest.Config) -> None:
    global _root
    _root = config.rootpath
    evaluate_run.evaluate = scripted_evaluate


def pytest_unconfigure(config: pytest.Config) -> None:
    evaluate_run.evaluate = _real_evaluate


def pytest_inferperf_make_engine(config: pytest.Config, spec: EngineSpec) -> Engine:
    return ScriptedEngine(spec, config.rootpath)


def pytest_inferperf_environment(config: pytest.Config) -> dict[str, str]:
    return {"driver": "570.1"}
