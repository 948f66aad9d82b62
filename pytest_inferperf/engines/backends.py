"""The table of backends: what each needs, and where its class is. Asking costs no import."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.errors import EngineError, MissingExtra, choices
from pytest_inferperf.model.case import EngineSpec

__all__ = ["BACKENDS", "Backend", "resolve_backend", "runs_tensorrt_llm"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to run a checkpoint."""

    name: str
    class_path: str
    """`module:Class`, imported only in the engine's own process, or once it is opened."""

    requires: tuple[str, ...]
    """Importable modules it needs."""

    extra: str
    """The extra of this package that installs them."""

    needs_gpu: bool = False
    install_hint: str = ""
    """What to know beyond the extra."""

    def missing(self) -> str | None:
        """Name the first module that is not installed; None when all are there."""
        return next((name for name in self.requires if importlib.util.find_spec(name) is None), None)


BACKENDS: dict[str, Backend] = {
    row.name: row
    for row in (
        Backend(
            name="transformers",
            class_path="pytest_inferperf.engines.transformers_engine:TransformersEngine",
            requires=("torch", "transformers", "safetensors", "modelopt"),
            extra="embedded",
        ),
        Backend(
            name="tensorrt_llm",
            class_path="pytest_inferperf.engines.tensorrt_llm.engine:TensorrtLlmEngine",
            requires=("tensorrt_llm", "pynvml"),
            extra="tensorrt-llm",
            needs_gpu=True,
            install_hint=(
                "The public index holds a stub of tensorrt-llm: install it from NVIDIA's own package index "
                "(pip install --extra-index-url <NVIDIA's index> tensorrt-llm), or run in NVIDIA's TensorRT-LLM "
                "release container, where it is."
            ),
        ),
        # In a server: what it needs is the server's affair.
        Backend(
            name="openai",
            class_path="pytest_inferperf.engines.openai.engine:OpenAIEngine",
            requires=(),
            extra="server",
        ),
    )
}


def resolve_backend(name: str, *, installed: bool = True) -> Backend:
    """Find a backend by name; `auto` takes TensorRT-LLM where it and its GPU are present, else transformers.

    `installed` False leaves its packages unchecked: those of another environment are known only there. Raises `EngineError` for an unknown name and `MissingExtra` for a backend whose packages are not installed.
    """
    if name == "auto":
        usable = BACKENDS["tensorrt_llm"].missing() is None and has_nvidia_gpu()
        name = "tensorrt_llm" if usable else "transformers"
    backend = BACKENDS.get(name)
    if backend is None:
        raise EngineError(f"unknown backend {name!r}.\n{choices(name, ['auto', *BACKENDS], what='Backends')}")
    missing = backend.missing() if installed else None
    if missing is not None:
        raise MissingExtra(f"the {backend.name} backend", backend.extra, missing, hint=backend.install_hint)
    return backend


def runs_tensorrt_llm(spec: EngineSpec) -> bool:
    """Whether TensorRT-LLM runs a spec, in our process or in a server that we start."""
    if spec.serve:
        from pytest_inferperf.engines.servers.presets import takes_engine_options

        return takes_engine_options(spec.serve)
    if spec.url:
        return False
    if spec.backend == "auto":
        return BACKENDS["tensorrt_llm"].missing() is None and has_nvidia_gpu()
    return spec.backend == "tensorrt_llm"


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver shows a device; asks neither torch nor the driver."""
    return Path("/dev/nvidia0").exists() or (Path("/dev/dxg").exists() and shutil.which("nvidia-smi") is not None)
