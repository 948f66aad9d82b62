"""The keywords of the `inferperf` mark: one table, and the check of one value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pytest_inferperf.errors import MarkError, article, choices
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, check_quant
from pytest_inferperf.model.workload import ENDPOINTS

__all__ = ["KEYWORDS", "Keyword", "check_value"]


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """One keyword of the `inferperf` mark."""

    target: Literal["engine", "workload", "task"]
    kind: type
    minimum: float = 0
    also: type | None = None
    """A second type that a value may have."""

    positive: bool = False
    """Whether the minimum itself is out of range."""

    @property
    def kinds(self) -> str:
        """The types in words: `an int`, `a float or an int`."""
        return " or ".join(article(kind.__name__) for kind in (self.kind, self.also) if kind is not None)


KEYWORDS: dict[str, Keyword] = {
    "model": Keyword(target="engine", kind=str),
    "served_model_name": Keyword(target="engine", kind=str),
    "quant": Keyword(target="engine", kind=str),
    "recipe": Keyword(target="engine", kind=str),
    "kv_cache_dtype": Keyword(target="engine", kind=str),
    "tp": Keyword(target="engine", kind=int, minimum=1),
    "pp": Keyword(target="engine", kind=int, minimum=1),
    "ep": Keyword(target="engine", kind=int, minimum=1),
    "backend": Keyword(target="engine", kind=str),
    "calib_dataset": Keyword(target="engine", kind=str),
    "calib_size": Keyword(target="engine", kind=int, minimum=1),
    "qat_dataset": Keyword(target="engine", kind=str),
    "qat_steps": Keyword(target="engine", kind=int, minimum=1),
    "qat_learning_rate": Keyword(target="engine", kind=float, positive=True),
    "serve": Keyword(target="engine", kind=str),
    "url": Keyword(target="engine", kind=str),
    "api_key_env": Keyword(target="engine", kind=str),
    "hardware": Keyword(target="engine", kind=str),
    "engine_options": Keyword(target="engine", kind=dict),
    "isl": Keyword(target="workload", kind=int, minimum=1, also=str),
    "osl": Keyword(target="workload", kind=int, minimum=1, also=str),
    "concurrency": Keyword(target="workload", kind=int, minimum=1),
    "request_rate": Keyword(target="workload", kind=float, also=int),
    "arrival": Keyword(target="workload", kind=str),
    "burstiness": Keyword(target="workload", kind=float, also=int),
    "shared_prefix": Keyword(target="workload", kind=float, also=int),
    "endpoint": Keyword(target="workload", kind=str),
    "dataset": Keyword(target="workload", kind=str),
    "turns": Keyword(target="workload", kind=int, minimum=1),
    "think_time": Keyword(target="workload", kind=float, also=int),
    "trace": Keyword(target="workload", kind=str),
    "trace_speed": Keyword(target="workload", kind=float, also=int, positive=True),
    "num_requests": Keyword(target="workload", kind=int, minimum=1),
    "rounds": Keyword(target="workload", kind=int, minimum=1),
    "warmup_rounds": Keyword(target="workload", kind=int),
    "seed": Keyword(target="workload", kind=int),
    "sessions": Keyword(target="workload", kind=int),
    "hosts": Keyword(target="workload", kind=int, minimum=1),
    "share_node": Keyword(target="workload", kind=bool),
    "task": Keyword(target="task", kind=str),
    "num_fewshot": Keyword(target="task", kind=int),
    "limit": Keyword(target="task", kind=int, minimum=1),
    "group_by": Keyword(target="task", kind=str),
    "early_stop": Keyword(target="task", kind=bool),
    "replicas": Keyword(target="task", kind=int, minimum=1),
}
"""Every keyword of the `inferperf` mark. A list value is a cross product, except in `engine_options`."""


def check_value(name: str, value: object) -> None:
    """Check one value of a keyword of `KEYWORDS`. Raises `MarkError`."""
    keyword = KEYWORDS[name]
    fits = isinstance(value, keyword.kind) or (keyword.also is not None and isinstance(value, keyword.also))
    if not fits or isinstance(value, bool) is not (keyword.kind is bool):
        raise MarkError(
            f"inferperf: {name}={value!r} is {article(type(value).__name__)}; {name} takes {keyword.kinds}"
            f"{'' if keyword.kind is dict else ', or a list of them'}."
        )
    if isinstance(value, float) and (not math.isfinite(value) or (keyword.positive and value <= keyword.minimum)):
        low = f"above {keyword.minimum:g}, and " if keyword.positive else ""
        raise MarkError(f"inferperf: {name}={value} is out of range: {low}finite.")
    if isinstance(value, int | float) and value < keyword.minimum:
        raise MarkError(f"inferperf: {name}={value} is below its minimum {keyword.minimum}.")
    if isinstance(value, str) and not value:
        raise MarkError(f"inferperf: {name} is empty.")
    if name == "quant" and (wrong := check_quant(str(value))):
        raise MarkError(f"inferperf: unknown quant {value!r}.\n{wrong}")
    if name == "kv_cache_dtype" and value not in KV_CACHE_DTYPES:
        raise MarkError(
            f"inferperf: unknown kv_cache_dtype {value!r}.\n{choices(value, KV_CACHE_DTYPES, what='KV cache types')}"
        )
    if name == "endpoint" and value not in ENDPOINTS:
        raise MarkError(f"inferperf: unknown endpoint {value!r}. {choices(value, ENDPOINTS, what='Endpoints')}")
    if isinstance(value, dict):
        for option, item in value.items():
            if isinstance(option, str) and _SECRET.search(option):
                raise MarkError(
                    f"inferperf: engine option {option!r} looks like a secret; options are written into results and "
                    "baselines. Let the engine read it from the environment."
                )
            if isinstance(item, float) and not math.isfinite(item):
                raise MarkError(f"inferperf: engine option {option!r} is {item}; give a finite number.")
            if not isinstance(option, str) or not isinstance(item, str | int | float | bool | None):
                raise MarkError(
                    f"inferperf: engine_options={{{option!r}: {item!r}}}: names are strings; values are strings, "
                    "numbers, booleans or None."
                )


_SECRET = re.compile(r"(?i)api_?key|secret|password|passwd|credential|authorization|(^|_)token$")
