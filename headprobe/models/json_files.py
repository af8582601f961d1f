"""JSON files of a model's folder, and what may lie in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headprobe.errors import ModelError

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
