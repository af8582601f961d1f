"""Which tokens end a sequence, and the `generation_config.json` that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from headprobe.errors import ModelError, shown
from headprobe.models.decoders import whole
from headprobe.models.json_files import read_object
from headprobe.models.quiet import quiet_transformers

GENERATION_FILE = "generation_config.json"
LARGEST_ID = 2**31 - 1


def token_ids(value: Any, where: str) -> set[int]:
    """The token ids in `value`: one, a list of them, or None. Raises `ModelError`, which begins with `where`.

    >>> sorted(token_ids([2, 7], "eos_token_id"))
    [2, 7]
    """
    found = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= LARGEST_ID for i in found):
        raise ModelError(f"{where} is {shown(value)}, need a token id (a whole number of 0 or more) or a list of them")
    return set(found)


def end_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """All token ids that end a sequence, by the model's generation config and the tokenizer."""
    stated = token_ids(getattr(model.generation_config, "eos_token_id", None), "eos_token_id of the generation config")
    return stated | token_ids(tokenizer.eos_token_id, "eos_token_id of the tokenizer")


def check_generation_config(folder: Path) -> None:
    """Raise `ModelError` for a `generation_config.json` that transformers would leave out without a word, or fail at.

    It may be missing.
    """
    path = folder / GENERATION_FILE
    found = read_object(path)
    if found is None:
        return
    token_ids(found.get("eos_token_id"), f"{path}: eos_token_id")
    for name in ("bos_token_id", "pad_token_id"):
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_ID):
            raise ModelError(f"{path}: {name} is {shown(value)}, need a token id (a whole number)")
    try:
        with quiet_transformers():
            transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(f"{path} cannot be used: {whole(error)}") from error
