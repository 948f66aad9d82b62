"""How the stand-in behaves, by environment variables: they reach it in the engine's own process."""

from __future__ import annotations

import os

FAULTS = (
    *("oom", "dies", "hangs", "misquantized", "wrong_kv_cache", "wrong_tp", "wrong_option"),
    *("late", "short", "failing", "truncating", "silent", "cancelled", "unstreamed", "two_outputs", "raises"),
    *("no_logprobs", "short_logprobs", "absent_token", "no_rank", "no_figures", "forgetful"),
)


def fault() -> str:
    """Return what goes wrong; "" for nothing."""
    found = os.environ.get("TRTLLM_STAND_IN", "")
    assert found in ("", *FAULTS), found
    return found


def version() -> str:
    return os.environ.get("TRTLLM_STAND_IN_VERSION", "1.4.0rc1")


def is_old() -> bool:
    return version().startswith("1.2")


def gpus() -> int:
    return int(os.environ.get("TRTLLM_STAND_IN_GPUS", "8"))
