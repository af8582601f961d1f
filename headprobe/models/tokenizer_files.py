"""The files of a tokenizer: what is checked before they are read, and which of them is broken when reading failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headprobe.errors import ModelError, shown
from headprobe.models.json_files import POINTER_HINT, is_pointer, read_object

CONFIG_FILE = "tokenizer_config.json"
JSON_FILES = (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


def check_tokenizer_config(folder: Path) -> None:
    """Raise `ModelError` for a `tokenizer_config.json` whose chat template is no text, or that is no JSON object."""
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
