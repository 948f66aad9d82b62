"""Where an endpoint is and what is sent to it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines.openai.endpoint import Endpoint
from pytest_inferperf.errors import EngineError, SettingsError


def parse(url: str, **options: Any) -> Endpoint:
    return Endpoint.parse(url, model="m", **options)


@pytest.mark.parametrize(
    ("url", "chat", "shown"),
    [
        ("http://127.0.0.1:8000", False, "http://127.0.0.1:8000/v1/completions"),
        ("http://host", True, "http://host/v1/chat/completions"),
        ("https://host/v1/", False, "https://host/v1/completions"),
        ("https://host:8443/a/b", False, "https://host:8443/a/b/completions"),
        ("http://host/v1/chat/completions", False, "http://host/v1/completions"),
        ("http://[::1]:80/v1", True, "http://[::1]/v1/chat/completions"),
    ],
)
def test_urls(url: str, chat: bool, shown: str) -> None:
    assert parse(url, chat=chat).shown == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:8000", "not an http or https URL with a host"),
        ("ftp://host", "not an http or https URL with a host"),
        ("http://", "not an http or https URL with a host"),
        ("http://host:port", "Port could not be cast to integer value as 'port'"),
        ("http://host:99999", "Port out of range 0-65535"),
        ("http://host/v1?key=1", "a query or a fragment has no meaning here"),
        ("http://host/v 1", "the path must be of ASCII characters without spaces"),
    ],
)
def test_urls_that_are_none(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"URL {url!r}: {problem}")) as found:
        parse(url)
    assert str(found.value).endswith("such as http://127.0.0.1:8000.")


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^URL: user and password are not taken from a URL") as found:
        parse("http://user:hush@host")
    assert "hush" not in str(found.value)


def test_the_key_comes_from_the_environment_and_is_in_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_KEY", "hush")
    endpoint = parse("http://host", api_key_env="SERVICE_KEY")
    assert b"\r\nAuthorization: Bearer hush\r\n" in endpoint.head()
    assert "hush" not in f"{endpoint!r}{endpoint.shown}{endpoint.body([1], osl=1)!r}"
    assert b"Authorization" not in parse("http://host").head()


@pytest.mark.parametrize(("key", "problem"), [(None, "is not set"), ("", "is not set"), ("a\r\nb", "holds what no")])
def test_keys_that_are_none(key: str | None, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SERVICE_KEY", key)
    with pytest.raises(SettingsError, match=f"^the environment variable SERVICE_KEY {problem}"):
        parse("http://host", api_key_env="SERVICE_KEY")


def test_bodies() -> None:
    ids = json.loads(parse("http://host").body([1, 2], osl=5))
    text = json.loads(parse("http://host", chat=True).body("hi", osl=5))
    assert ids["prompt"] == [1, 2]
    assert text["messages"] == [{"role": "user", "content": "hi"}]
    for body in (ids, text):
        assert body["max_tokens"] == body["min_tokens"] == 5
        assert body["ignore_eos"] is body["stream"] is body["stream_options"]["include_usage"] is True
        assert body["model"] == "m"


def test_dns() -> None:
    with pytest.raises(EngineError, match=r"^http://no-such-host\.invalid/v1/completions: DNS: the host .* resolved"):
        parse("http://no-such-host.invalid").resolve()


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.pem: no certificates in PEM form can be read"):
        parse("https://host", ca_file=str(tmp_path / "none.pem")).tls()
    assert parse("http://host").tls() is None
