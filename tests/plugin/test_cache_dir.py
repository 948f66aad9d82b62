"""`--inferperf-cache-dir`: a folder is the cache, an address is where machines share what they build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_inferperf.engines import launch
from pytest_inferperf.errors import EngineError
from tests.plugin.conftest import PERFORMANCE, Project


@pytest.fixture
def seen(project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What engines are opened with; they are not."""
    found: dict[str, Any] = {}

    def refuse(_: object, **keywords: Any) -> None:
        found.update(keywords)
        raise EngineError("not opened")

    monkeypatch.setattr(launch, "open_engine", refuse)
    (project.path / "conftest.py").unlink()
    project.test(PERFORMANCE.replace("NVFP4", "BF16"))
    return found


def test_a_folder(project: Project, seen: dict[str, Any]) -> None:
    project.run("--inferperf-cache-dir=here/../cache")
    assert (seen["cache_dir"], seen["shared_cache"]) == (project.path / "cache", "")


@pytest.mark.parametrize("where", ["option", "ini"])
def test_an_address(project: Project, seen: dict[str, Any], where: str) -> None:
    address = "s3://bucket/checkpoints"
    if where == "ini":
        ini = project.path / "tox.ini"
        ini.write_text(f"{ini.read_text()}\ninferperf_cache_dir = {address}/\n")
    project.run(*([f"--inferperf-cache-dir={address}"] if where == "option" else []))
    assert (seen["cache_dir"], seen["shared_cache"]) == (None, address)


def test_neither(project: Project, seen: dict[str, Any]) -> None:
    project.run()
    assert (seen["cache_dir"], seen["shared_cache"]) == (None, "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s3://me:hunter2-secret@bucket/x", "the address holds a password or a signature"),
        ("s4://bucket/x", "s4:// is unknown"),
        ("s3://bucket/../x", "cannot be part of an address"),
    ],
)
def test_a_wrong_address_opens_nothing(project: Project, seen: dict[str, Any], value: str, message: str) -> None:
    result = project.run(f"--inferperf-cache-dir={value}")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 2
    assert f"--inferperf-cache-dir: {'' if '@' in value or 's4' in value else value}" in text
    assert message in text
    assert "hunter2" not in text
    assert not seen
    assert not Path(project.path / "s3:").exists()
