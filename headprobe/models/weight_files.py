"""The files of a model's weights: whole, all there, and no pointers to what was not fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headprobe.errors import ModelError, shown
from headprobe.models.json_files import POINTER_HINT, is_pointer, read_object

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LARGEST_HEADER = 100 * 2**20  # the limit of the format


def check_weight_files(folder: Path) -> None:
    """Raise `ModelError`, which names the file, for weights that cannot be loaded; their numbers are not read.

    Looks at the files that transformers would take: one safetensors file, else those of its index, else pickled ones.
    """
    for name in _wanted(folder):
        reason = fault(folder / name)
        if reason is not None:
            raise ModelError(f"{folder}: the weights cannot be loaded: {name} {reason}")


def fault(path: Path) -> str | None:
    """What is wrong with a file of weights, None where nothing is seen to be."""
    if is_pointer(path):
        return POINTER_HINT
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return None if size else "is empty"
    if size < 8:
        return f"has {size} bytes, less than a header"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, LARGEST_HEADER):
            return f"is no safetensors file, or cut off: its header would have {length} bytes, the file has {size}"
        header = file.read(length)
    return _header_fault(header, size)


def _header_fault(header: bytes, size: int) -> str | None:
    try:
        parts = json.loads(header)
        ends = [part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"]
        end = 8 + len(header) + max(ends, default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        return "is no safetensors file: its header is broken"
    return None if end <= size else f"is cut off: it has {size} bytes, by its header {end}"


def _wanted(folder: Path) -> list[str]:
    """The names of the files with weights; empty where there are none, which transformers says itself."""
    for single, index in zip(SINGLE, INDEX, strict=True):
        if (folder / single).is_file():
            return [single]
        if (folder / index).exists():
            return _shards(folder, index)
    return []


def _shards(folder: Path, index: str) -> list[str]:
    """The files that an index names, all of which must be there."""
    try:
        found: Any = (read_object(folder / index) or {}).get("weight_map")
    except ModelError as error:
        raise ModelError(f"{folder}: the weights cannot be loaded: {str(error).removeprefix(f'{folder}/')}") from None
    names = set(found.values()) if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()) else ()
    if not names:
        raise ModelError(
            f"{folder}: {index} has the weight_map {shown(found)}, need the name of a file for each weight"
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        many = f" and {len(missing) - 1} more," if len(missing) > 1 else ","
        raise ModelError(
            f"{folder}: the weights cannot be loaded: {index} names {shown(missing[0])}{many} of {len(names)} file(s), "
            "which are missing from the folder"
        )
    return sorted(names)
