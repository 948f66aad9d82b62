"""What one test measures: an engine, and a workload or a task. Frozen at collection, never read from marks again."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from pytest_inferperf.model.quant import QAT, precision_key
from pytest_inferperf.model.workload import Workload

__all__ = ["Case", "EngineSpec", "GpuRequirement", "ReferenceEngine", "Scalar", "Task", "Workload", "is_experiment"]

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that decides which engine is built. Equal specs share one engine."""

    model: str
    """A folder in Hugging Face layout (absolute once resolved), or a hub id."""

    served_model_name: str
    """The name baselines are filed under; by default the last part of `model`, lower case."""

    quant: str = "BF16"
    """A name of the quantization table, or a ModelOpt configuration name."""

    recipe: str = ""
    """How the format is reached when not by its default configuration: a ModelOpt configuration name, or `qat`."""

    kv_cache_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    ep: int = 1
    backend: str = "auto"
    calib_dataset: str = ""
    """A JSONL file with a `text` field per line (absolute once resolved); "" for none."""

    calib_size: int = 128
    """Number of calibration texts used, from the start of the file."""

    qat_dataset: str = ""
    """A JSONL file with a `text` field per line, and a `prompt` before it where there is one: what `recipe="qat"` trains
    on (absolute once resolved); "" for none."""

    qat_steps: int = 200
    """Steps of training."""

    qat_learning_rate: float = 1e-4
    """The largest learning rate of the training."""

    serve: str = ""
    """The server that runs it: a preset's name, or a command line. "" for none."""

    url: str = ""
    """The OpenAI-compatible endpoint that runs it already; "" for none."""

    api_key_env: str = ""
    """The environment variable that holds the endpoint's API key."""

    hardware: str = ""
    """What the endpoint runs on, where it is known: `NVIDIA B200 x8`."""

    engine_options: tuple[tuple[str, Scalar], ...] = ()
    """Options passed to the backend by name, sorted. Context, not identity: they are recorded and shown."""

    @property
    def precision(self) -> str:
        """Quantization, KV cache type and whether it was trained in one word."""
        return precision_key(self.quant, self.kv_cache_dtype, self.recipe)

    @property
    def server(self) -> str:
        """What stands between the engine and the client: the server as `serve` has it, `endpoint`, or ""."""
        return self.serve or ("endpoint" if self.url else "")

    @property
    def world_size(self) -> int:
        """Devices the engine spans."""
        return self.tp * self.pp


@dataclass(frozen=True, kw_only=True)
class ReferenceEngine:
    """The engine a case is compared with in the same run."""

    label: str
    """What reports call it: `BF16`, `engine_options.use_cache=false`."""

    spec: EngineSpec
    python: str = ""
    """The interpreter it runs under, absolute; "" for the one that runs pytest."""

    reload: bool = False
    """Whether it cannot be held beside the candidate: one of the two is closed while the other runs."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An lm-eval task."""

    name: str
    """The name lm-eval knows it by."""

    path: str = ""
    """The task's own YAML file (absolute once resolved); "" for a task lm-eval ships."""

    num_fewshot: int | None = None
    limit: int | None = None
    """Only the first `limit` documents; None for all."""

    group_by: str = ""
    """A field of the document: documents with equal values (a passage they share) are judged as one group."""

    early_stop: bool = True
    """Whether the evaluation may end before every document is asked, once every gate is decided."""

    replicas: int = 1
    """Engines that answer it, where they run on a cluster that has room for them."""


@dataclass(frozen=True, kw_only=True)
class GpuRequirement:
    """The GPUs a test needs; a machine without them skips it with the reason."""

    sm: int = 0
    """Smallest SM version: 100 is B200, 90 is H100 and H200, 89 is L40S."""

    count: int = 1
    memory_gib: float = 0.0
    """Smallest memory of each GPU, GiB."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one test measures. Its identity decides which baseline applies."""

    engine: EngineSpec
    workload: Workload | None = None
    task: Task | None = None

    def identity(self) -> dict[str, str | int]:
        """The keywords that select and identify the case: str and int only, so that `-m` can select by them."""
        found: dict[str, str | int] = {
            "model": self.engine.served_model_name,
            "quant": self.engine.quant,
            "kv_cache_dtype": self.engine.kv_cache_dtype,
        }
        if self.engine.recipe == QAT:
            found["recipe"] = QAT
        if self.workload is not None:
            found |= {"tp": self.engine.tp, "pp": self.engine.pp, "ep": self.engine.ep, **self.workload.identity()}
            # How fast an engine is depends on the server in front of it; what it answers should not.
            if self.engine.server:
                found["serve"] = self.engine.server
        if self.task is not None:
            found["task"] = self.task.name
            if self.task.num_fewshot is not None:
                found["num_fewshot"] = self.task.num_fewshot
            if self.task.limit is not None:
                found["limit"] = self.task.limit
        return found

    def points(self) -> tuple[Case, ...]:
        """Return the case of each point of a sweep; itself where it is none."""
        if self.workload is None or not self.workload.swept:
            return (self,)
        return tuple(replace(self, workload=point) for point in self.workload.points())

    def to_json(self) -> dict[str, Any]:
        """Plain data for a result file; `case_from_json` is its inverse."""
        return {
            "engine": _plain(self.engine),
            "workload": _plain(self.workload),
            "task": _plain(self.task),
        }


def _plain(value: EngineSpec | Workload | Task | None) -> dict[str, Any] | None:
    if value is None:
        return None
    data: dict[str, Any] = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, EngineSpec):
        data["engine_options"] = dict(value.engine_options)
    if isinstance(value, Workload):
        data["sweep"] = list(value.sweep)
    return data


_OF_THE_ENGINE = frozenset(item.name for item in fields(EngineSpec))


def is_experiment(name: str) -> bool:
    """Say whether overriding a keyword, or a dotted engine option, makes a run whose figures are no baseline.

    Other overrides change the key that a baseline is filed under, or only how much is measured.
    """
    return name == "warmup_rounds" or name.partition(".")[0] in _OF_THE_ENGINE
