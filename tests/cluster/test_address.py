"""`--inferperf-ray`: what it may say, and what is said where it cannot be had."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from pytest_inferperf.cluster.connection import check_address
from pytest_inferperf.errors import SettingsError


@pytest.mark.parametrize("text", ["auto", "local", "ray://head.cluster:10001"])
def test_addresses(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize("text", ["", "here", "ray://head", "head:6379", "ray://:10001"])
def test_other_texts_are_refused_with_what_is_valid(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_address(text)
    assert str(caught.value) == (
        f"--inferperf-ray={text}: write auto (the cluster of this machine, or of RAY_ADDRESS), local (one that is started "
        "here and ended with the run), or ray://HOST:PORT."
    )


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError) as caught:
        check_address("auto")
    assert str(caught.value) == (
        '--inferperf-ray needs the "cluster" extra (ray is not installed): pip install "pytest-inferperf[cluster]"'
    )


@pytest.fixture
def plain(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("CI", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile("def test_it(): pass")
    return pytester


def test_a_wrong_address_ends_the_run_before_anything_is_collected(plain: pytest.Pytester) -> None:
    result = plain.runpytest_inprocess("--inferperf-ray=here")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-ray=here: write auto *"])


def test_local_does_not_go_with_workers(plain: pytest.Pytester) -> None:
    result = plain.runpytest_inprocess("--inferperf-ray=local", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --inferperf-ray=local does not go with -n: *"])


def test_a_run_without_engines_starts_no_cluster(plain: pytest.Pytester) -> None:
    result = plain.runpytest_inprocess("--inferperf-ray=local")
    result.assert_outcomes(passed=1)
    assert "ray" not in sys.modules
