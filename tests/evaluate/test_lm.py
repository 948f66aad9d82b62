"""The adapter tokenizes, scores and generates as lm-eval's `hf` model does, and cuts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.interface import LogLikelihood
from pytest_inferperf.errors import EngineError, InvalidRun, TaskError

PAIRS = [
    ("The river near the stone is", " amber"),
    ("a context that ends in spaces  ", "lantern"),
    ("", "river stone"),
    ("", " amber and the quiet garden."),
    ("<s>The text brings its own prefix", " token"),
    ("", "<s>and so does a continuation"),
    ("ünïcödé –", " dashes – ¿qué?"),
    ("two lines\n", "the second line"),
    ("x", "y"),
]
TEXTS = ["river", "The quiet garden. " * 40, "<s>prefix inside", " leading space", "ünïcödé"]
PROMPTS = ["Q: what is amber?\nA:", "Q: thunder?\nA: ", "silver"]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=item, idx=0, metadata=("tiny", index, 1))
        for index, item in enumerate(arguments)
    ]


@pytest.fixture(params=["tiny_model", "tiny_model_with_bos"])
def pair(request: pytest.FixtureRequest, make_engine: Any, hf_model: Any) -> tuple[Any, Any]:
    """Our model and lm-eval's, for a tokenizer without special tokens and for one that adds BOS by default."""
    from pytest_inferperf.evaluate.lm import EngineLM

    folder: Path = request.getfixturevalue(request.param)
    return EngineLM(make_engine(folder)), hf_model(folder)


@pytest.fixture
def ours(tiny: Any) -> Any:
    from pytest_inferperf.evaluate.lm import EngineLM

    return EngineLM(tiny, concurrency=5)


def test_loglikelihood_equals_hf(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    wanted = requests("loglikelihood", *PAIRS)
    found, expected = ours.loglikelihood(wanted), theirs.loglikelihood(wanted, disable_tqdm=True)
    assert [item[0] for item in found] == pytest.approx([item[0] for item in expected], abs=1e-3)
    assert [item[1] for item in found] == [item[1] for item in expected]


def test_rolling_equals_hf(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    wanted = requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    assert len(ours._encode([TEXTS[1]])[0]) > ours._engine.info.max_model_len, "one text must need several windows"
    expected = theirs.loglikelihood_rolling(wanted, disable_tqdm=True)
    assert ours.loglikelihood_rolling(wanted) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, ["<s>The prompt brings its own prefix"]], ids=["plain", "prefixed"])
@pytest.mark.parametrize(
    "options",
    [{"until": ["\n", "e"], "max_gen_toks": 16}, {"until": "a", "max_new_tokens": 5, "temperature": 0}],
    ids=["max_gen_toks", "max_new_tokens"],
)
def test_generation_equals_hf(pair: tuple[Any, Any], prompts: list[str], options: dict[str, Any]) -> None:
    ours, theirs = pair
    wanted = [requests("generate_until", *((text, dict(options)) for text in prompts)) for _ in range(2)]
    assert ours.generate_until(wanted[0]) == theirs.generate_until(wanted[1], disable_tqdm=True)


def test_all_texts_are_encoded_in_one_call(ours: Any, tiny: Any) -> None:
    tiny.encode_calls = 0
    ours.loglikelihood(requests("loglikelihood", *(("The river is", f" {index}") for index in range(20))))
    assert tiny.encode_calls == 1


def test_a_prompt_that_is_too_long_is_invalid_and_not_cut(ours: Any) -> None:
    wanted = requests("generate_until", ("short", {"max_gen_toks": 8}), ("river " * 200, {"max_gen_toks": 8}))
    with pytest.raises(InvalidRun) as caught:
        ours.generate_until(wanted)
    message = str(caught.value)
    assert message.startswith("1 of 2 requests do not fit the engine's max_model_len (128 tokens); ")
    assert "document 1 of tiny: " in message
    assert " prompt tokens + 8 to generate > 128" in message
    assert "max_gen_toks" in message


def test_a_context_that_is_too_long_is_invalid_and_not_cut(ours: Any) -> None:
    with pytest.raises(InvalidRun, match=r"document 0 of tiny: \d+ context \+ \d+ continuation tokens > 128 \+ 1"):
        ours.loglikelihood(requests("loglikelihood", ("river " * 200, " stone")))


def test_a_request_of_exactly_the_engine_s_length_fits(ours: Any, tiny: Any) -> None:
    continuation = tiny.decode([tiny.encode([" river" * 200])[0][:128]])[0]
    assert len(tiny.encode([continuation])[0]) == 128
    ((logprob, _),) = ours.loglikelihood(requests("loglikelihood", ("", continuation)))
    assert logprob < 0
    with pytest.raises(InvalidRun):
        ours.loglikelihood(requests("loglikelihood", ("", continuation + " x")))


def test_a_continuation_without_tokens_is_a_task_error(ours: Any) -> None:
    with pytest.raises(TaskError, match="document 1 of tiny: the continuation '' has no tokens to score"):
        ours.loglikelihood(requests("loglikelihood", ("river", " stone"), ("river", "")))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_loglikelihood_that_is_not_finite_is_invalid(
    ours: Any, tiny: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [LogLikelihood(logprob=-1.0, is_greedy=True), LogLikelihood(logprob=value, is_greedy=False)]
    monkeypatch.setattr(tiny, "loglikelihood", lambda requests, concurrency: answers)
    with pytest.raises(InvalidRun, match=r"1 of 2 log-likelihoods are not finite.*document 1 of tiny"):
        ours.loglikelihood(requests("loglikelihood", ("river", " stone"), ("river", " amber")))


def test_an_engine_that_leaves_requests_out_is_an_error(ours: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "loglikelihood", lambda requests, concurrency: [])
    with pytest.raises(EngineError, match="the engine gave 0 answers to 1 requests"):
        ours.loglikelihood(requests("loglikelihood", ("river", " stone")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 3}, "document 0 of tiny: generation_kwargs has top_k=3, which engines do not support"),
        ({"num_beams": 4}, "generation_kwargs has num_beams=4"),
        ({"do_sample": True}, "do_sample: true and no temperature above 0"),
    ],
)
def test_generation_options_an_engine_cannot_honour_are_refused(ours: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        ours.generate_until(requests("generate_until", ("river", options)))
    assert said in str(caught.value)


def test_the_defaults_are_lm_eval_s() -> None:
    from pytest_inferperf.evaluate.lm import GenerationOptions

    assert GenerationOptions.parse({}, where="") == GenerationOptions(
        until=(), max_gen_toks=256, temperature=0.0, top_p=1.0
    )


def test_sampling_options_reach_the_engine(ours: Any, tiny: Any) -> None:
    tiny.asked.clear()
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_tokens": 2, "num_beams": 1, "until": None}
    greedy = {"do_sample": False, "temperature": 0.7, "max_gen_toks": 2}
    ours.generate_until(requests("generate_until", ("river", options), ("river", options), ("river", greedy)))
    assert [(item.temperature, item.top_p, item.max_tokens) for item in tiny.asked] == [
        (0.7, 0.9, 2),
        (0.7, 0.9, 2),
        (0.0, 1.0, 2),
    ]
    assert len({item.seed for item in tiny.asked}) == 3, "repeats of one document must not be the same sample"
