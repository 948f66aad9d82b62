"""Secrets in reports: see `pytest_inferperf.hiding`."""

from pytest_inferperf.hiding import HIDDEN, hider

__all__ = ["HIDDEN", "hider"]
