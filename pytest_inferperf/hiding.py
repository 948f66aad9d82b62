"""Keeps secrets out of everything that is written, shown or sent: the one road on which texts leave this package."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus

__all__ = ["HIDDEN", "Hide", "excerpt", "finder", "hidden_output", "hide_in", "hider", "name_key"]

HIDDEN = "[hidden]"

Hide = Callable[[str], str]

_NAME = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH|(?:^|_)PASS|(?:^|_)PAT)S?(?=$|_|\d)", re.I
)
_A_PLACE = re.compile(r"_(?:FILE|PATH|DIR|SOCK|URL|URI|HOST|PORT|NAME|TYPE|ENV)$", re.I)
"""What ends so is named after a secret and says where it is, or what kind it is."""

_ESCAPED = re.compile("%[0-9A-F]{2}")
"""A character of an address, which some write with small letters."""

_named_keys: set[str] = set()
"""Variables of this process that somebody named as those of keys: their own names need not say so."""

_LOOKED_AT = 1 << 16
"""Characters in which an excerpt looks for secrets: far more than it shows."""

_LEAST_LENGTH = 6
"""Shorter values are words that stand in reports for other reasons."""

_LEAST_LINE = 16
"""Characters of a line of a secret of many lines; a shorter one says nothing by itself."""

_LOOKS_SECRET = re.compile(
    r"""
    \b(?:sk|pk|rk)-(?=[A-Za-z0-9_-]*[A-Za-z0-9]{16})[A-Za-z0-9_-]+          # OpenAI and those that copied it
    | \bhf_[A-Za-z0-9]{16,}
    | \bgh[poushr]_[A-Za-z0-9]{16,}
    | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \b(?:glpat|nvapi)-[A-Za-z0-9_-]{16,}
    | \bxox[abeprs]-[A-Za-z0-9-]{10,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+                   # a JSON web token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----(?:[\s\S]*?-----END\ [A-Z ]*PRIVATE\ KEY-----)?
    | (?i:\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}
    | (?i:\bauthorization["']?\s*[=:]\s*["']?basic\s+)[A-Za-z0-9+/=]{6,}
    | (?i:X-Amz-(?:Signature|Credential|Security-Token)=)[^\s&"']+
    # user:password@host; a path of a file has one slash before it
    | (?:(?<=://)|(?<=:/)(?!/))[^\s/@:]*:[^\s/]+(?=@)
    # --api-key VALUE, but not --api-key $NAME, which is no secret
    | (?i:(?<!\w)--?(?:api[_-]?key|(?:hf-|auth-|access-)?token|secret|password|passwd)\s+["']?)[^\s"'${-][^\s"',;&]{5,}
    # password: VALUE, "api_key": "VALUE", HF_TOKEN=VALUE; a number after "token" is a count or a time
    | (?i:(?:(?:api|access|private|secret|auth)[_-]?key|secret|passw(?:or)?d|passphrase)["']?\s*[=:]\s*["']?)[^\s"',;&${<][^\s"',;&]{5,}
    | (?i:token["']?\s*[=:]\s*["']?)(?![\d.]+\b)[^\s"',;&${<][^\s"',;&]{5,}
    """,
    re.X,
)

_NAMED = frozenset({"context", "engine_options", "environment", "options", "versions"})
"""Fields that hold a mapping whose keys are anybody's words, not those of a schema."""

_NOT_WORDS = frozenset({"encoding", "endpoint", "kind", "metric", "rows", "schema_version", "status", "swept", "type"})
"""Fields that hold no text of a person or a program: packed figures, and words of a schema."""


def hider(environ: Mapping[str, str] | None = None, *, also: Iterable[str] = ()) -> Hide:
    """Return what replaces every secret in a text by `[hidden]`.

    Secret are the values of the environment variables that are named like one (KEY, TOKEN, PASSWORD, …), in `also`, or
    by `name_key`, wherever they stand, and what has the form of a key, a bearer token or a password in an address.
    """
    variants = _variants(os.environ if environ is None else environ, also)
    # Longest first: one may hold another.
    known = re.compile("|".join(map(re.escape, sorted(variants, key=len, reverse=True)))) if variants else None

    # The same words stand in every entry of a file and in every record.
    @functools.lru_cache(maxsize=4096)
    def hide(text: str) -> str:
        text = known.sub(HIDDEN, text) if known is not None else text
        return _LOOKS_SECRET.sub(HIDDEN, text)

    return hide


def name_key(name: str) -> None:
    """Say that the environment variable `name` holds a key, whatever it is called: every text of this process hides it."""
    _named_keys.add(name)


def excerpt(text: str | bytes | bytearray, size: int) -> str:
    """Return the first `size` characters of what somebody else wrote, as UTF-8 where it is bytes, for a message.

    Secrets are hidden before it is cut: nothing could tell half a key later.
    """
    start = text[:_LOOKED_AT]
    return hider()(start if isinstance(start, str) else start.decode(errors="backslashreplace"))[:size]


def finder(environ: Mapping[str, str] | None = None, *, also: Iterable[str] = ()) -> Callable[[str], str]:
    """Return what says which secret a text holds, without saying the secret; "" where it holds none."""
    variants = _variants(os.environ if environ is None else environ, also)

    @functools.lru_cache(maxsize=4096)
    def find(text: str) -> str:
        for value, name in variants.items():
            if value in text:
                return f"holds the value of the environment variable {name}"
        return "holds what looks like a key, a token or a password" if _LOOKS_SECRET.search(text) else ""

    return find


def hide_in(data: Any, hide: Hide) -> Any:
    """Return JSON data with every secret in its texts hidden; figures that are packed into text stay as they are."""

    def walk(value: Any, named: bool = False) -> Any:
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, dict):
            if value.keys() >= {"encoding", "data"}:
                return value
            return {
                hide(key) if named else key: item if key in _NOT_WORDS and not named else walk(item, key in _NAMED)
                for key, item in value.items()
            }
        if type(value) is tuple:
            return tuple(map(walk, value))
        return list(map(walk, value)) if isinstance(value, list) else value

    return walk(data)


@contextlib.contextmanager
def hidden_output(also: Iterable[str] = ()) -> Iterator[None]:
    """Hide secrets in whatever the block prints, on both streams."""
    hide = hider(also=also)
    with contextlib.ExitStack() as stack:
        for redirect, name in ((contextlib.redirect_stdout, "stdout"), (contextlib.redirect_stderr, "stderr")):
            stream = _HidingStream(getattr(sys, name), hide)
            stack.enter_context(redirect(cast("TextIO", stream)))
            stack.callback(stream.finish)
        yield


class _HidingStream:
    """Passes text on line by line, so that a secret that is printed in pieces is seen whole."""

    def __init__(self, stream: TextIO, hide: Hide) -> None:
        self._stream = stream
        self._hide = hide
        self._open = ""

    def write(self, text: str) -> int:
        whole, end, self._open = (self._open + text).rpartition("\n")
        if end:
            self._stream.write(self._hide(whole) + end)
        return len(text)

    def flush(self) -> None:
        self.finish()
        self._stream.flush()

    def finish(self) -> None:
        """Write what no line break ended yet."""
        if self._open:
            self._stream.write(self._hide(self._open))
            self._open = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _variants(environ: Mapping[str, str], also: Iterable[str]) -> dict[str, str]:
    """Return the secret values with the names of their variables, in all forms in which others write them."""
    asked = _named_keys.union(also)
    found: dict[str, str] = {}
    for name, value in environ.items():
        if name not in asked and name.upper().endswith("TOKENS") and value.strip().isdigit():
            continue  # a count, as in VLLM_MAX_NUM_BATCHED_TOKENS
        if len(value) < _LEAST_LENGTH or not (name in asked or (_NAME.search(name) and not _A_PLACE.search(name))):
            continue
        lines = [line for line in value.splitlines() if len(line) >= _LEAST_LINE] if "\n" in value.strip() else []
        forms = (*_written(value), *(_written(value.strip()) if value != value.strip() else ()), *lines)
        found |= dict.fromkeys((form for form in forms if len(form) >= _LEAST_LENGTH), name)
    return found


# Every excerpt asks anew, also in the middle of a load.
@functools.lru_cache(maxsize=256)
def _written(value: str) -> tuple[str, ...]:
    """Return a secret as it is, and as addresses, JSON, HTML and logins write it."""
    text = json.dumps(value, ensure_ascii=False)[1:-1]
    found = [value.strip(), html.escape(value), json.dumps(value)[1:-1], text, text.replace("/", "\\/")]
    # A variable may hold bytes that are no UTF-8.
    data = value.encode(errors="surrogateescape")
    for form in (quote(data), quote(data, safe=""), quote_plus(data)):
        found += [form, _ESCAPED.sub(lambda escaped: escaped[0].lower(), form)]
    # Three bytes are four characters: what they are depends on how much stands before, such as `user:`.
    for before in range(3):
        end = 8 * (before + len(data)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.append(encode(bytes(before) + data).decode()[-(-8 * before // 6) : end])
    return tuple(found)
