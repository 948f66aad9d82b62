"""What differs between the releases of TensorRT-LLM that are supported, 1.2.1 and 1.4.0rc1, and nothing else.

Nobody here could ask the package itself: its public API was read in its source. So names that changed are not looked up
by a version number, which would be a guess about each release candidate, but in what is installed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_inferperf.engines.tensorrt_llm.options import CONFIGS, OPTIONS
from pytest_inferperf.errors import EngineError

__all__ = ["FULL_PROMPT_LOGPROBS", "QUIET", "Package", "served_speculation"]

QUIET: Mapping[str, str] = {"TRTLLM_NO_USAGE_STATS": "1"}
"""Switches reports of usage off, in every release; `telemetry_config` and `--no-telemetry` exist only in later ones."""

FULL_PROMPT_LOGPROBS = "1.3.0rc11"
"""Before it, only the most likely token of each prompt position has a log-probability."""

_SPECULATION: Mapping[str, tuple[str, ...]] = {
    "Eagle3": ("Eagle3DecodingConfig", "EagleDecodingConfig"),
    "MTP": ("MTPDecodingConfig",),
    "NGram": ("NGramDecodingConfig",),
    "Draft_Target": ("DraftTargetDecodingConfig",),
}
"""`decoding_type` to its class, the newest name first."""

_DRAFT_MODEL = ("speculative_model", "speculative_model_dir")
"""The field of the draft model, the newest name first."""

_MTP_LAYERS = "num_nextn_predict_layers"
"""Once the length of an MTP draft, with a default of 1; later a figure of the checkpoint, with none."""


class Package:
    """The installed TensorRT-LLM. Importing it takes seconds, and starts MPI."""

    def __init__(self) -> None:
        os.environ.update(QUIET)
        import tensorrt_llm
        from tensorrt_llm.llmapi import llm_args

        self._package = tensorrt_llm
        self._args = llm_args
        self.version = str(getattr(tensorrt_llm, "__version__", "unknown"))

    def load(self, model: str, arguments: Mapping[str, Any]) -> Any:
        """Return a loaded `LLM`. Raises `EngineError` for an argument that this release lacks, before anything is loaded."""
        return self._package.LLM(model=model, **self.configured(arguments))

    def sampling(self, **arguments: Any) -> Any:
        """Return fresh `SamplingParams`: a request fills in fields of its own, so none is used twice."""
        return self._package.SamplingParams(**arguments)

    def configured(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Make configuration objects of the dicts in a tree of arguments."""
        known = self._args.TorchLlmArgs.model_fields
        found: dict[str, Any] = {}
        for name, value in arguments.items():
            if name not in known:
                raise self._unknown(name, known)
            if isinstance(value, Mapping):
                cls, fields = self._class(name, value)
                value = self._build(name, cls, fields)
            found[name] = value
        return found

    def _class(self, name: str, fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        if name != "speculative_config":
            return self._one_of((CONFIGS[name],)), dict(fields)
        fields = dict(fields)
        # Each kind has a class of its own, which knows its decoding_type.
        cls = self._one_of(_SPECULATION[fields.pop("decoding_type")])
        known = cls.model_fields
        if "speculative_model" in fields:
            name = next((item for item in _DRAFT_MODEL if item in known), _DRAFT_MODEL[0])
            fields[name] = fields.pop("speculative_model")
        layers = known.get(_MTP_LAYERS)
        if layers is not None and layers.default is not None and "max_draft_len" in fields:
            fields[_MTP_LAYERS] = fields.pop("max_draft_len")
        return cls, fields

    def _one_of(self, names: tuple[str, ...]) -> Any:
        for name in names:
            if hasattr(self._args, name):
                return getattr(self._args, name)
        raise EngineError(f"TensorRT-LLM {self.version} has no {names[0]}; take a later release.")

    def _build(self, name: str, cls: Any, fields: dict[str, Any]) -> Any:
        for field in fields:
            if field not in cls.model_fields:
                raise self._unknown(f"{name}.{field}", [f"{name}.{item}" for item in cls.model_fields])
        try:
            return cls(**fields)
        except ValueError as error:
            raise EngineError(f"TensorRT-LLM {self.version} refuses {name}: {error}") from None

    def _unknown(self, name: str, known: Iterable[str]) -> EngineError:
        given = next(
            (option for option, row in OPTIONS.items() if row.path == name or row.path.startswith(f"{name}.")), name
        )
        near = difflib.get_close_matches(name, [*known, *OPTIONS], n=3, cutoff=0.6)
        guess = f" Nearest: {', '.join(near)}." if near else ""
        return EngineError(
            f"unknown engine option {given!r}: TensorRT-LLM {self.version} has no argument {name!r}.{guess}"
        )


def served_speculation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `speculative_config` as a server's file spells them.

    The server may be another installation: of two spellings, the one that both releases read is taken.
    """
    found = dict(fields)
    if found["decoding_type"] == "Eagle3":
        # The later release calls it so, and reads the name of the earlier one as an alias.
        found["decoding_type"] = "Eagle"
    if "speculative_model" in found:
        found[_DRAFT_MODEL[-1]] = found.pop("speculative_model")
    if found["decoding_type"] == "MTP" and "max_draft_len" in found:
        found[_MTP_LAYERS] = found.pop("max_draft_len")
    return found
