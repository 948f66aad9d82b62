"""Hooks for third parties: bring an engine, or add to the recorded context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_inferperf.engines.interface import Engine
    from pytest_inferperf.model.case import EngineSpec


@pytest.hookspec(firstresult=True)
def pytest_inferperf_make_engine(config: pytest.Config, spec: EngineSpec) -> Engine | None:
    """Build the engine for a spec.

    :param config: The pytest config object.
    :param spec: The engine to build.
    :returns: An :class:`pytest_inferperf.engines.interface.Engine`, or None to leave it to others. The first
        answer that is not None is used; the shipped backends come last.

    Any plugin or conftest.py file can implement it. The engine is closed when the last test that uses it is done.
    """


def pytest_inferperf_environment(config: pytest.Config) -> Mapping[str, str]:  # type: ignore[empty-body]
    """Add to the context that is recorded with every result.

    :param config: The pytest config object.
    :returns: Names and values, such as ``{"cluster": "lab-3"}``. Never put a secret here: results are shared.

    Any plugin or conftest.py file can implement it; all answers are merged.
    """
