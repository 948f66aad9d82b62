"""Where an endpoint is, and what is sent to it."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_inferperf import __version__
from pytest_inferperf.errors import EngineError, SettingsError
from pytest_inferperf.hiding import name_key

__all__ = ["Address", "Endpoint"]


@dataclass(frozen=True, kw_only=True)
class Address:
    """A resolved address, so that no connection waits for DNS."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible API. `parse` makes one from a URL."""

    scheme: str
    host: str
    port: int
    prefix: str
    """Path before `/completions`: `/v1`."""

    model: str
    chat: bool = False
    """Whether requests go to `/chat/completions`."""

    api_key_env: str = ""
    """The environment variable that holds the API key; the key itself is in no value, message or file."""

    ca_file: str = ""
    """Certificates to trust besides the system's, in PEM form."""

    def __post_init__(self) -> None:
        if self.api_key_env:
            name_key(self.api_key_env)

    @classmethod
    def parse(cls, url: str, *, model: str, chat: bool = False, api_key_env: str = "", ca_file: str = "") -> Endpoint:
        """Read a URL such as `http://127.0.0.1:8000` or `https://host/v1`.

        Raises `SettingsError` for anything else, and where the named environment variable is not set.
        """
        example = "Write http://HOST:PORT or https://HOST[:PORT][/PATH], such as http://127.0.0.1:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"URL {url!r}: {error}. {example}.") from None
        if parts.username or parts.password:
            raise SettingsError(
                "URL: user and password are not taken from a URL. Put the key into an environment variable and name it."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"URL {url!r}: not an http or https URL with a host. {example}.")
        if parts.query or parts.fragment:
            raise SettingsError(f"URL {url!r}: a query or a fragment has no meaning here. {example}.")
        if not parts.path.isascii() or any(character <= " " for character in parts.path):
            raise SettingsError(f"URL {url!r}: the path must be of ASCII characters without spaces. {example}.")
        path = parts.path.rstrip("/")
        for ending in ("/chat/completions", "/completions"):
            path = path.removesuffix(ending)
        endpoint = cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or (443 if parts.scheme == "https" else 80),
            prefix=path or "/v1",
            model=model,
            chat=chat,
            api_key_env=api_key_env,
            ca_file=ca_file,
        )
        endpoint._authorization()
        return endpoint

    @property
    def shown(self) -> str:
        """The URL requests go to."""
        return f"{self.scheme}://{self._netloc}{self.path}"

    @property
    def path(self) -> str:
        """The path requests go to."""
        return f"{self.prefix}/{'chat/completions' if self.chat else 'completions'}"

    @property
    def _netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def resolve(self) -> Address:
        """Look the host up, once. Raises `EngineError` where DNS does not know it."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise EngineError(f"{self.shown}: DNS: the host {self.host!r} cannot be resolved ({error}).") from None
        # A name of this machine is IPv6 and IPv4 at once; servers listen on IPv4 far more often.
        family, _, _, _, sockaddr = min(found, key=lambda item: item[0] != socket.AF_INET)
        return Address(family=family, sockaddr=sockaddr)

    def tls(self) -> ssl.SSLContext | None:
        """Return the context for https, None for http. Raises `SettingsError` when `ca_file` cannot be read."""
        if self.scheme == "http":
            return None
        try:
            context = ssl.create_default_context()
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"{Path(self.ca_file)}: no certificates in PEM form can be read ({error}).") from None
        return context

    def head(self) -> bytes:
        """Return the head of every request, up to the value of its Content-Length. Holds the API key: never show it."""
        rows = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self._netloc}\r\nUser-Agent: pytest-inferperf/{__version__}\r\n"
            f"Accept: text/event-stream\r\nContent-Type: application/json\r\n{self._authorization()}Content-Length: "
        )
        return rows.encode("latin-1")

    def post(self, body: bytes) -> bytes:
        """Return a whole request. Holds the API key: never show it."""
        return b"%b%d\r\n\r\n%b" % (self.head(), len(body), body)

    def get(self, name: str) -> bytes:
        """Return a GET of `name`, such as `models`, under the prefix. Holds the API key: never show it."""
        rows = (
            f"GET {self.prefix}/{name} HTTP/1.1\r\nHost: {self._netloc}\r\nUser-Agent: pytest-inferperf/{__version__}"
            f"\r\nAccept: application/json\r\n{self._authorization()}\r\n"
        )
        return rows.encode("latin-1")

    def _authorization(self) -> str:
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise SettingsError(f"the environment variable {self.api_key_env} is not set; it should hold the API key.")
        if not key.isascii() or not key.isprintable():
            raise SettingsError(f"the environment variable {self.api_key_env} holds what no HTTP header can carry.")
        return f"Authorization: Bearer {key}\r\n"

    def body(self, prompt: Sequence[int] | str, *, osl: int) -> bytes:
        """Return the body of one streaming request for exactly `osl` tokens.

        `prompt` is token ids, or text; chat endpoints take text only. Servers that know neither `ignore_eos` nor
        `min_tokens` ignore or refuse them; what came back is checked, not assumed.
        """
        assert not self.chat or isinstance(prompt, str)
        asked = {
            "model": self.model,
            "max_tokens": osl,
            "min_tokens": osl,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            asked["messages"] = [{"role": "user", "content": prompt}]
        else:
            asked["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        return json.dumps(asked, separators=(",", ":")).encode()
