"""Model files from the Hugging Face hub: the local cache first, the network where it is allowed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, utils

from headprobe.errors import ModelError
from headprobe.models.catalog import FOLDER_HINT, ResolvedModel

CONFIG_FILES = ("config.json",)
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
PICKLED_WEIGHTS = ("pytorch_model*.bin",)
PLAN_FILES = ("*.json", "*.model", "*.txt", "*.jinja")  # all but the weights
CODE_FILES = ("*.py",)
_SKIPPED = ["*/*", "consolidated*"]
_COMMIT = re.compile(r"[0-9a-f]{40}")


@contextmanager
def quiet_downloads() -> Iterator[None]:
    """No warnings from the hub client inside, and its progress bars only on a terminal."""
    bars: Any = utils
    logging = bars.logging
    level, hide = logging.get_verbosity(), not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if hide:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if hide:
            bars.enable_progress_bars()


def is_offline() -> bool:
    """Whether the environment forbids the hub (`HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`)."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any((value or "").strip().upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def cache_folder() -> Path:
    """Where hub files are kept (`HF_HUB_CACHE`, else `HF_HOME`/hub)."""
    return Path(constants.HF_HUB_CACHE)


def cached_folder(repo_id: str) -> Path | None:
    """The cached snapshot of `repo_id`, or None. Never touches the network."""
    config = huggingface_hub.try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_folder())
    return Path(config).parent if isinstance(config, str) else None


def revision_of(folder: Path) -> str | None:
    """The commit hash of a folder in the hub's cache (its name), None for any other folder.

    >>> revision_of(Path("my-model")) is None
    True
    """
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def fetch(resolved: ResolvedModel, patterns: tuple[str, ...]) -> Path:
    """Download the files of a hub model that match `patterns` and return the folder of its snapshot.

    Without network the cached snapshot serves. Raises `ModelError` saying what was tried when there is neither.
    """
    try:
        with quiet_downloads():
            folder = huggingface_hub.snapshot_download(
                resolved.source, allow_patterns=list(patterns), ignore_patterns=_SKIPPED, local_files_only=is_offline()
            )
    except Exception as error:
        cached = cached_folder(resolved.source)
        if cached is not None and isinstance(error, FileNotFoundError):
            return cached
        raise ModelError(f"{_tried(resolved)}, {_reason(error)}; {FOLDER_HINT}") from error
    return Path(folder)


def _tried(resolved: ResolvedModel) -> str:
    """What a name was taken for, as far as it led nowhere."""
    if resolved.name == resolved.source:
        return f"model {resolved.name!r}: no such alias (`headprobe models` lists them), no such folder"
    return f"model {resolved.name!r} is the hub's {resolved.source!r}"


def _reason(error: Exception) -> str:
    """Why a download failed, in words that say what to do about it."""
    name, where = type(error).__name__, f"no copy in {cache_folder()}"
    if is_offline():
        return f"{where}, and HF_HUB_OFFLINE is set, so the hub is not contacted"
    if name == "GatedRepoError":
        return "its licence has to be accepted on the hub's page first, then `hf auth login`"
    if name == "RepositoryNotFoundError":
        return "no such repository on the hub, or a private one (`hf auth login`)"
    if name == "HFValidationError":
        return "and not a valid hub id"
    if isinstance(error, FileNotFoundError):
        return f"{where}, and the hub cannot be reached"
    return f"{where}, and the hub answered {name}: {' '.join(str(error).split())[:160]}"
