"""What the simulated server does: a frozen value, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from pytest_inferperf.errors import SettingsError

__all__ = ["Behaviour"]


def _option(default: Any, help_text: str, *, low: float = 0, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Times, sizes and faults. A rate is a share of requests: exactly every 1/rate-th one, not a random choice.

    Every field is an option of `inferperf simulate-server`, described by its metadata. Raises `SettingsError` for a
    value out of range.
    """

    model: str = field(default="simulated", metadata={"help": "Name of the model that is served"})
    ttft_ms: float = _option(200.0, "From the arrival of a request to its first token")
    itl_ms: float = _option(20.0, "From one token to the next")
    jitter_ms: float = _option(0.0, "Largest random delay added to each chunk, uniform; tokens stay in order")
    slowdown: float = _option(
        0.0, "Share by which every other active stream lengthens the gaps: 0.01 for 1 percent each"
    )
    tokens_per_chunk: int = _option(1, "Tokens sent in one event, as speculative decoding does", low=1)
    max_output_tokens: int = _option(0, "Stop after this many tokens, whatever was asked for; 0 for no limit")
    reasoning_tokens: int = _option(0, "Tokens of a chat answer that are reasoning_content")
    role_chunk: bool = field(default=True, metadata={"help": "Send a role-only chunk at once in chat streams"})
    chat_only: bool = field(default=False, metadata={"help": "Answer chats alone: /v1/completions is not there"})
    usage: bool = field(default=True, metadata={"help": "Send usage where a stream asks for it"})
    error_rate: float = _option(0.0, "Share of requests refused with --error-status", high=1)
    error_status: int = _option(503, "Status of refused requests", low=400, high=599)
    stall_rate: float = _option(0.0, "Share of streams that stall half-way", high=1)
    stall_ms: float = _option(1000.0, "How long a stall lasts")
    disconnect_rate: float = _option(0.0, "Share of streams cut half-way by a reset", high=1)
    malformed_rate: float = _option(0.0, "Share of streams with one event that is not JSON", high=1)
    garble_rate: float = _option(0.0, "Share of answers that are other tokens while another stream is active", high=1)
    unsent: float = _option(0.0, "Share of the tokens asked for that usage counts and no event carries", high=1)
    fake_first: bool = field(
        default=False, metadata={"help": "Send a first token at once that is none of the answer's"}
    )
    response_cache: bool = field(
        default=False, metadata={"help": "Send the answer to a prompt that was answered before at once"}
    )
    prefix_cache: bool = field(
        default=False, metadata={"help": "Report the blocks of 16 tokens with which an earlier prompt began as cached"}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the jitter"})

    def __post_init__(self) -> None:
        for item in fields(self):
            low, high = item.metadata.get("low"), item.metadata.get("high")
            value = getattr(self, item.name)
            if low is not None and not (value >= low and (high is None or value <= high)):
                reach = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
                raise SettingsError(f"--{item.name.replace('_', '-')} {value}: must be {reach}.")
