"""Connects to the endpoint that a spec names: its options, the model there, and what it says it runs on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.openai.client import fetch, json_of
from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.engines.openai.engine import OpenAIEngine
from pytest_inferperf.errors import EngineError, choices
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import UNVERIFIED, EngineInfo, Hardware

__all__ = ["OPTIONS", "check_options", "endpoint_hardware", "max_model_len", "open_url"]

OPTIONS: Mapping[str, type] = {"tokenizer": str, "max_model_len": int, "request_model": str, "ca_file": str}
"""The `engine_options` of this backend."""

_UNKNOWN_LENGTH = 1 << 30


def open_url(spec: EngineSpec, *, timeout_s: float = 600.0) -> OpenAIEngine:
    """Connect to the endpoint that `spec.url` names.

    Raises `SettingsError` for a wrong URL or a missing API key, `EngineError` for an endpoint that does not answer or
    does not serve the model.
    """
    started = time.perf_counter()
    options = check_options(spec)
    endpoint = Endpoint.parse(
        spec.url, model=spec.model, api_key_env=spec.api_key_env, ca_file=str(options.get("ca_file", ""))
    )
    models = _models(endpoint, timeout_s)
    name = _request_model(spec, options, models, endpoint)
    endpoint = Endpoint.parse(spec.url, model=name, api_key_env=spec.api_key_env, ca_file=endpoint.ca_file)
    listed = models.get(name, {}).get("max_model_len")
    # The server keeps to itself how its weights are quantized: the context of every result says so.
    info = EngineInfo(
        backend="openai",
        hardware=endpoint_hardware(spec),
        quant_algo=UNVERIFIED,
        kv_cache_quant_algo=UNVERIFIED,
        compute_dtype=UNVERIFIED,
        simulated=False,
        max_model_len=max_model_len(spec, listed),
        checkpoint=endpoint.shown,
        checkpoint_hash=UNVERIFIED,
        options=options,
        versions={"endpoint": f"{endpoint.shown} {name}, quantization {UNVERIFIED}"},
        load_s=time.perf_counter() - started,
    )
    return OpenAIEngine(spec, endpoint, info=info, timeout_s=timeout_s)


def endpoint_hardware(spec: EngineSpec) -> Hardware:
    """Return what the endpoint of `spec.url` runs on: `NVIDIA B200 x8` as the mark says, else a name of its own.

    So the figures of an endpoint whose devices are not known are never compared with those of another.
    """
    if not spec.hardware:
        endpoint = Endpoint.parse(spec.url, model="")
        return Hardware(name=f"endpoint {endpoint.host}", count=1, kind="cpu")
    match = re.fullmatch(r"(.*\S)\s+x(\d+)", spec.hardware)
    return Hardware(name=match[1] if match else spec.hardware, count=int(match[2]) if match else 1, kind="gpu")


def check_options(spec: EngineSpec, *, others: bool = False) -> dict[str, Any]:
    """Return the `engine_options` of this backend. Raises `EngineError` for an unknown one or a wrong type.

    With `others`, the rest belongs to the server that is started, and is left alone.
    """
    options = dict(spec.engine_options)
    for name, value in options.items():
        if name not in OPTIONS and others:
            continue
        if name not in OPTIONS:
            raise EngineError(f"unknown engine option {name!r}. {choices(name, OPTIONS, what='Options')}")
        if not isinstance(value, OPTIONS[name]) or isinstance(value, bool):
            raise EngineError(f"engine option {name}={value!r}: takes {OPTIONS[name].__name__}")
    return options


def max_model_len(spec: EngineSpec, listed: object) -> int:
    """Return the context length: the option's, else the one the server lists, else config.json's, else no limit."""
    config = Path(spec.model) / "config.json"
    known = [dict(spec.engine_options).get("max_model_len"), listed]
    if config.is_file():
        known.append(json.loads(config.read_bytes()).get("max_position_embeddings"))
    return next((int(value) for value in known if isinstance(value, int) and value > 0), _UNKNOWN_LENGTH)


def _models(endpoint: Endpoint, timeout_s: float) -> dict[str, dict[str, Any]]:
    """Return what `/models` lists, by name; nothing where there is no such list."""
    found = json_of(fetch(endpoint, endpoint.get("models"), timeout_s=timeout_s))
    rows = found.get("data") if isinstance(found, dict) else None
    listed = [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)] if rows else []
    return {row["id"]: row for row in listed}


def _request_model(spec: EngineSpec, options: Mapping[str, Any], models: Mapping[str, Any], endpoint: Endpoint) -> str:
    """Return the name that requests use. Raises `EngineError` where the server lists others only."""
    if "request_model" in options:
        return str(options["request_model"])
    names = (spec.model, spec.served_model_name)
    if not models:
        return names[Path(spec.model).is_dir()]
    for name in names:
        if name in models:
            return name
    raise EngineError(
        f"{endpoint.shown} does not serve {spec.model!r} or {spec.served_model_name!r}. "
        f"{choices(spec.served_model_name, models, what='Models there')} "
        'Name one: engine_options={"request_model": "…"}'
    )
