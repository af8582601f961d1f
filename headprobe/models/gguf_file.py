"""GGUF files: what their header says, and what can be refused before any of their numbers are read.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from headprobe.errors import FileAccessError, ModelError, shown
from headprobe.models.files import POINTER_HINT, is_pointer

MAGIC = b"GGUF"
ENDING = ".gguf"
VERSIONS = (2, 3)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
INSTALL = "pip install 'headprobe[gguf]'"
MOST_DIMENSIONS = 8
MOST_ENTRIES = 2**24  # of metadata or tensors: more is no header, but noise
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TOKENIZER = "tokenizer.ggml."
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ADDED = {name: name for name in ("add_bos_token", "add_eos_token")}
_ROTARY_TENSOR = "rope_freqs.weight"  # frequencies of Llama 3.1 and later, written out


@dataclass(frozen=True)
class GgufFile:
    """What the header of a GGUF file says; `read_gguf` makes it.

    `types`: how many tensors are of which type ("Q4_1", "F32"), the most frequent first. `num_elements`: of all tensors
    together. `special`: ids of its special tokens, by what transformers calls them ("bos_token"); `adds`: whether these
    are put at the ends of a text, as far as it says so ("add_bos_token"). `rescales_rotary`: whether it changes its
    rotary frequencies, which transformers' reader leaves out.
    """

    path: Path
    architecture: str
    types: Mapping[str, int]
    num_elements: int
    special: Mapping[str, int]
    adds: Mapping[str, bool]
    rescales_rotary: bool

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.absolute().name

    @cached_property
    def sha256(self) -> str:
        """Of the whole file. Raises `FileAccessError` where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileAccessError(f"cannot read {self.path}: {error.strerror}") from None

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


def is_gguf(path: Path) -> bool:
    """Whether this is a file that is called a GGUF, or begins like one (some programs keep them without the ending)."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ENDING:
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file, and whether all that it announces is there; its numbers are not read.

    Raises `ModelError` for what is no GGUF, is cut off, one of several parts, or of types that the `gguf` package does
    not know; `FileAccessError` where it cannot be read. Needs that package for the sizes of quantized blocks, and says
    how to get it where it is missing.
    """
    try:
        if is_pointer(path):
            raise ModelError(f"{path} {POINTER_HINT}")
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise ModelError(f"{path} is no GGUF file: it begins with {shown(start)}, need {MAGIC!r}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, tensors, end = _Header(data, path).read()
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
    _refuse_part(path, metadata)
    _check_whole(path, metadata, tensors, end)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelError(f"{path}: general.architecture is {shown(architecture)}, need the name of an architecture")
    counts = Counter(_type_name(tensor.kind) for tensor in tensors)
    return GgufFile(
        path=path,
        architecture=architecture,
        types=dict(counts.most_common()),
        num_elements=sum(prod(tensor.shape) for tensor in tensors),
        special=_stated(metadata, _SPECIAL, int),
        adds=_stated(metadata, _ADDED, bool),
        rescales_rotary=_rescales_rotary(metadata, architecture, tensors),
    )


# -- the bytes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """Reads a header from its first byte on. Every length in it is checked against the file before it is believed."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, len(MAGIC)

    def read(self) -> tuple[dict[str, Any], list[_Tensor], int]:
        """The metadata (arrays as their length), the table of tensors, and where it ends."""
        version = self._number("<I")
        if version not in VERSIONS:
            told = "big-endian" if version and version % 2**16 == 0 else f"version {version}"
            raise ModelError(f"{self._path}: a {told} GGUF, need version 2 or 3, little-endian")
        num_tensors, num_entries = self._count("tensors"), self._count("entries")
        metadata = {}
        for _ in range(num_entries):
            name = self._text()
            metadata[name] = self._value(self._number("<I"))
        return metadata, [self._tensor() for _ in range(num_tensors)], self._at

    def _tensor(self) -> _Tensor:
        name = self._text()
        dimensions = self._number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise self._broken(f"tensor {shown(name)} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return _Tensor(name, shape, self._number("<I"), self._number("<Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _NUMBERS:
                self._skip(count * struct.calcsize(_NUMBERS[inner]))
                return count
            if inner != _STRING:
                raise self._broken(f"an array of values of type {inner}")
            for _ in range(min(count, len(self._data))):
                self._skip(self._number("<Q"))
            return count
        if kind not in _NUMBERS:
            raise self._broken(f"a value of type {kind}")
        return self._number(_NUMBERS[kind])

    def _count(self, noun: str) -> int:
        count: int = self._number("<Q")
        if count > MOST_ENTRIES:
            raise self._broken(f"{count} {noun}")
        return count

    def _number(self, form: str) -> Any:
        start = self._at
        self._skip(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)[0]

    def _text(self) -> str:
        length = self._number("<Q")
        start = self._at
        self._skip(length)
        try:
            return self._data[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken("a text that is not UTF-8") from None

    def _skip(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise ModelError(
                f"{self._path} is cut off: its header goes on behind the last of its {len(self._data)} bytes"
            )
        self._at += length

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: the header of the GGUF file is broken: it has {what}")


def _check_whole(path: Path, metadata: Mapping[str, Any], tensors: list[_Tensor], end: int) -> None:
    """Raise `ModelError` where tensors are announced that the file has no room for."""
    if not tensors:
        raise ModelError(f"{path} holds no tensors: a vocabulary alone is no model")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1:
        raise ModelError(f"{path}: general.alignment is {shown(alignment)}, need a number of bytes")
    begin = -(-end // alignment) * alignment
    last = max(tensors, key=lambda tensor: tensor.offset)
    due, found = max(begin + t.offset + _nbytes(path, t) for t in tensors), path.stat().st_size
    if due > found:
        raise ModelError(f"{path} is cut off: it has {found} bytes, by its header {due} (the last is {last.name:.60})")


def _nbytes(path: Path, tensor: _Tensor) -> int:
    """Bytes of a tensor. Raises `ModelError` for a type that is not known."""
    kinds, sizes = _package()
    try:
        block, nbytes = sizes[kinds(tensor.kind)]
    except (ValueError, KeyError):
        known = "a newer `gguf` package may know it: pip install --upgrade gguf"
        raise ModelError(f"{path}: tensor {tensor.name:.60} is of the unknown type {tensor.kind}; {known}") from None
    return prod(tensor.shape) // int(block) * int(nbytes)


def _type_name(kind: int) -> str:
    kinds, _ = _package()
    return str(kinds(kind).name)


def _package() -> tuple[Any, Mapping[Any, tuple[int, int]]]:
    """Types of tensors and their block sizes, as the `gguf` package has them.

    Raises `ModelError` where it is missing.
    """
    try:
        package = import_module("gguf")
    except ImportError:
        raise ModelError(f"GGUF files are read with the package gguf, which is not installed: {INSTALL}") from None
    return package.GGMLQuantizationType, package.GGML_QUANT_SIZES


# -- what is refused, and what is said ------------------------------------------------------------------------------


def _refuse_part(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise `ModelError` for one file of several: neither transformers nor the `gguf` package joins them."""
    named, number = PART.search(path.name), metadata.get("split.count", 0)
    if named is None and (not isinstance(number, int) or number < 2):
        return
    total = int(named[2]) if named is not None else number
    if total < 2:
        return
    whole, first = path.name, path.name
    if named is not None:
        stem = path.name[: named.start()]
        whole, first = f"{stem}.gguf", f"{stem}-00001-of-{named[2]}.gguf"
    raise ModelError(
        f"{path} is one of {total} parts: join them with llama.cpp's `llama-gguf-split --merge {first} {whole}`, "
        "then name the joined file"
    )


def _stated(metadata: Mapping[str, Any], names: Mapping[str, str], kind: type) -> dict[str, Any]:
    """What the metadata say of the tokenizer under these names, where it is of this type."""
    found = {ours: metadata.get(_TOKENIZER + theirs) for ours, theirs in names.items()}
    return {name: value for name, value in found.items() if type(value) is kind}


def _rescales_rotary(metadata: Mapping[str, Any], architecture: str, tensors: list[_Tensor]) -> bool:
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    return kind not in ("none", "default") or any(tensor.name == _ROTARY_TENSOR for tensor in tensors)
