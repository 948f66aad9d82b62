"""`trtllm-serve` as its command line is read in its source, over the simulated server: strict, and without a GPU.

An unknown flag, a file with an unknown setting, and a setting in both are exit status 2 with a message. Where the real
one would load a model, this one wants a config.json. What it was started with goes to $FAKE_TRTLLM_SERVE_LOG;
$FAKE_TRTLLM_SERVE_ITL_MS makes it slow.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

STAND_IN = Path(__file__).parent / "trtllm_stand_in"

FLAGS: Mapping[str, str] = {
    "--tp_size": "tensor_parallel_size",
    "--pp_size": "pipeline_parallel_size",
    "--ep_size": "moe_expert_parallel_size",
    "--max_batch_size": "max_batch_size",
    "--max_num_tokens": "max_num_tokens",
    "--max_seq_len": "max_seq_len",
    "--max_beam_width": "max_beam_width",
    "--host": "",
    "--port": "",
    "--kv_cache_dtype": "kv_cache_config.dtype",
    "--kv_cache_free_gpu_memory_fraction": "kv_cache_config.free_gpu_memory_fraction",
    "--extra_llm_api_options": "",
    "--config": "",
}
"""Flags with a value, and the argument of `LLM` that each one sets."""

SWITCHES: Mapping[str, str] = {"--enable_chunked_prefill": "enable_chunked_prefill", "--trust_remote_code": ""}
_ALIASES = {"speculative_model_dir": "speculative_model"}

LATER = ("--config", "--no-telemetry")
"""Flags that 1.2.1 may lack."""


def fail(message: str) -> NoReturn:
    print(f"Usage: trtllm-serve [OPTIONS] MODEL\n\nError: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(words: list[str], *, old: bool) -> tuple[str, dict[str, str]]:
    """Split a command line into its model and its flags."""
    models, flags, rest = [], {}, list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("-"):
            models.append(name)
            continue
        switch = name in SWITCHES or name == "--no-telemetry"
        if (not switch and name not in FLAGS) or (old and name in LATER):
            fail(f"No such option: {name}")
        if name in flags:
            fail(f"{name} is given twice")
        if not switch and not equals:
            if not rest:
                fail(f"Option {name!r} requires an argument.")
            value = rest.pop(0)
        flags[name] = value
    if len(models) != 1:
        fail("Missing argument 'MODEL'." if not models else f"Got unexpected extra argument ({models[1]})")
    return models[0], flags


def read_config(path: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"{path}: {error}")
    if not isinstance(found, dict):
        fail(f"{path}: not a mapping")
    return found


def check_config(config: Mapping[str, Any]) -> None:
    """Build the arguments as `LLM` would; the stand-in's classes forbid what they do not know."""
    from tensorrt_llm.llmapi import llm_args

    kinds = {"MTP": "MTPDecodingConfig", "NGram": "NGramDecodingConfig", "Draft_Target": "DraftTargetDecodingConfig"}
    if hasattr(llm_args, "Eagle3DecodingConfig"):
        # The later release reads the older name as an alias; the earlier one has that alone.
        kinds |= dict.fromkeys(("Eagle", "Eagle3"), "Eagle3DecodingConfig")
    else:
        kinds["Eagle"] = "EagleDecodingConfig"
    try:
        for name, value in config.items():
            if name not in llm_args.TorchLlmArgs.model_fields:
                raise ValueError(f"got invalid argument: {name}")
            if not isinstance(value, Mapping):
                continue
            kind = "".join(part.capitalize() for part in name.split("_"))
            kind = kinds[value["decoding_type"]] if name == "speculative_config" else kind
            known = getattr(llm_args, kind)
            # The alias of the draft model's older name, which the later release reads too.
            renamed: dict[str, Any] = {
                str(key if key in known.model_fields else _ALIASES.get(key, key)): value[key] for key in value
            }
            known(**renamed)
    except (AttributeError, KeyError, ValueError) as error:
        fail(f"Invalid config: {error}")


def start(words: list[str]) -> int:
    """Check everything, then serve."""
    old = os.environ.get("TRTLLM_STAND_IN_VERSION", "").startswith("1.2")
    model, flags = parse(words, old=old)
    if "TRTLLM_NO_USAGE_STATS" not in os.environ and "--no-telemetry" not in flags:
        fail("usage would be reported")
    if not (Path(model) / "config.json").is_file():
        fail(f"no config.json in {model}")
    files = [flags[name] for name in ("--extra_llm_api_options", "--config") if name in flags]
    config = read_config(files[0]) if files else {}
    check_config(config)
    for name, path in {**FLAGS, **SWITCHES}.items():
        head, _, leaf = path.partition(".")
        if name in flags and path and head in config and (not leaf or leaf in config[head]):
            fail(f"{path} is in {files[0]} and in {name}: releases differ in which one wins")
    if log := os.environ.get("FAKE_TRTLLM_SERVE_LOG"):
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"words": words, "config": config}) + "\n")
    from pytest_inferperf.cli import main

    itl = os.environ.get("FAKE_TRTLLM_SERVE_ITL_MS", "10")
    return main(
        [
            *("simulate-server", "--host", flags.get("--host", "localhost"), "--port", flags.get("--port", "8000")),
            *("--model", model, "--ttft-ms", "50", "--itl-ms", itl),
        ]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(STAND_IN))
    raise SystemExit(start(sys.argv[1:]))
