"""A model's files: JSON, tokenizer, weights; whole, all there, and no pointers to what was not fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headprobe.errors import ModelError, shown

# JSON files of a model's folder, and what may lie in their place.

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_HINT = "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of a large one that was not fetched. False for what is no file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises `ModelError` for what transformers cannot read.

    Numbers may be NaN or infinite, and keys may come twice, as for transformers, which reads the file after us.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, need a file")
    if not path.is_file():
        return None
    if is_pointer(path):
        raise ModelError(f"{path} {POINTER_HINT}")
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not a valid JSON file: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ModelError(f"{path} is not a valid JSON file: it is nested too deeply") from None
    except ValueError as error:  # also an integer of thousands of digits
        reason = str(error).split(";")[0]
        raise ModelError(f"{path} is not a valid JSON file: {reason}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a valid JSON file of a model: it holds no object")
    return found


# The files of a tokenizer: what is checked before they are read, and which of them is broken when reading failed.

CONFIG_FILE = "tokenizer_config.json"
JSON_FILES = (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


def check_tokenizer_config(folder: Path) -> None:
    """Raise `ModelError` for a `tokenizer_config.json` with a chat template that is not text, or that is no object."""
    try:
        found = read_object(folder / CONFIG_FILE)
    except ModelError as error:
        raise ModelError(f"{folder}: broken tokenizer: {_without(folder, error)}") from None
    template = (found or {}).get("chat_template")
    if not _is_template(template):
        raise ModelError(f"{folder}: chat_template in {CONFIG_FILE} is {shown(template)}, need text, or texts by name")


def broken_tokenizer_file(folder: Path) -> str | None:
    """Which file of a tokenizer that could not be loaded is broken, and how; None where none is by itself."""
    for path in sorted(folder.glob("*")):
        if path.suffix in {".json", ".model", ".txt"} and is_pointer(path):
            return f"{path.name} {POINTER_HINT}"
    for name in JSON_FILES:
        try:
            read_object(folder / name)
        except ModelError as error:
            return _without(folder, error)
    return None


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, dict) and isinstance(part.get("template"), str) for part in value)
    if isinstance(value, dict):
        return all(isinstance(part, str) for part in value.values())
    return value is None or isinstance(value, str)


def _without(folder: Path, error: ModelError) -> str:
    return str(error).removeprefix(f"{folder}/")


# The files of a model's weights: whole, all there, and no pointers to what was not fetched.

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
            return f"is not a safetensors file, or cut off: its header would have {length} bytes, the file has {size}"
        header = file.read(length)
    return _header_fault(header, size)


def _header_fault(header: bytes, size: int) -> str | None:
    try:
        parts = json.loads(header)
        ends = [part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"]
        end = 8 + len(header) + max(ends, default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        return "is not a safetensors file: its header is broken"
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
