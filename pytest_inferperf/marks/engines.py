"""The engine keywords of the `inferperf` mark become a resolved engine here, or a clear `MarkError`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.checkpoint.sources import is_quantized
from pytest_inferperf.errors import CheckpointError, EngineError, MarkError, SettingsError, choices
from pytest_inferperf.marks.origin import Origin, existing
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import BLOCK_SCALES, NO_LESSONS, NOT_MADE, QAT, QUANTIZATIONS

__all__ = ["SERVERS", "engine_like", "make_engine"]

SERVERS = ("serve", "url")
"""Where an engine in a server is: one of them."""


def make_engine(values: dict[str, Any], origin: Origin) -> EngineSpec:
    """Make the engine of checked keywords, one value each. Raises `MarkError` where they do not fit together."""
    model = str(values["model"])
    folder = _model_folder("model", model, origin)
    for name in ("calib_dataset", "qat_dataset"):
        if texts := values.get(name, ""):
            found = existing(texts, origin.folder)
            if found is None or not found.is_file():
                raise MarkError(
                    f"inferperf: {name}={texts!r}: no such file, relative to {origin.folder}. "
                    'Give a JSONL file with a "text" field per line.'
                )
            values[name] = str(found)
    backend = _server_backend(values, origin) or values.setdefault("backend", origin.default_backend)
    if origin.backends and backend not in origin.backends:
        raise MarkError(
            f"inferperf: unknown backend {backend!r}.\n{choices(backend, origin.backends, what='Backends')}"
        )
    _check_precision(values, folder, origin)
    values["model"] = str(folder) if folder is not None else model
    # A hub id's last part, or the folder's name: what the model is called, not where it lies.
    values.setdefault("served_model_name", (folder.name if folder else model.rsplit("/", 1)[-1]).lower())
    options = dict(values.get("engine_options", {}))
    if isinstance(draft := options.get("draft_model"), str):
        options["draft_model"] = str(_model_folder("engine option draft_model", draft, origin) or draft)
    values["engine_options"] = tuple(sorted(options.items()))
    spec = EngineSpec(**values)
    if spec.server:
        _check_server(spec)
    return spec


def _model_folder(keyword: str, model: str, origin: Origin) -> Path | None:
    """Find the folder of a model; None for a hub id. Raises `MarkError`."""
    folder = existing(model, origin.folder)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise MarkError(f"inferperf: {keyword}={model!r}: {folder} has no config.json; give a Hugging Face folder.")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise MarkError(
            f"inferperf: {keyword}={model!r}: no such folder, relative to {origin.folder}. "
            'Give a folder in Hugging Face layout, or a hub id such as "org/name".'
        )
    return folder


def _server_backend(values: dict[str, Any], origin: Origin) -> str:
    """Set the backend of an engine in a server, and return it; "" for any other engine. Raises `MarkError`."""
    given = [name for name in SERVERS if values.get(name)]
    if len(given) > 1:
        raise MarkError(
            f"inferperf: serve={values['serve']!r} and url={values['url']!r}: a server is started here, or runs "
            "elsewhere already. Keep one."
        )
    backend = values.get("backend", "auto")
    if not given:
        if (backend if backend != "auto" else origin.default_backend) == "openai":
            raise MarkError(
                'inferperf: backend="openai" is an engine in a server: say which to start (serve="vllm"), or where one '
                'runs (url="http://host:8000").'
            )
        for name in ("api_key_env", "hardware"):
            if values.get(name):
                raise MarkError(f"inferperf: {name}={values[name]!r} is about an endpoint, and url= is missing.")
        return ""
    if backend not in ("auto", "openai"):
        raise MarkError(
            f"inferperf: backend={backend!r} runs in a process of our own, and {given[0]}={values[given[0]]!r} is a "
            'server. Leave backend out, or say backend="openai".'
        )
    values["backend"] = "openai"
    return "openai"


def _check_server(spec: EngineSpec) -> None:
    """Refuse at collection what could never be opened."""
    if spec.serve:
        from pytest_inferperf.engines.servers.presets import plan_launch

        for name in ("api_key_env", "hardware"):
            if getattr(spec, name):
                raise MarkError(
                    f"inferperf: {name}={getattr(spec, name)!r} is about an endpoint (url=); serve= starts a server on "
                    "this machine."
                )
        try:
            plan_launch(spec.serve, spec, model=spec.model, port=1)
        except EngineError as error:
            raise MarkError(f"inferperf: {error}") from None
        return
    from pytest_inferperf.engines.openai.endpoint import Endpoint

    try:
        Endpoint.parse(spec.url, model=spec.model)
    except SettingsError as error:
        raise MarkError(f"inferperf: {error}") from None


def engine_like(spec: EngineSpec, changes: Mapping[str, Any], origin: Origin) -> EngineSpec:
    """Return a resolved engine with other keywords, checked as the `inferperf` mark checks them.

    `engine_options` merge key by key. What belongs to the old quantization (its recipe; for BF16 the KV cache type and
    the calibration too) does not outlive it, nor does a name that was given to another model. Raises `MarkError`.
    """
    values = {item.name: getattr(spec, item.name) for item in fields(EngineSpec)}
    if changes.get("quant", spec.quant) != spec.quant:
        values["recipe"] = ""
        if changes["quant"] == "BF16":
            for name in ("kv_cache_dtype", "calib_dataset", "calib_size"):
                del values[name]
    if "model" in changes:
        del values["served_model_name"]
    if any(name in changes for name in SERVERS):
        # Another place to run in: what was said about the old one does not hold there.
        for name in (*SERVERS, "backend", "api_key_env", "hardware"):
            del values[name]
    options = {**dict(spec.engine_options), **changes.get("engine_options", {})}
    return make_engine({**values, **changes, "engine_options": options}, origin)


def _check_precision(values: Mapping[str, Any], folder: Path | None, origin: Origin) -> None:
    """Refuse what the shipped backends could only refuse after a build has begun."""
    quant, recipe = values.get("quant", "BF16"), values.get("recipe", "")
    kv_cache = values.get("kv_cache_dtype", "auto")
    if quant == "BF16" and (recipe or kv_cache != "auto"):
        given = f"recipe={recipe!r}" if recipe else f"kv_cache_dtype={kv_cache!r}"
        raise MarkError(f'inferperf: {given} needs a quantized checkpoint, and quant is BF16. Name one: quant="FP8".')
    built_here = folder is not None and not values.get("url") and _is_plain(folder)
    if recipe == QAT and built_here and not values.get("qat_dataset"):
        raise MarkError(f"inferperf: {NO_LESSONS}")
    if quant == BLOCK_SCALES and built_here:
        raise MarkError(f"inferperf: model={values['model']!r}: {NOT_MADE}")
    if not origin.backends:
        return
    row = QUANTIZATIONS.get(quant)
    if row is not None and row.needs_calibration and built_here and not values.get("calib_dataset"):
        raise MarkError(
            f"inferperf: quant={quant!r} is calibrated. Give texts like those the model will see: "
            'calib_dataset="texts.jsonl", a "text" field per line.'
        )
    split = [f"{name}={values[name]}" for name in ("tp", "pp", "ep") if values.get(name, 1) != 1]
    if split and values["backend"] == "transformers":
        raise MarkError(f"inferperf: {', '.join(split)}: the transformers backend runs on one device.")


def _is_plain(folder: Path) -> bool:
    """Whether weights are not quantized yet. Of a hub id, only the download tells."""
    try:
        return not is_quantized(folder)
    except CheckpointError as error:
        raise MarkError(f"inferperf: {error}") from None
