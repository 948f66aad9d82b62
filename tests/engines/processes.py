"""Engine processes that run the fake backend, which does whatever its model's name says."""

from __future__ import annotations

from collections.abc import Callable

from pytest_inferperf.engines.interface import GenerationRequest
from pytest_inferperf.engines.process import EngineProcess

REQUEST = GenerationRequest(prompt=(5, 6, 7), max_tokens=3)
Start = Callable[..., EngineProcess]
