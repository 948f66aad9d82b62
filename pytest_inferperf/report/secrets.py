"""Keeps secrets out of everything that is shown or sent: values of the environment, and what looks like a key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

__all__ = ["HIDDEN", "hider"]

HIDDEN = "[hidden]"
_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)", re.I)
_LEAST_LENGTH = 6
"""Shorter values are words that stand in reports for other reasons."""

_LOOKS_SECRET = re.compile(
    r"""
    \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}            # OpenAI and those that copied it
    | \b(?:hf|ghp|gho|ghs|ghu|ghr|glpat|nvapi|xox[abprs])[_-][A-Za-z0-9_-]{10,}
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+
    | (?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}
    | (?i:(?<!\w)--?(?:api[_-]?key|(?:hf-|auth-|access-)?token|secret|password|passwd)\s+["']?)[^\s"'-][^\s"',;&]{5,}  # --api-key VALUE
    | (?<=://)[^\s/@:]+:[^\s/@]+(?=@)            # user:password@host
    | (?i:\b(?:api[_-]?key|token|secret|password|passwd)\b["']?\s*[=:]\s*["']?)[^\s"',;&]{6,}
    """,
    re.X,
)


def hider(environ: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return what replaces every secret in a text by `[hidden]`.

    Secret are the values of the environment variables that are named like one (KEY, TOKEN, PASSWORD, …), wherever they
    stand, and what has the form of a key, a bearer token or a password in an address.
    """
    found = os.environ if environ is None else environ
    values = {value for name, value in found.items() if _NAME.search(name) and len(value) >= _LEAST_LENGTH}
    # Longest first: one may hold another.
    known = re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None

    def hide(text: str) -> str:
        text = known.sub(HIDDEN, text) if known is not None else text
        return _LOOKS_SECRET.sub(HIDDEN, text)

    return hide
