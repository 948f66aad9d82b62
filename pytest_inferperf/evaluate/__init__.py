"""Accuracy: lm-eval tasks run on an `Engine`, with the outcome of every document kept.

Importing this package imports neither lm_eval nor torch: they are imported when a task is found and run.
"""

from __future__ import annotations

from pytest_inferperf.evaluate.run import evaluate
from pytest_inferperf.evaluate.tasks import FoundTask, find_task

__all__ = ["FoundTask", "evaluate", "find_task"]
