"""What each model server calls its flags: one table, so that one `EngineSpec` runs on several servers.

The flags are those of trtllm-serve 1.2, vLLM 0.11, SGLang 0.5, transformers 5, llama.cpp and ollama as their
documentation has them. A flag that the user's own command gives already is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_inferperf.engines.tensorrt_llm.served import served_arguments
from pytest_inferperf.engines.tensorrt_llm.versions import QUIET
from pytest_inferperf.errors import EngineError, choices
from pytest_inferperf.model.case import EngineSpec

__all__ = [
    "PRESETS",
    "Launch",
    "Preset",
    "command_with_config",
    "loads_model",
    "plan_launch",
    "server_name",
    "takes_engine_options",
]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One server program. A flag that is "" does not exist there."""

    name: str
    program: tuple[str, ...]
    """What its command line begins with."""

    host: str = "--host"
    port: str = "--port"
    model: str = ""
    """The flag of the model; "" for the first argument after the program."""

    takes_model: bool = True
    served_model_name: str = ""
    """The flag for the name that requests use; without one, requests use the model itself."""

    tp: str = ""
    pp: str = ""
    ep: str = ""
    ep_is_switch: bool = False
    """True where expert parallelism has no size: it is on or off."""

    kv_cache_dtype: str = ""
    kv_cache_dtypes: Mapping[str, str] = field(default_factory=dict)
    """Our name of a KV cache type to the server's."""

    quantization: str = ""
    quantizations: Mapping[str, str] = field(default_factory=dict)
    """Our name of a quantization to the server's, for checkpoints made by ModelOpt."""

    reads_modelopt: bool = True
    """Whether it can load a checkpoint that ModelOpt quantized."""

    ready_path: str = "/health"
    """Answers 200 once requests can be served."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """`{host}` and `{port}` are filled in."""

    config: tuple[str, ...] = ()
    """The flags of a configuration file, the one we give first; with one, `engine_options` are TensorRT-LLM's."""


PRESETS: dict[str, Preset] = {
    row.name: row
    for row in (
        Preset(
            name="trtllm-serve",
            program=("trtllm-serve",),
            # What it is asked for is TensorRT-LLM's own business: see engines.tensorrt_llm.served. The checkpoint's own
            # hf_quant_config.json says how the weights are quantized.
            config=("--extra_llm_api_options", "--config"),
            environment=QUIET,
        ),
        Preset(
            name="vllm",
            program=("vllm", "serve"),
            served_model_name="--served-model-name",
            tp="--tensor-parallel-size",
            pp="--pipeline-parallel-size",
            ep="--enable-expert-parallel",
            ep_is_switch=True,
            kv_cache_dtype="--kv-cache-dtype",
            kv_cache_dtypes={"fp8": "fp8"},
            quantization="--quantization",
            quantizations={"FP8": "modelopt", "NVFP4": "modelopt_fp4"},
        ),
        Preset(
            name="sglang",
            program=("python", "-m", "sglang.launch_server"),
            model="--model-path",
            served_model_name="--served-model-name",
            tp="--tp-size",
            pp="--pp-size",
            ep="--ep-size",
            kv_cache_dtype="--kv-cache-dtype",
            kv_cache_dtypes={"fp8": "fp8_e4m3", "nvfp4": "fp4_e2m1"},
            quantization="--quantization",
            quantizations={"FP8": "modelopt_fp8", "NVFP4": "modelopt_fp4"},
        ),
        Preset(name="transformers", program=("transformers", "serve"), reads_modelopt=False),
        Preset(
            name="llama-server",
            program=("llama-server",),
            model="--model",
            served_model_name="--alias",
            reads_modelopt=False,
        ),
        Preset(
            name="ollama",
            program=("ollama", "serve"),
            host="",
            port="",
            takes_model=False,
            reads_modelopt=False,
            ready_path="/",
            environment={"OLLAMA_HOST": "{host}:{port}"},
        ),
    )
}
"""By the name that `serve=` takes."""

HOST = "127.0.0.1"

CONFIG = "{config}"
"""Stands in a command for the path of the configuration file, which is written when the server starts."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start one server, and how to speak to it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    base_url: str
    """Without `/v1`."""

    ready_url: str
    request_model: str
    """What requests put into "model"."""

    config: str = ""
    """The text of a configuration file; the command has `CONFIG` where its path belongs. "" for none."""


def plan_launch(serve: str, spec: EngineSpec, *, model: str, port: int, ready_path: str = "") -> Launch:
    """Turn `serve` into a command line for `spec`.

    `serve` is the name of a preset, a command line that begins like one (`vllm serve --max-num-seqs 64`), either with
    the path of its program (`/opt/venv/bin/vllm serve`), or any other command line with `{port}` and, where it takes them, `{host}`, `{model}` and `{served_model_name}` in it. `model` is
    the folder or hub id to load. Raises `EngineError` for a command that names no port, and for a spec that the server
    has no flag for.
    """
    words = _words(serve)
    found = _preset(words)
    if found is None:
        return _own_command(serve, words, spec, model=model, port=port, ready_path=ready_path or "/health")
    preset, program, given = found
    if spec.quant != "BF16" and not preset.reads_modelopt:
        able = ", ".join(row.name for row in PRESETS.values() if row.reads_modelopt)
        raise EngineError(f"{preset.name} cannot load a checkpoint in {spec.quant}. Servers that can: {able}.")
    added: list[str] = []

    def add(flag: str, value: str = "") -> None:
        if flag and not any(word == flag or word.startswith(f"{flag}=") for word in given):
            added.extend((flag, value) if value else (flag,))

    if preset.takes_model and not preset.model:
        # The first argument, wherever the user's own flags stand.
        added.append(model)
    elif preset.takes_model:
        add(preset.model, model)
    add(preset.host, HOST)
    add(preset.port, str(port))
    add(preset.served_model_name, spec.served_model_name)
    config = _tensorrt_llm(preset, spec, given, add) if preset.config else ""
    for name, flag, value in (("tp", preset.tp, spec.tp), ("pp", preset.pp, spec.pp)):
        if value != 1 and not preset.config:
            _need(flag, f"{name}={value}", preset)
            add(flag, str(value))
    if spec.ep != 1 and not preset.config:
        _need(preset.ep, f"ep={spec.ep}", preset)
        add(preset.ep, "" if preset.ep_is_switch else str(spec.ep))
    if spec.kv_cache_dtype != "auto" and not preset.config:
        if spec.kv_cache_dtype not in preset.kv_cache_dtypes:
            known = choices(spec.kv_cache_dtype, ("auto", *preset.kv_cache_dtypes), what="KV cache types there")
            raise EngineError(f"{preset.name} has no kv_cache_dtype={spec.kv_cache_dtype!r}. {known}")
        add(preset.kv_cache_dtype, preset.kv_cache_dtypes[spec.kv_cache_dtype])
    if spec.quant in preset.quantizations:
        add(preset.quantization, preset.quantizations[spec.quant])
    filled = {name: value.format(host=HOST, port=port) for name, value in preset.environment.items()}
    base_url = f"http://{HOST}:{port}"
    return Launch(
        command=(*program, *added, *given),
        environment=filled,
        base_url=base_url,
        ready_url=base_url + (ready_path or preset.ready_path),
        request_model=spec.served_model_name if preset.served_model_name or not preset.takes_model else model,
        config=config,
    )


def _tensorrt_llm(preset: Preset, spec: EngineSpec, given: Sequence[str], add: Callable[[str, str], None]) -> str:
    """Add the flags of trtllm-serve; return the text of its configuration file.

    Releases differ in which of the two wins, so each setting is in one of them. Raises `EngineError` for options that a
    file of the user's own leaves no place for.
    """
    flags, objects = served_arguments(spec)
    for flag, value in flags:
        add(flag, value)
    own = next((word for word in given for name in preset.config if word == name or word.startswith(f"{name}=")), "")
    if not own:
        add(preset.config[0], CONFIG)
        return json.dumps(objects, indent=1, sort_keys=True)
    if spec.engine_options or spec.kv_cache_dtype != "auto":
        raise EngineError(
            f"{preset.name} {own}: its file and the mark's engine_options or kv_cache_dtype would both set the "
            "configuration. Say all of it in the mark, or all of it in the file."
        )
    return ""


def takes_engine_options(serve: str) -> bool:
    """Whether the server that `serve` starts is given the mark's `engine_options`."""
    found = _preset(_words(serve))
    return found is not None and bool(found[0].config)


def server_name(serve: str) -> str:
    """Return the name of the preset that `serve` starts; "" for a command line of the user's own."""
    found = _preset(_words(serve))
    return found[0].name if found is not None else ""


@contextlib.contextmanager
def command_with_config(launch: Launch) -> Iterator[tuple[str, ...]]:
    """Write the configuration file, and yield the command that names it; the file is gone afterwards."""
    if not launch.config:
        yield launch.command
        return
    with tempfile.TemporaryDirectory(prefix="inferperf-server-") as folder:
        # JSON is YAML.
        path = Path(folder) / "config.yaml"
        path.write_text(launch.config, encoding="utf-8")
        yield tuple(str(path) if word == CONFIG else word for word in launch.command)


def loads_model(spec: EngineSpec) -> bool:
    """Whether what runs `spec` is given its model here, instead of finding it by itself."""
    if not spec.serve:
        return not spec.url
    words = _words(spec.serve)
    found = _preset(words)
    return found[0].takes_model if found is not None else any("{model}" in word for word in words)


def _preset(words: tuple[str, ...]) -> tuple[Preset, tuple[str, ...], tuple[str, ...]] | None:
    """Return the preset, its program as it is to be started, and the user's own flags; None for another command line."""
    first = Path(words[0])
    for row in PRESETS.values():
        size = len(row.program)
        if words == (row.name,):
            return row, row.program, ()
        if (_is_program(first.name, row.program[0]), *words[1:size]) == (True, *row.program[1:]):
            return row, words[:size], words[size:]
        # The path of a program alone: what is started with it is said by the preset.
        if words == (str(first),) and first.name == row.name == row.program[0]:
            return row, (words[0], *row.program[1:]), ()
    return None


def _is_program(name: str, program: str) -> bool:
    """Whether a file name is that of a program; of Python, also one with a version."""
    return name == program or (program == "python" and re.fullmatch(r"python3(\.\d+)?", name) is not None)


def _words(serve: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(serve))
    except ValueError as error:
        raise EngineError(f"serve={serve!r} is no command line: {error}.") from None
    if not words:
        raise EngineError(f"serve is empty. {choices('', PRESETS, what='Servers')} Or a command line with {{port}}.")
    return words


def _need(flag: str, asked: str, preset: Preset) -> None:
    if not flag:
        raise EngineError(f"{preset.name} has no flag for {asked}: it runs on one device.")


def _own_command(
    serve: str, words: tuple[str, ...], spec: EngineSpec, *, model: str, port: int, ready_path: str
) -> Launch:
    values = {"host": HOST, "port": str(port), "model": model, "served_model_name": spec.served_model_name}
    if not any("{port}" in word for word in words):
        raise EngineError(
            f"serve={serve!r}: {choices(words[0], PRESETS, what='Servers')} Any other command line says {{port}} where "
            "the server takes its port, so that a free one can be given."
        )
    try:
        command = tuple(word.format_map(values) for word in words)
    except (KeyError, ValueError, IndexError) as error:
        fields = ", ".join(f"{{{name}}}" for name in values)
        raise EngineError(f"serve={serve!r}: unknown placeholder ({error}). Placeholders: {fields}.") from None
    named = any("{served_model_name}" in word for word in words)
    base_url = f"http://{HOST}:{port}"
    return Launch(
        command=command,
        environment={},
        base_url=base_url,
        ready_url=base_url + ready_path,
        request_model=spec.served_model_name if named else model,
    )
