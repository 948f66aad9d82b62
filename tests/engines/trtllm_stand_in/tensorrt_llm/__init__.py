"""A stand-in for TensorRT-LLM: its public names, checked strictly, over a toy model. No GPU, no torch."""

from .behaviour import version
from .llm import LLM, RequestOutput
from .sampling_params import SamplingParams

__version__ = version()
__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]
