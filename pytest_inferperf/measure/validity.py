"""Validity before judgement: is the engine the one that was asked for?"""

from __future__ import annotations

from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS
from pytest_inferperf.model.results import EngineInfo

__all__ = ["check_engine"]


def check_engine(spec: EngineSpec, info: EngineInfo) -> str:
    """Compare what the engine says it is with what the case asked for.

    Returns the reason the run is INVALID, or "" when they agree. A ModelOpt configuration given by name has no
    row to compare with; its checkpoint was checked against its own description when it was built.
    """
    quant = QUANTIZATIONS.get(spec.quant)
    if quant is not None and info.quant_algo != quant.quant_algo:
        return (
            f"the engine runs {info.quant_algo or 'unquantized weights'} where the case asks for {spec.quant} "
            f"({quant.quant_algo or 'unquantized weights'}); checkpoint {info.checkpoint}"
        )
    wanted = KV_CACHE_DTYPES[spec.kv_cache_dtype].kv_cache_quant_algo
    if wanted is not None and info.kv_cache_quant_algo != wanted:
        return (
            f"the engine's KV cache is {info.kv_cache_quant_algo or 'not quantized'} where the case asks for "
            f"{spec.kv_cache_dtype}; checkpoint {info.checkpoint}"
        )
    return ""
