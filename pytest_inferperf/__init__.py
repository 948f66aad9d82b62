"""Gate LLM inference accuracy and performance with pytest.

Importing this package imports nothing heavy: no torch, no CUDA, no git, no network.
"""

from pytest_inferperf.model.sweep import sweep

__all__ = ["__version__", "sweep"]

__version__ = "0.1.0"
