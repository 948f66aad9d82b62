"""Speculative decoding: the target's own answer, in fewer of its passes."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_inferperf.engines import speculation
from pytest_inferperf.engines.interface import Generation, GenerationRequest
from pytest_inferperf.engines.transformers_engine import TransformersEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.summary import summarise_round
from pytest_inferperf.model.case import EngineSpec, Scalar, Workload

Build = Callable[..., tuple[EngineSpec, Path]]


def speculating(spec: EngineSpec, draft: Path, **changes: Scalar) -> EngineSpec:
    options = {"speculative": "draft_target", "draft_model": str(draft), "max_draft_len": 3, **changes}
    return replace(
        spec, engine_options=tuple(sorted((name, item) for name, item in options.items() if item is not None))
    )


@pytest.fixture(scope="module")
def stranger(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other random weights: it hardly ever proposes what the target chooses."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("stranger") / "stranger"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def twin(source: Path) -> Iterator[Any]:
    """A target that is its own draft model: every proposal is right."""
    spec = speculating(EngineSpec(model=str(source), served_model_name="tiny"), source)
    with TransformersEngine(spec, checkpoint=str(source)) as engine:
        yield engine


def prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    return [tuple(rng.randrange(256) for _ in range(rng.randrange(1, 12))) for _ in range(count)]


def requests(count: int = 6, **changes: Any) -> list[GenerationRequest]:
    return [
        GenerationRequest(prompt=prompt, max_tokens=13 + index, ignore_eos=True, **changes)
        for index, prompt in enumerate(prompts(count))
    ]


def told(answers: list[Generation]) -> list[tuple[Any, ...]]:
    return [(answer.token_ids, answer.text, answer.finish_reason) for answer in answers]


def test_a_perfect_draft_is_accepted_whole_and_a_strange_one_hardly(
    engine: TransformersEngine, twin: TransformersEngine, source: Path, stranger: Path
) -> None:
    """The answer is the target's in either case; only the steps differ."""
    plain = engine.generate(requests(), concurrency=3)
    assert [answer.decoding_steps for answer in plain] == [len(answer.token_ids) for answer in plain]
    quick = twin.generate(requests(), concurrency=3)
    assert told(quick) == told(plain)
    # One step for the prompt, then four tokens a step.
    assert [answer.decoding_steps for answer in quick] == [1 + -(-(12 + index) // 4) for index in range(6)]
    with TransformersEngine(speculating(engine.spec, stranger), checkpoint=str(source)) as odd:
        slow = odd.generate(requests(), concurrency=3)
    assert told(slow) == told(plain)
    assert sum(answer.decoding_steps or 0 for answer in slow) > 2 * sum(answer.decoding_steps or 0 for answer in quick)


@pytest.mark.parametrize("quant", [("NVFP4", "auto"), ("FP8", "fp8")])
def test_quantized_target_forgets_refused_proposals(built: Build, source: Path, quant: tuple[str, str]) -> None:
    """The draft is not quantized and is wrong now and then: what it leaves in the KV cache must go."""
    spec, folder = built(*quant)
    with TransformersEngine(spec, checkpoint=str(folder)) as engine:
        plain = engine.generate(requests(4), concurrency=1)
    with TransformersEngine(speculating(spec, source), checkpoint=str(folder)) as engine:
        quick = engine.generate(requests(4), concurrency=4)
    assert told(quick) == told(plain)
    tokens = sum(len(answer.token_ids) for answer in quick)
    assert 1.2 < tokens / sum(answer.decoding_steps or 0 for answer in quick) < 3.9


def test_sampling_draws_what_the_target_alone_would_draw(engine: TransformersEngine, twin: TransformersEngine) -> None:
    sampled = requests(3, temperature=1.2, top_p=0.9, seed=4)
    assert told(twin.generate(sampled, concurrency=2)) == told(engine.generate(sampled, concurrency=1))


def test_end_of_text_among_the_accepted_tokens_ends_the_answer(
    engine: TransformersEngine, twin: TransformersEngine
) -> None:
    (request,) = requests(1)
    free = engine.generate([request], concurrency=1)[0].token_ids
    ended = replace(request, ignore_eos=False)
    for some in (engine, twin):
        some._eos = frozenset({free[2]})
    try:
        plain, quick = (some.generate([ended], concurrency=1) for some in (engine, twin))
    finally:
        for some in (engine, twin):
            some._eos = frozenset({257})
    assert told(quick) == told(plain)
    assert quick[0].finish_reason == "stop"


def test_a_stream_sends_what_a_step_accepted_at_once(engine: TransformersEngine, twin: TransformersEngine) -> None:
    (request,) = requests(1)
    (answer,) = engine.generate([request], concurrency=1)
    chunks = list(twin.stream(request))
    assert [len(chunk.token_ids) for chunk in chunks] == [1, 4, 4, 4]
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
    assert "".join(chunk.text for chunk in chunks) == answer.text


def test_a_verify_step_that_believes_the_draft_is_not_lossless(
    engine: TransformersEngine, source: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above is worth something: it sees a target that no longer decides."""

    def believe(proposed: list[int], logits: torch.Tensor, completion: Any, finish: Any) -> int:
        for count, token in enumerate([*proposed, int(logits[-1].argmax())], start=1):
            completion.tokens.append(token)
            completion.finish = finish(completion)
            if completion.finish is not None:
                return count
        return len(proposed) + 1

    plain = engine.generate(requests(), concurrency=3)
    monkeypatch.setattr(speculation, "verify", believe)
    with TransformersEngine(speculating(engine.spec, stranger), checkpoint=str(source)) as broken:
        assert told(broken.generate(requests(), concurrency=3)) != told(plain)


def test_a_cache_that_forgets_nothing_is_not_lossless(
    engine: TransformersEngine, source: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine.generate(requests(), concurrency=3)

    def keep(self: Any, length: int) -> None:
        self._length = min(self._length, length)

    monkeypatch.setattr(speculation._Reader, "forget", keep)
    with TransformersEngine(speculating(engine.spec, stranger), checkpoint=str(source)) as broken:
        assert told(broken.generate(requests(), concurrency=3)) != told(plain)


def test_acceptance_length_is_measured(engine: TransformersEngine, twin: TransformersEngine) -> None:
    """1 without a draft model; with a perfect one, a round of 13 tokens takes 4 steps."""
    workload = Workload(isl=4, osl=13, concurrency=2, rounds=1, warmup_rounds=0)
    plain, quick = (measure_session(some, workload).rounds[0].metrics for some in (engine, twin))
    assert plain["acceptance_length"] == 1.0
    assert quick["acceptance_length"] == 13 / 4


def test_acceptance_length_is_over_all_steps_and_absent_where_steps_are_unknown() -> None:
    def answer(tokens: int, steps: float | None) -> Generation:
        times = tuple(0.1 * (index + 1) for index in range(tokens))
        return Generation(
            token_ids=(1,) * tokens,
            text="",
            finish_reason="length",
            prompt_tokens=1,
            token_times_s=times,
            decoding_steps=steps,
        )

    def metrics(*answers: Generation) -> Any:
        return summarise_round(list(answers), duration_s=1.0, devices=1, peak_memory_bytes=0).metrics

    assert metrics(answer(10, 2), answer(2, 2))["acceptance_length"] == 3.0
    assert "acceptance_length" not in metrics(answer(10, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculative": None}, r"draft_model: speculative= is missing. Name the kind: draft_target"),
        (
            {"speculative": "eagle3"},
            r"speculative='eagle3': the transformers backend has speculative='draft_target' only",
        ),
        ({"draft_model": None}, r"speculative='draft_target' needs a draft model: draft_model=folder or hub id"),
        ({"max_draft_len": None}, r"speculative='draft_target' needs max_draft_len="),
        ({"max_draft_len": 0}, r"max_draft_len=0: expected a whole number of at least 1"),
        ({"use_cache": False}, r"speculative='draft_target' needs the KV cache"),
        ({"draft_model": "/absent/model"}, r"draft_model: model /absent/model: no such folder"),
    ],
)
def test_wrong_options_say_what_is_missing(source: Path, options: dict[str, Scalar], message: str) -> None:
    spec = speculating(EngineSpec(model=str(source), served_model_name="tiny"), source, **options)
    with pytest.raises(EngineError, match=message):
        TransformersEngine(spec, checkpoint=str(source))


def test_a_draft_of_another_vocabulary_is_refused(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    spec = speculating(EngineSpec(model=str(source), served_model_name="tiny"), other)
    with pytest.raises(EngineError, match=r"draft_model: the tokenizer of .* has other tokens than the target's"):
        TransformersEngine(spec, checkpoint=str(source))
