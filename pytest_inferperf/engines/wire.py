"""Engine values as JSON: what travels between pytest and an engine process. Standard library only, never pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pytest_inferperf import errors
from pytest_inferperf.engines.interface import (
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    TokenChunk,
)
from pytest_inferperf.errors import EngineError, InferperfError
from pytest_inferperf.hiding import excerpt
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware

__all__ = [
    "HEADER",
    "MAX_FRAME_BYTES",
    "decode_frame",
    "dump",
    "encode_frame",
    "load_chunk",
    "load_error",
    "load_generation",
    "load_generation_request",
    "load_info",
    "load_loglikelihood",
    "load_loglikelihood_request",
    "load_spec",
]

HEADER = struct.Struct(">4sI")
"""A magic word, so that text printed into the pipe is recognised, and the length of the JSON that follows."""

_MAGIC = b"ifp1"
MAX_FRAME_BYTES = 1 << 30


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """Turn a message into bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEADER.pack(_MAGIC, len(body)) + body


def decode_frame(data: bytes | bytearray) -> tuple[dict[str, Any], int] | None:
    """Read one message from the start of `data`; return it with its size, or None when more bytes are needed.

    Raises `EngineError` for bytes that are no frame.
    """
    if not _MAGIC.startswith(bytes(data[:4])):
        raise EngineError(f"the engine wrote something that is not a message: {excerpt(data, 60)!r}")
    if len(data) < HEADER.size:
        return None
    _, length = HEADER.unpack_from(data)
    if length > MAX_FRAME_BYTES:
        raise EngineError(f"the engine announced a message of {length} bytes")
    end = HEADER.size + length
    if len(data) < end:
        return None
    try:
        message = json.loads(bytes(data[HEADER.size : end]))
    except ValueError as error:
        raise EngineError(f"the engine wrote a message that is not JSON ({error})") from None
    if not isinstance(message, dict):
        raise EngineError(f"the engine wrote a message that is not an object: {excerpt(str(message), 60)}")
    return message, end


def dump(value: Any) -> Any:
    """Turn one of the engine's dataclasses into plain data; the `load_…` functions are the inverse."""
    return asdict(value)


def load_spec(data: Mapping[str, Any]) -> EngineSpec:
    """Inverse of `dump` for `EngineSpec`."""
    options = tuple((str(name), value) for name, value in data["engine_options"])
    return EngineSpec(**{**data, "engine_options": options})


def load_info(data: Mapping[str, Any]) -> EngineInfo:
    """Inverse of `dump` for `EngineInfo`."""
    return EngineInfo(**{**data, "hardware": Hardware(**data["hardware"])})


def load_generation_request(data: Mapping[str, Any]) -> GenerationRequest:
    """Inverse of `dump` for `GenerationRequest`."""
    return GenerationRequest(**{**data, "prompt": tuple(data["prompt"]), "stop": tuple(data["stop"])})


def load_generation(data: Mapping[str, Any]) -> Generation:
    """Inverse of `dump` for `Generation`."""
    return Generation(**{**data, "token_ids": tuple(data["token_ids"]), "token_times_s": tuple(data["token_times_s"])})


def load_chunk(data: Mapping[str, Any]) -> TokenChunk:
    """Inverse of `dump` for `TokenChunk`."""
    return TokenChunk(**{**data, "token_ids": tuple(data["token_ids"])})


def load_loglikelihood_request(data: Sequence[Sequence[int]]) -> LogLikelihoodRequest:
    """Read a request sent as a pair of context and continuation."""
    return LogLikelihoodRequest(context=tuple(data[0]), continuation=tuple(data[1]))


def load_loglikelihood(data: Sequence[Any]) -> LogLikelihood:
    """Read an answer sent as a pair of log-probability and greediness."""
    return LogLikelihood(logprob=float(data[0]), is_greedy=bool(data[1]))


def load_error(data: Mapping[str, Any]) -> InferperfError:
    """Rebuild an error the worker reported; an unknown kind becomes an `EngineError`."""
    found = getattr(errors, str(data.get("type")), EngineError)
    # MissingExtra takes other arguments; its message is complete already.
    if not isinstance(found, type) or not issubclass(found, InferperfError) or found is errors.MissingExtra:
        found = EngineError
    error = found(str(data.get("message")))
    return error if isinstance(error, InferperfError) else EngineError(str(data.get("message")))
