"""Configuration classes, made from the table; they forbid what is not in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from .. import table
from ..behaviour import is_old


@dataclass(frozen=True)
class FieldInfo:
    default: Any


class StrictModel:
    model_fields: ClassVar[dict[str, FieldInfo]] = {}

    def __init__(self, **given: Any) -> None:
        name = type(self).__name__
        for field, value in given.items():
            if field not in self.model_fields:
                raise ValueError(f"1 validation error for {name}\n{field}\n  Extra inputs are not permitted")
            valid = table.VALUES.get(f"{name}.{field}")
            items = value if isinstance(value, list) else [value]
            if valid and value != self.model_fields[field].default and not set(items) <= set(valid):
                raise ValueError(f"1 validation error for {name}\n{field}\n  Input should be one of {valid}")
        for field, info in self.model_fields.items():
            if info.default is table.REQUIRED and field not in given:
                raise ValueError(f"1 validation error for {name}\n{field}\n  Field required")
            setattr(self, field, given.get(field, info.default))
        self.check()

    def check(self) -> None:
        if not hasattr(self, "decoding_type"):
            return
        layers = getattr(self, "num_nextn_predict_layers", None)
        if self.decoding_type == "MTP" and layers is not None:
            # The older release takes its length from the layers, whatever max_draft_len says.
            self.max_draft_len = layers
        elif self.decoding_type != "MTP" and not self.max_draft_len:
            raise ValueError(f"max_draft_len must be > 0 for {self.decoding_type}")
        draft = getattr(self, "speculative_model", None) or getattr(self, "speculative_model_dir", None)
        if self.decoding_type in ("Eagle", "Eagle3", "Draft_Target") and not draft:
            raise ValueError("Draft model must be provided")


class QuantAlgo(str, Enum):
    FP8 = "FP8"
    FP8_BLOCK_SCALES = "FP8_BLOCK_SCALES"
    NVFP4 = "NVFP4"
    W4A16_AWQ = "W4A16_AWQ"


class CapacitySchedulerPolicy(str, Enum):
    MAX_UTILIZATION = "MAX_UTILIZATION"
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    STATIC_BATCH = "STATIC_BATCH"


def _made(name: str, fields: dict[str, Any]) -> type[StrictModel]:
    return type(name, (StrictModel,), {"model_fields": {key: FieldInfo(value) for key, value in fields.items()}})


_CONFIGS = table.OLD if is_old() else table.NEW
globals().update({name: _made(name, fields) for name, fields in _CONFIGS.items()})

_ARGS = {name: value for name, value in table.ARGS.items() if name != "nvfp4_gemm_config" or not is_old()}
TorchLlmArgs = _made(
    "TorchLlmArgs", {name: None if name == "cuda_graph_config" else value for name, value in _ARGS.items()}
)
