"""What a build would find, asked without building: is the checkpoint there, and is its model? Nothing is written."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.checkpoint.cache import MANIFEST, cache_key, default_cache_dir, entry_name, key_inputs
from pytest_inferperf.engines.checkpoint.sources import is_quantized, local_source, read_json
from pytest_inferperf.errors import CheckpointError
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.plan import CheckpointOutlook

__all__ = ["foresee_checkpoint"]

READ_AT_MOST = 64 << 20
"""Bytes of the largest model file that is hashed for an outlook; the hashes of larger ones are remembered from builds."""


def foresee_checkpoint(spec: EngineSpec, *, cache_dir: Path | None = None, shared: str = "") -> CheckpointOutlook:
    """Say where the checkpoint that `spec` asks for would come from, in milliseconds, and without the network.

    A cached entry is looked at by its manifest and the sizes of its files, not by their hashes. Raises
    `CheckpointError` for a model that is neither a folder nor can be downloaded.
    """
    source = local_source(spec.model)
    quantizes = spec.quant != "BF16"
    if source is None:
        then = ", then quantized unless it already is" if quantizes else ""
        return CheckpointOutlook(state="download", text=f"{spec.model} to be downloaded from the hub{then}")
    if not quantizes or is_quantized(source):
        return CheckpointOutlook(state="in place", text=f"used in place: {source}")
    root = (cache_dir or default_cache_dir()).expanduser().absolute()
    inputs = key_inputs(spec, source, root, read_at_most=READ_AT_MOST)
    unread = {name for name, digest in inputs["files"].items() if not digest}
    if not unread:
        entry = root / entry_name(spec, cache_key(inputs))
        if _is_whole(entry):
            return CheckpointOutlook(state="cached", text=f"cached: {entry.name}")
    else:
        # A build remembers the hashes that it reads, but the cache may have been filled elsewhere.
        for entry in sorted(root.glob(glob.escape(entry_name(spec, "")) + "*")):
            if _is_whole(entry) and _fits(read_json(entry / MANIFEST).get("key"), inputs, unread):
                return CheckpointOutlook(state="cached", text=f"cached, weights not compared: {entry.name}")
    unless = f", unless it is in {shared}" if shared else ""
    return CheckpointOutlook(state="build", text=f"to be built from {source}{unless}")


def _is_whole(entry: Path) -> bool:
    try:
        files = read_json(entry / MANIFEST)["files"]
        return all((entry / name).stat().st_size == item["size"] for name, item in files.items())
    except (AttributeError, CheckpointError, KeyError, OSError, TypeError):
        # Damaged, or of another version: a build would not take it either.
        return False


def _fits(key: Any, inputs: Mapping[str, Any], unread: set[str]) -> bool:
    """Whether an entry was built from these inputs, as far as they were read."""
    if not isinstance(key, dict) or not isinstance(key.get("files"), dict):
        return False
    files = {name: "" if name in unread else digest for name, digest in key["files"].items()}
    return {**key, "files": files} == inputs
