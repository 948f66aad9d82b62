"""One spec, many servers: each gets the flags it knows, and says what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.needs import needs_gpu
from pytest_inferperf.engines.servers.presets import (
    PRESETS,
    Launch,
    command_with_config,
    plan_launch,
    takes_engine_options,
)
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec

LLAMA = EngineSpec(model="models/llama", served_model_name="llama", quant="NVFP4", kv_cache_dtype="fp8", tp=8)
PLAIN = EngineSpec(model="models/llama", served_model_name="llama")


def command(serve: str, spec: EngineSpec = PLAIN, port: int = 4321) -> str:
    return " ".join(plan_launch(serve, spec, model="/ckpt", port=port).command)


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (
            "trtllm-serve",
            "trtllm-serve /ckpt --host 127.0.0.1 --port 4321 --tp_size 8 --pp_size 1 --extra_llm_api_options {config}",
        ),
        (
            "vllm",
            "vllm serve /ckpt --host 127.0.0.1 --port 4321 --served-model-name llama --tensor-parallel-size 8 "
            "--kv-cache-dtype fp8 --quantization modelopt_fp4",
        ),
        (
            "sglang",
            "python -m sglang.launch_server --model-path /ckpt --host 127.0.0.1 --port 4321 --served-model-name llama "
            "--tp-size 8 --kv-cache-dtype fp8_e4m3 --quantization modelopt_fp4",
        ),
    ],
)
def test_one_spec_runs_on_several_servers(serve: str, expected: str) -> None:
    assert command(serve, LLAMA) == expected


def test_a_users_own_flags_stay_and_are_not_doubled() -> None:
    assert command("vllm serve --max-num-seqs 64 --served-model-name=mine") == (
        "vllm serve /ckpt --host 127.0.0.1 --port 4321 --max-num-seqs 64 --served-model-name=mine"
    )


@pytest.mark.parametrize(
    ("serve", "begins"),
    [
        ("/opt/trt/bin/trtllm-serve", "/opt/trt/bin/trtllm-serve /ckpt --host"),
        ("./trtllm-serve --max_beam_width 1", "./trtllm-serve /ckpt --host"),
        ("/opt/vllm/bin/vllm", "/opt/vllm/bin/vllm serve /ckpt --host"),
        ("/opt/vllm/bin/vllm serve --seed 1", "/opt/vllm/bin/vllm serve /ckpt --host"),
        ("/opt/hf/transformers serve", "/opt/hf/transformers serve /ckpt --host"),
        ("/opt/hf/transformers", "/opt/hf/transformers serve /ckpt --host"),
        ("/opt/llama/llama-server -ngl 99", "/opt/llama/llama-server --model /ckpt --host"),
        ("/usr/bin/ollama", "/usr/bin/ollama serve"),
        (
            "/opt/sg/bin/python3.12 -m sglang.launch_server",
            "/opt/sg/bin/python3.12 -m sglang.launch_server --model-path",
        ),
    ],
)
def test_a_program_is_known_by_its_name_wherever_it_lies(serve: str, begins: str) -> None:
    assert command(serve).startswith(begins)


def test_a_preset_that_is_given_by_its_path_is_given_everything_the_name_gets() -> None:
    named, placed = served(ep=8), served("/opt/trt/bin/trtllm-serve", ep=8)
    assert placed.command == ("/opt/trt/bin/trtllm-serve", *named.command[1:])
    assert (placed.config, placed.environment) == (named.config, named.environment)
    assert takes_engine_options("/opt/trt/bin/trtllm-serve --max_beam_width 1")
    assert needs_gpu(replace(LLAMA, serve="/opt/trt/bin/trtllm-serve"))
    assert not needs_gpu(replace(LLAMA, serve="/opt/vllm/bin/vllm serve"))


@pytest.mark.parametrize("serve", ["/opt/trtllm-serve-wrapper", "/opt/vllm/bin/vllm bench", "/opt/trtllm-serve/run"])
def test_a_program_with_another_name_says_where_its_port_goes(serve: str) -> None:
    with pytest.raises(EngineError, match=r"says \{port\} where the server takes its port"):
        command(serve)


def test_every_preset_binds_the_loopback_interface_at_the_given_port() -> None:
    for name in PRESETS:
        launch = plan_launch(name, PLAIN, model="/ckpt", port=4321)
        told = " ".join((*launch.command, *launch.environment.values()))
        assert "127.0.0.1" in told, name
        assert "4321" in told, name
        assert launch.ready_url.startswith("http://127.0.0.1:4321/"), name


def test_the_name_in_requests_is_the_one_the_server_was_told() -> None:
    assert plan_launch("vllm", PLAIN, model="/ckpt", port=1).request_model == "llama"
    assert plan_launch("trtllm-serve", PLAIN, model="/ckpt", port=1).request_model == "/ckpt"
    assert plan_launch("ollama", PLAIN, model="/ckpt", port=1).request_model == "llama"


def test_any_other_command_fills_its_placeholders() -> None:
    launch = plan_launch(
        "python 'my server.py' --listen {host}:{port} --weights {model}", PLAIN, model="/c", port=9, ready_path="/up"
    )
    assert launch.command == ("python", "my server.py", "--listen", "127.0.0.1:9", "--weights", "/c")
    assert launch.ready_url == "http://127.0.0.1:9/up"


@pytest.mark.parametrize(
    ("serve", "spec", "message"),
    [
        ("vlm", PLAIN, "Did you mean 'vllm'? Servers: llama-server, ollama, sglang"),
        ("my-server --port 80", PLAIN, "says {port} where the server takes its port"),
        ("my-server {prt} {port}", PLAIN, "unknown placeholder ('prt'). Placeholders: {host}, {port}, {model}"),
        ("my-server 'unclosed {port}", PLAIN, "is no command line: No closing quotation"),
        ("", PLAIN, "serve is empty. Servers: llama-server"),
        (
            "vllm",
            EngineSpec(model="m", served_model_name="m", kv_cache_dtype="nvfp4"),
            "KV cache types there: auto, fp8.",
        ),
        ("transformers", EngineSpec(model="m", served_model_name="m", tp=2), "transformers has no flag for tp=2"),
        ("llama-server", EngineSpec(model="m", served_model_name="m", ep=2), "llama-server has no flag for ep=2"),
    ],
)
def test_what_a_server_cannot_do_is_said(serve: str, spec: EngineSpec, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        plan_launch(serve, spec, model="/ckpt", port=4321)
    assert message in str(caught.value)


def served(serve: str = "trtllm-serve", **changes: Any) -> Launch:
    options = tuple(sorted(changes.pop("engine_options", {}).items()))
    return plan_launch(serve, replace(LLAMA, engine_options=options, **changes), model="/ckpt", port=1)


def test_trtllm_serve_gets_flags_for_plain_settings_and_a_file_for_the_rest() -> None:
    options = {
        "max_batch_size": 64,
        "speculative": "mtp",
        "max_draft_len": 3,
        "attention_dp": True,
        "moe_backend": "TRTLLM",
    }
    launch = served(ep=8, engine_options=options)
    words = " ".join(launch.command)
    assert "--tp_size 8 --pp_size 1 --ep_size 8 --max_batch_size 64 --extra_llm_api_options {config}" in words
    assert json.loads(launch.config) == {
        "enable_attention_dp": True,
        "enable_chunked_prefill": False,
        "kv_cache_config": {"dtype": "fp8", "enable_block_reuse": False},
        "moe_config": {"backend": "TRTLLM"},
        # Both releases read this spelling.
        "speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3},
    }
    assert launch.environment["TRTLLM_NO_USAGE_STATS"] == "1"


def test_no_setting_of_trtllm_serve_is_passed_twice() -> None:
    flags = {
        word.removeprefix("--") for word in served(engine_options={"max_seq_len": 4096}).command if word[:2] == "--"
    }
    named = {
        "tp_size": "tensor_parallel_size",
        "pp_size": "pipeline_parallel_size",
        "ep_size": "moe_expert_parallel_size",
    }
    assert not {named.get(flag, flag) for flag in flags} & set(json.loads(served().config))


def test_the_configuration_file_is_there_while_the_server_starts() -> None:
    launch = served()
    with command_with_config(launch) as command:
        path = Path(command[-1])
        assert path.read_text() == launch.config
    assert not path.exists()
    plain = plan_launch("vllm", PLAIN, model="/ckpt", port=1)
    with command_with_config(plain) as command:
        assert command == plain.command


def test_a_configuration_file_of_the_users_own_stands_alone() -> None:
    own = "trtllm-serve --config mine.yaml"
    assert command(own).endswith("--tp_size 1 --pp_size 1 --config mine.yaml")
    for changes in ({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "auto", "engine_options": {"max_batch_size": 8}}):
        with pytest.raises(EngineError, match=r"trtllm-serve --config: its file and the mark's engine_options"):
            served(own, **changes)


def test_options_about_the_connection_are_not_the_servers() -> None:
    launch = served(engine_options={"tokenizer": "org/other"})
    assert "org/other" not in " ".join((*launch.command, launch.config))
    with pytest.raises(EngineError, match="engine option max_batch_size=0: at least 1"):
        served(engine_options={"max_batch_size": 0})
