"""Third-party code whose warnings concern neither the model nor the user."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["import_modelopt", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings; errors stay errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_modelopt() -> ModuleType:
    """Import ModelOpt's quantization.

    Its first import warns about deprecated calls of its own; where warnings are errors, that would leave a module
    imported by half.
    """
    with quiet():
        importlib.import_module("modelopt.torch.export")
        return importlib.import_module("modelopt.torch.quantization")
