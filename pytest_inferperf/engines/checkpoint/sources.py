"""Where weights come from: model folders, hub ids, and the headers of safetensors files. Standard library only."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.errors import CheckpointError

__all__ = [
    "Tensor",
    "is_quantized",
    "local_source",
    "read_headers",
    "read_json",
    "read_scalar",
    "resolve_source",
    "weight_files",
]

_MAX_HEADER_BYTES = 100_000_000

_ELEMENT_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor as its safetensors header describes it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
"""What is downloaded of a hub model."""


def resolve_source(model: str) -> Path:
    """Return the folder that holds `model`: itself, or a snapshot of a hub id.

    Raises `CheckpointError` when there is neither.
    """
    folder = _folder(model)
    if folder is not None:
        return folder
    download = _downloader(model)
    try:
        found = download(model, allow_patterns=_PATTERNS)
    except Exception as error:  # the hub raises its own, requests', httpx's and OS errors
        first_line = str(error).strip().splitlines()[:1]
        raise CheckpointError(
            f"model {model!r} is not a folder, and could not be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {''.join(first_line)}). Give a local folder, or check the name and the network."
        ) from None
    return Path(found).resolve()


def local_source(model: str) -> Path | None:
    """Return what `resolve_source` would, without the network; None where it would download something.

    Raises `CheckpointError` where there is neither a folder nor the means to download.
    """
    folder = _folder(model)
    if folder is not None:
        return folder
    download = _downloader(model)
    try:
        found = Path(download(model, allow_patterns=_PATTERNS, local_files_only=True)).resolve()
        weight_files(found)
    except Exception:  # whatever is not whole here is downloaded
        return None
    return found if (found / "config.json").is_file() else None


def _folder(model: str) -> Path | None:
    """Return the model's folder; None for a hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"model {folder}: no config.json; expected a folder in Hugging Face layout")
        return folder.resolve()
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise CheckpointError(f"model {model}: no such folder")
    return None


def _downloader(model: str) -> Callable[..., str]:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"model {model!r} is not a folder, and huggingface_hub is not installed to download it: "
            'pip install "pytest-inferperf[embedded]"'
        ) from None
    download: Callable[..., str] = snapshot_download
    return download


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises `CheckpointError` naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def is_quantized(folder: Path) -> bool:
    """Whether the folder already is a quantized checkpoint."""
    return (folder / "hf_quant_config.json").is_file() or bool(
        read_json(folder / "config.json").get("quantization_config")
    )


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model, all of those its index names. Pickled weights are refused."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index}: no weight_map")
        files = []
        for name in sorted(set(names.values())):
            if Path(name).name != name:
                raise CheckpointError(f"{index}: {name!r} points out of its folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name}: missing, but named in {index.name}")
            files.append(folder / name)
        return files
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        if pickled:
            raise CheckpointError(
                f"{folder}: {pickled[0]} is a pickle, which may run code when it is loaded, and is refused; save the "
                "model as safetensors"
            )
        raise CheckpointError(f"{folder}: no *.safetensors; other weight formats are not loaded")
    return found


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Describe every tensor of a model without reading the weights.

    Raises `CheckpointError` for a file that is cut short or is not safetensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for tensor in _read_header(path):
            if tensor.name in tensors:
                raise CheckpointError(f"{path}: {tensor.name} is also in {tensors[tensor.name].file.name}")
            tensors[tensor.name] = tensor
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name, file in read_json(index)["weight_map"].items():
            if name not in tensors:
                raise CheckpointError(f"{folder / file}: {name} is missing, but named in {index.name}")
    return tensors


def _read_header(path: Path) -> list[Tensor]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        return [
            _tensor(path, name, entry, offset=8 + length, size=size)
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def _tensor(path: Path, name: str, entry: Mapping[str, Any], *, offset: int, size: int) -> Tensor:
    start, end = entry["data_offsets"]
    tensor = Tensor(
        name=name,
        file=path,
        dtype=entry["dtype"],
        shape=tuple(int(item) for item in entry["shape"]),
        start=offset + start,
        nbytes=end - start,
    )
    if offset + end > size:
        raise ValueError(f"{name} ends at byte {offset + end}, the file at {size}")
    bits = _ELEMENT_BITS.get(tensor.dtype)
    if bits is not None and tensor.numel * bits != tensor.nbytes * 8:
        raise ValueError(f"{name} of shape {list(tensor.shape)} takes {tensor.nbytes} bytes")
    return tensor


def read_scalar(tensor: Tensor) -> float:
    """Read a float32 tensor of one element."""
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        (value,) = struct.unpack("<f", file.read(4))
    return float(value)
