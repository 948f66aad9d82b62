"""Gate LLM inference accuracy and performance with pytest.

Importing this package imports nothing heavy: no torch, no CUDA, no git, no network.
"""

__version__ = "0.1.0"
