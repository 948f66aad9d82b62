"""The backend over a strict stand-in of the package, both versions: what is passed, what comes back, what goes wrong."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.hardware import cpu_hardware
from pytest_inferperf.engines.interface import GenerationRequest, LogLikelihoodRequest
from pytest_inferperf.engines.tensorrt_llm import engine as engine_module
from pytest_inferperf.engines.tokenizing import Tokenizer
from pytest_inferperf.errors import CheckpointError, EngineError
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.validity import check_engine
from pytest_inferperf.model.case import Workload
from tests.engines.tensorrt_llm.conftest import Start, spec_of
from tests.engines.trtllm_stand_in.light import transformers as light_transformers

PROMPT = (10, 11, 12)


def request(max_tokens: int = 6, prompt: tuple[int, ...] = PROMPT, **changes: Any) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, max_tokens=max_tokens, **{"ignore_eos": True, **changes})


def test_every_request_sets_what_a_default_would_decide(stand_in: Any, start: Start) -> None:
    engine = start()
    engine.generate([request(), request(temperature=0.5, top_p=0.9, seed=3)], concurrency=2)
    greedy, sampled = (item.given for item in stand_in.LLM.made[-1].requests)
    assert greedy == {
        "max_tokens": 6,
        "temperature": 0.0,
        "top_k": 1,
        "seed": 0,
        "ignore_eos": True,
        "detokenize": False,
    }
    assert sampled == {
        "max_tokens": 6,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "ignore_eos": True,
        "detokenize": False,
    }


def test_answers_come_in_the_order_of_the_requests(stand_in: Any, start: Start) -> None:
    requests = [request(1 + index % 5, prompt=(index, index + 1)) for index in range(12)]
    answers = start().generate(requests, concurrency=4)
    assert [answer.token_ids for answer in answers] == [
        tuple(index + 2 + step for step in range(1 + index % 5)) for index in range(12)
    ]
    assert all(len(answer.token_times_s) == len(answer.token_ids) for answer in answers)
    assert all(answer.prompt_tokens == 2 and answer.finish_reason == "length" for answer in answers)


def test_no_more_requests_are_in_flight_than_the_concurrency(
    newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, flying, most = start(), 0, 0
    complete = engine._complete

    async def counted(item: GenerationRequest) -> Any:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        answer = await complete(item)
        flying -= 1
        return answer

    monkeypatch.setattr(engine, "_complete", counted)
    engine.generate([request() for _ in range(10)], concurrency=3)
    assert most == 3


def test_tokens_of_one_step_share_its_time_and_each_is_counted(stand_in: Any, start: Start) -> None:
    engine = start(spec_of(speculative="ngram", max_draft_len=2))
    (answer,) = engine.generate([request(9)], concurrency=1)
    times = answer.token_times_s
    assert len(times) == len(answer.token_ids) == 9
    # Steps of 1, 2, 3, 1, 2 tokens.
    assert [times.count(moment) for moment in dict.fromkeys(times)] == [1, 2, 3, 1, 2]
    assert answer.decoding_steps == 5
    chunks = list(engine.stream(request(9)))
    assert [len(chunk.token_ids) for chunk in chunks] == [1, 2, 3, 1, 2]
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids


def test_a_stream_interval_makes_chunks_not_tokens(newest: Any, start: Start) -> None:
    engine = start(spec_of(stream_interval=4))
    assert [len(chunk.token_ids) for chunk in engine.stream(request(10))] == [4, 4, 2]
    (answer,) = engine.generate([request(10)], concurrency=1)
    assert len(answer.token_times_s) == 10


def test_the_engines_own_times_are_kept(stand_in: Any, start: Start) -> None:
    (answer,) = start().generate([request()], concurrency=1)
    assert (answer.engine_ttft_s, answer.engine_latency_s) == (0.25, 2.0)


def test_an_engine_that_tells_no_figures_has_none(newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "no_figures")
    (answer,) = start(spec_of(speculative="ngram", max_draft_len=2)).generate([request()], concurrency=1)
    assert (answer.decoding_steps, answer.engine_ttft_s, answer.engine_latency_s) == (None, None, None)


def test_the_end_of_the_sequence_ends_an_output_unless_it_is_ignored(stand_in: Any, start: Start) -> None:
    engine = start()
    ends = request(10, prompt=(254,), ignore_eos=False)
    first, second = engine.generate([ends, request(10, prompt=(254,))], concurrency=2)
    assert (first.token_ids, first.finish_reason) == ((255, 256, 257), "stop")
    assert (len(second.token_ids), second.finish_reason) == (10, "length")


def test_a_stop_string_ends_the_request_and_is_cut_off(stand_in: Any, start: Start) -> None:
    engine = start()
    (whole,) = engine.generate([request(40)], concurrency=1)
    stop = whole.text[5:8]
    (answer,) = engine.generate([request(40, stop=(stop,))], concurrency=1)
    assert (answer.text, answer.finish_reason) == (whole.text[:5], "stop")
    assert len(answer.token_ids) == 8
    chunks = list(engine.stream(request(40, stop=(stop,))))
    assert "".join(chunk.text for chunk in chunks) == whole.text[:5]


def test_a_stream_that_is_left_is_aborted(newest: Any, start: Start) -> None:
    engine = start()
    stream = engine.stream(request(40))
    next(stream)
    assert engine._llm.aborted == 0
    stream.close()
    assert engine._llm.aborted == 1


def test_loglikelihood_sums_the_continuation(newest: Any, start: Start) -> None:
    toy = __import__("tensorrt_llm.toy").toy
    requests = [
        LogLikelihoodRequest(context=(10, 11), continuation=(12, 13)),
        LogLikelihoodRequest(context=(10,), continuation=(12, 13)),
    ]
    greedy, other = start().loglikelihood(requests, concurrency=2)
    assert greedy.logprob == pytest.approx(toy.logprob(11, 12) + toy.logprob(12, 13))
    assert greedy.is_greedy
    assert other.logprob == pytest.approx(toy.logprob(10, 12) + toy.logprob(12, 13))
    assert not other.is_greedy
    assert newest.LLM.made[-1].requests[-1].given == {
        "max_tokens": 1,
        "temperature": 0.0,
        "top_k": 1,
        "seed": 0,
        "ignore_eos": True,
        "detokenize": False,
        "prompt_logprobs": 1,
    }


def test_the_stable_release_says_that_it_cannot_score(install: Any, start: Start) -> None:
    install("1.2.1")
    engine = start()
    (greedy,) = engine.loglikelihood([LogLikelihoodRequest(context=(10,), continuation=(11,))], concurrency=1)
    assert greedy.is_greedy
    with pytest.raises(
        EngineError, match=r"TensorRT-LLM 1\.2\.1 gave no log-probability for prompt token 1\. Releases b"
    ):
        engine.loglikelihood([LogLikelihoodRequest(context=(10,), continuation=(12,))], concurrency=1)


SCORE = LogLikelihoodRequest(context=(10, 11), continuation=(12, 13))


def generate(engine: Any) -> None:
    engine.generate([request()], concurrency=1)


def stream(engine: Any) -> None:
    list(engine.stream(request()))


def score(engine: Any) -> None:
    engine.loglikelihood([SCORE], concurrency=1)


@pytest.mark.parametrize(
    ("fault", "act", "message"),
    [
        ("failing", generate, "failed on a request of 3 prompt tokens: CUDA error"),
        ("failing", stream, "failed on a request of 3 prompt tokens: CUDA error"),
        ("failing", score, "failed on a request of 4 prompt tokens: CUDA error"),
        ("truncating", generate, "read 2 prompt tokens where 3 were sent"),
        ("truncating", stream, "read 2 prompt tokens where 3 were sent"),
        ("truncating", score, "read 3 prompt tokens where 4 were sent"),
        ("short", generate, "ended a request for its length after 3 of 6 tokens; raise max_seq_len"),
        ("short", stream, "ended a request for its length after 3 of 6 tokens; raise max_seq_len"),
        ("silent", generate, "ended a request without a token"),
        ("silent", stream, "ended a request without a token"),
        ("cancelled", generate, "ended a request after 6 of 6 tokens: 'cancelled'"),
        ("unstreamed", generate, "streamed 6 of 7 tokens"),
        ("two_outputs", generate, "gave 2 outputs to one request"),
        ("no_logprobs", score, "gave 0 log-probabilities for 4 prompt tokens, where 3 are needed"),
        ("short_logprobs", score, "gave 2 log-probabilities for 4 prompt tokens, where 3 are needed"),
        ("absent_token", score, "gave no log-probability for prompt token 3"),
        ("no_rank", score, "gave no rank for prompt token 2"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(
    newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch, fault: str, act: Callable[[Any], None], message: str
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", fault)
    with pytest.raises(EngineError, match=message):
        act(start())


def test_a_late_answer_is_seen_in_the_times(newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN", "late")
    (answer,) = start().generate([request()], concurrency=1)
    assert answer.token_times_s[0] >= 0.05


@pytest.mark.parametrize(
    ("fault", "spec", "reason"),
    [
        ("misquantized", spec_of("NVFP4", "fp8"), "the engine runs FP8 where the case asks for NVFP4"),
        ("misquantized", spec_of("FP8", "fp8"), "the engine runs NVFP4 where the case asks for FP8"),
        ("misquantized", spec_of("FP8_BLOCK_SCALES"), "the engine runs NVFP4 where the case asks for FP8_BLOCK_SCALES"),
        ("wrong_kv_cache", spec_of("NVFP4", "fp8"), "KV cache is not quantized where the case asks for fp8"),
        ("wrong_tp", spec_of(tp=8), "the engine runs tp=1 where the case asks for tp=8"),
        ("wrong_option", spec_of(max_batch_size=64), "runs max_batch_size=1 where the case asks for max_batch_size=64"),
    ],
)
def test_another_configuration_than_was_asked_for_is_invalid(
    stand_in: Any, start: Start, monkeypatch: pytest.MonkeyPatch, fault: str, spec: Any, reason: str
) -> None:
    assert check_engine(spec, start(spec).info) == ""
    monkeypatch.setenv("TRTLLM_STAND_IN", fault)
    assert reason in check_engine(spec, start(spec).info)


def test_the_resolved_configuration_is_recorded(newest: Any, start: Start) -> None:
    info = start(spec_of("NVFP4", "fp8", tp=4, ep=4, attention_dp=True)).info
    assert (info.backend, info.quant_algo, info.kv_cache_quant_algo) == ("tensorrt_llm", "NVFP4", "FP8")
    assert (info.hardware.name, info.hardware.count, info.hardware.kind) == ("NVIDIA B200", 4, "gpu")
    assert info.versions == {"tensorrt_llm": "1.4.0rc1"}
    assert not info.simulated
    assert info.max_model_len == 512
    assert info.options == {
        "tp": 4,
        "pp": 1,
        "ep": 4,
        "attention_dp": True,
        "max_batch_size": 2048,
        "max_num_tokens": 8192,
        "max_seq_len": None,
        "chunked_prefill": False,
        "memory_fraction": 0.9,
        "block_reuse": False,
        "attention_backend": "TRTLLM",
        "moe_backend": None,
        "stream_interval": 1,
    }


def test_what_may_switch_speculation_off_is_recorded(newest: Any, start: Start) -> None:
    options = {"speculative_config.max_concurrency": 8}
    info = start(spec_of(speculative="mtp", max_draft_len=3, **options)).info
    assert info.options["speculative_config.max_concurrency"] == 8
    assert info.options["speculative_config.acceptance_length_threshold"] is None


@pytest.mark.parametrize(
    ("options", "act", "message"),
    [
        ({}, lambda engine: engine.generate([request(510)], concurrency=1), "make 513, more than max_model_len=512"),
        (
            {"max_seq_len": 8},
            lambda engine: engine.generate([request()], concurrency=1),
            "make 9, more than max_model_len=8",
        ),
        (
            {"max_num_tokens": 2},
            lambda engine: engine.generate([request()], concurrency=1),
            r"longer than max_num_tokens=2; raise it, or say chunked_prefill=True",
        ),
        ({"max_num_tokens": 3}, score, r"a prompt of 4 tokens is longer than max_num_tokens=3"),
        ({"block_reuse": True}, score, "block_reuse=True: TensorRT-LLM gives no log-probabilities"),
        ({}, lambda engine: engine.generate([request(prompt=(320,))], concurrency=1), "between 0 and 319, got 320"),
        ({}, lambda engine: engine.generate([request(prompt=())], concurrency=1), "at least one token"),
        ({}, lambda engine: engine.generate([request(0)], concurrency=1), "max_tokens=0: at least 1"),
        ({}, lambda engine: engine.generate([request()], concurrency=0), "concurrency=0: at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(
    newest: Any, start: Start, options: dict[str, Any], act: Callable[[Any], None], message: str
) -> None:
    engine = start(spec_of(**options))
    with pytest.raises(EngineError, match=message):
        act(engine)
    assert newest.LLM.made[-1].requests == []


def test_with_chunked_prefill_a_long_prompt_is_read(newest: Any, start: Start) -> None:
    engine = start(spec_of(max_num_tokens=2, chunked_prefill=True))
    (answer,) = engine.generate([request()], concurrency=1)
    assert len(answer.token_ids) == 6


def test_fewer_gpus_than_devices_is_said_before_loading(
    newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_STAND_IN_GPUS", "4")
    made = len(newest.LLM.made)
    with pytest.raises(EngineError, match=r"tp=4 x pp=2 need 8 GPUs; found 4 x NVIDIA B200"):
        start(spec_of(tp=4, pp=2))
    assert len(newest.LLM.made) == made


def test_the_engine_is_shut_down_once_and_when_its_configuration_cannot_be_read(
    newest: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    engine.close()
    engine.close()
    assert newest.LLM.made[-1].closed
    with pytest.raises(EngineError, match="the engine is closed"):
        generate(engine)
    monkeypatch.setattr(
        "pytest_inferperf.engines.tensorrt_llm.engine.resolved_of",
        lambda *_args: (_ for _ in ()).throw(OSError("disk")),
    )
    with pytest.raises(OSError, match="disk"):
        start()
    assert newest.LLM.made[-1].closed


def test_tokens_and_texts(newest: Any, start: Start) -> None:
    engine = start()
    (ids,) = engine.encode(["Hello"])
    assert engine.decode([ids]) == ["Hello"]
    assert (engine.prefix_token_id, engine.eos_token_id, engine.vocab_size) == (256, 257, 320)
    assert engine.special_token_ids == {256, 257, 258, *range(259, 320)}
    assert engine.peak_memory_bytes() == 0


def test_without_a_size_in_its_config_the_vocabulary_is_the_tokenizers(
    newest: Any, checkpoints: dict[str, Path], tmp_path: Path, start: Start
) -> None:
    folder = tmp_path / "no-size"
    shutil.copytree(checkpoints["BF16"], folder)
    (folder / "config.json").write_text("{}")
    with engine_module.TensorrtLlmEngine(spec_of(), checkpoint=str(folder)) as engine:
        assert engine.vocab_size == 259
        assert engine.special_token_ids == {256, 257, 258}


def test_a_session_reports_acceptance_and_the_engines_own_clock(
    stand_in: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The GPUs of the stand-in have no telemetry.
    monkeypatch.setattr(engine_module.TensorrtLlmEngine, "watched_hardware", cpu_hardware())
    workload = Workload(isl=8, osl=9, concurrency=2, num_requests=4, rounds=2)
    session = measure_session(start(spec_of(speculative="ngram", max_draft_len=2)), workload)
    for item in session.rounds:
        # 9 tokens in steps of 1, 2, 3, 1, 2.
        assert item.metrics["acceptance_length"] == pytest.approx(9 / 5)
        assert item.metrics["engine_ttft_ms.p50"] == pytest.approx(250)
        assert item.metrics["engine_latency_ms.p99"] == pytest.approx(2000)
    plain = measure_session(start(), workload)
    assert plain.rounds[0].metrics.get("acceptance_length", 1.0) == 1.0


def test_usage_reports_are_off(stand_in: Any, start: Start) -> None:
    # The stand-in refuses to load otherwise.
    start()
    assert os.environ["TRTLLM_NO_USAGE_STATS"] == "1"


def test_math_of_the_toy(newest: Any) -> None:
    toy = __import__("tensorrt_llm.toy").toy
    assert sum(math.exp(toy.logprob(7, token)) for token in range(toy.VOCAB)) == pytest.approx(1)
    assert toy.rank(7, toy.greedy([7])) == 1


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", light_transformers)
    (tmp_path / "config.json").write_text('{"vocab_size": 320}')
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer(tmp_path)
