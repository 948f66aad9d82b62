"""A managed `trtllm-serve`, from the mark to the verdict, with a program that is as strict as the real one."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tokenizers  # noqa: F401 - a C extension, which cannot be loaded twice

from pytest_inferperf.engines.hardware import GpuMachine
from pytest_inferperf.engines.openai.served import ServedEngine
from pytest_inferperf.errors import EngineError
from pytest_inferperf.model.case import EngineSpec
from tests.engines import fake_trtllm_serve
from tests.engines.tensorrt_llm.conftest import write_checkpoint, write_weights
from tests.plugin.servers import ServedProject

pytestmark = pytest.mark.newest

B200 = "NVIDIA B200"
OPTIONS: dict[str, str | int] = {
    "max_batch_size": 64,
    "max_seq_len": 512,
    "speculative": "mtp",
    "max_draft_len": 1,
    "moe_backend": "TRTLLM",
}
SPEC = EngineSpec(
    model="m", served_model_name="m", backend="openai", tp=8, ep=8, engine_options=tuple(sorted(OPTIONS.items()))
)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in a folder of its own, which is on the PATH; what it was started with is logged beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "trtllm-serve"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_trtllm_serve.__file__} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE_TRTLLM_SERVE_LOG", str(folder / "log"))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return path


def starts(program: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (program.parent / "log").read_text().splitlines()]


@pytest.fixture
def node(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> ServedProject:
    """A project on a machine with eight B200, of which nothing else is known."""
    from pytest_inferperf.engines import hardware
    from pytest_inferperf.engines.hardware import Gpu

    machine = GpuMachine(gpus=tuple(Gpu(name=B200, sm=100, memory_gib=178.0) for _ in range(8)))
    monkeypatch.setattr(hardware, "look_at_gpus", lambda: machine)
    # The real transformers would load torch, which a process can do once.
    monkeypatch.syspath_prepend(fake_trtllm_serve.STAND_IN / "light")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    return served


# The simulated server's tokens are words, and the tokenizer beside the checkpoint knows letters.
ONCE = ("--inferperf-set=sessions=1", "-o", "inferperf_max_count_error=1")


def write(node: ServedProject, serve: str) -> None:
    write_weights(write_checkpoint(node.path / "tiny-llama"))
    node.test(
        f"serve={serve!r}, tp=8, ep=8, engine_options={OPTIONS!r}, isl=16, osl=8, concurrency=2, num_requests=4, rounds=2",
        "throughput_floor(output_throughput=70)",
    )


@pytest.mark.parametrize("placed", [False, True])
def test_a_launch_is_measured_and_passes(node: ServedProject, program: Path, placed: bool) -> None:
    """2 streams of 8 tokens in 120 ms are 133 tokens/s; the program by its name, and by its path."""
    write(node, str(program) if placed else "trtllm-serve")
    results = node.path / "results.json"
    result = node.run(*ONCE, f"--inferperf-json={results}")
    result.assert_outcomes(passed=1)
    (start,) = starts(program)
    words = " ".join(start["words"][1:])
    assert words.startswith("--host 127.0.0.1 --port ")
    assert "--tp_size 8 --pp_size 1 --ep_size 8 --max_batch_size 64 --max_seq_len 512 --extra_llm_api_options " in words
    assert start["config"] == {
        "enable_chunked_prefill": False,
        "kv_cache_config": {"dtype": "auto", "enable_block_reuse": False},
        "moe_config": {"backend": "TRTLLM"},
        "speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1},
    }
    (record,) = json.loads(results.read_text())["records"]
    assert record["result"]["engine"]["hardware"] == {"name": B200, "count": 8, "kind": "gpu"}
    assert not psutil.Process().children(recursive=True)


def test_a_slower_server_fails(node: ServedProject, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 streams of 8 tokens in 330 ms are 48 tokens/s."""
    monkeypatch.setenv("FAKE_TRTLLM_SERVE_ITL_MS", "40")
    write(node, "trtllm-serve")
    result = node.run(*ONCE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*output_throughput * is below its floor 70*"])
    assert not psutil.Process().children(recursive=True)


def test_a_program_that_is_only_known_by_its_path_still_needs_gpus(served: ServedProject, program: Path) -> None:
    write(served, str(program))
    result = served.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *needs 8 GPUs*found no NVIDIA GPU*"])
    assert not (program.parent / "log").exists()


def launch(served: ServedProject, spec: EngineSpec) -> None:
    ServedEngine(spec, checkpoint=served.path / "tiny-llama", load_timeout_s=60, log_dir=served.path / "logs").close()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tensor_parallel 8", "Error: No such option: --tensor_parallel"),
        ("--max_beam_width", "Error: Option '--max_beam_width' requires an argument"),
        ("--max_beam_width 1 --max_beam_width 2", "Error: --max_beam_width is given twice"),
        ("other-model", "Error: Got unexpected extra argument (other-model)"),
    ],
)
def test_a_command_line_that_it_refuses_ends_the_launch_with_its_words(
    served: ServedProject, program: Path, flags: str, message: str
) -> None:
    with pytest.raises(EngineError) as caught:
        launch(served, replace(SPEC, serve=f"trtllm-serve {flags}"))
    assert "ended with exit status 2" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("max_batch: 8", "Error: Invalid config: got invalid argument: max_batch"),
        ("kv_cache_config: {free_gpu_fraction: 0.5}", "Extra inputs are not permitted"),
        ("moe_config: {backend: FAST}", "Input should be one of"),
        ("tensor_parallel_size: 4", "tensor_parallel_size is in "),
        ("- a list", "not a mapping"),
    ],
)
def test_a_file_that_it_refuses_ends_the_launch_with_its_words(
    served: ServedProject, program: Path, config: str, message: str
) -> None:
    """A file of the user's own: ours is made of options that were checked."""
    path = served.path / "mine.yaml"
    path.write_text(config)
    with pytest.raises(EngineError) as caught:
        launch(served, replace(SPEC, engine_options=(), serve=f"trtllm-serve --extra_llm_api_options {path}"))
    assert "ended with exit status 2" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("version", ["1.2.1", "1.4.0rc1"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        OPTIONS,
        {"speculative": "draft_target", "max_draft_len": 3, "draft_model": "org/draft"},
        {"speculative": "eagle3", "max_draft_len": 3, "draft_model": "org/draft"},
        {"speculative": "ngram", "max_draft_len": 3},
        {
            "cuda_graphs": True,
            "cuda_graph_padding": True,
            "memory_fraction": 0.8,
            "scheduler_policy": "MAX_UTILIZATION",
        },
        {"attention_dp": True, "attention_backend": "FLASHINFER", "stream_interval": 4, "max_num_tokens": 4096},
    ],
)
def test_what_we_ask_for_is_taken_by_both_releases(
    served: ServedProject, program: Path, monkeypatch: pytest.MonkeyPatch, version: str, options: dict[str, Any]
) -> None:
    from pytest_inferperf.engines.servers.presets import command_with_config, plan_launch

    monkeypatch.setenv("TRTLLM_STAND_IN_VERSION", version)
    spec = replace(SPEC, engine_options=tuple(sorted(options.items())), kv_cache_dtype="fp8")
    planned = plan_launch("trtllm-serve", spec, model="/m", port=1)
    with command_with_config(planned) as command:
        _, flags = fake_trtllm_serve.parse(list(command[1:]), old=version.startswith("1.2"))
        config = fake_trtllm_serve.read_config(flags["--extra_llm_api_options"])
    with monkeypatch.context() as patch:
        patch.syspath_prepend(fake_trtllm_serve.STAND_IN)
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
            patch.delitem(sys.modules, name)
        fake_trtllm_serve.check_config(config)
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]:
            patch.delitem(sys.modules, name)
