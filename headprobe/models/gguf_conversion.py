"""GGUF files as folders that transformers loads like any other: converted once, kept in the user's cache.

transformers' own reader makes the model (https://huggingface.co/docs/transformers/gguf); the weights are unpacked and
kept in float32, the only number format in which every value of a quantized block is exact. So what is loaded from the
folder in any dtype is what `from_pretrained(..., gguf_file=...)` gives in that dtype.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

from headprobe.errors import DeviceMemoryError, FileAccessError, HeadprobeError, ModelError
from headprobe.models.catalog import CatalogEntry
from headprobe.models.config import check_decoder, read_geometry, whole
from headprobe.models.devices import is_out_of_memory
from headprobe.models.files import read_object
from headprobe.models.gguf_cache import (
    ORIGIN_FILE,
    GgufOrigin,
    cache_folder,
    converted,
    folder_bytes,
    locked,
    writing,
)
from headprobe.models.gguf_file import INSTALL, GgufFile, read_gguf
from headprobe.models.hub import CHUNK, Parts
from headprobe.models.releases import quiet_transformers

ROOM = 1.05  # of the bytes of all weights in float32, for tokenizer and headers
_old_reader: Any = modeling_gguf_pytorch_utils


def say(message: str) -> None:
    """Print `headprobe: message` on stderr, where there is one: a conversion takes minutes."""
    if sys.stderr is not None:
        print(f"headprobe: {message}", file=sys.stderr, flush=True)


def gguf_folder(path: Path) -> tuple[Path, GgufOrigin]:
    """The folder that a GGUF file is converted to, and what is to be said of the file. Converts it where that is new.

    Of two processes that want the same file one converts it and the other waits. A folder appears whole or not at all.
    Raises `ModelError` for a file that cannot be read or is of an architecture that transformers does not convert,
    `FileAccessError` where the cache cannot be written or has no room.
    """
    file = read_gguf(path)
    return converted(file.sha256) or convert_once(file, GgufOrigin(file.name, file.sha256, dict(file.types)))


def packaged_folder(entry: CatalogEntry, parts: Parts) -> tuple[Path, GgufOrigin]:
    """The folder that the packaged model is converted to; see `gguf_cache.gguf_folder`, whose errors it raises.

    Raises `ModelError` too where the packages hold another model than their names say.
    """
    sha256 = parts.sha256()
    folder, origin = converted(sha256) or _convert_parts(parts, sha256)
    config = read_object(folder / "config.json") or {}
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    wanted, held = ([source[name] for name in names] for source in (vars(entry), {n: config.get(n) for n in names}))
    if wanted != held:
        raise ModelError(f"{parts.packages} holds another model than {entry.alias}: {held} are its {', '.join(names)}")
    return folder, GgufOrigin(parts.file, sha256, origin.types, parts.packages)


def read_gguf_config(file: GgufFile) -> Any:
    """The transformers config that a GGUF file's metadata stand for, checked as that of a folder is.

    Raises `ModelError` for an architecture that transformers does not read, or that cannot be probed.
    """
    _refuse_without_packages()
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(file.path.absolute().parent, gguf_file=file.path.name)
    except Exception as error:
        raise ModelError(
            f"{file.path}: transformers {transformers.__version__} cannot read a GGUF file of the architecture "
            f"{file.architecture!r:.60}: {whole(error)}"
        ) from error
    check_decoder(config, file.path)
    read_geometry(config, file.path)
    return config


def convert_once(file: GgufFile, origin: GgufOrigin) -> tuple[Path, GgufOrigin]:
    """Convert a file unless another process does so meanwhile. Raises as `gguf_folder`."""
    read_gguf_config(file)  # what is refused is refused before the long work
    root = cache_folder()
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    _refuse_without_room(root, file)
    with locked(root, origin.sha256, lambda lock: _say_waiting(file, lock)):
        there = converted(origin.sha256)
        if there is not None:
            return there
        for left in root.glob(f"{origin.sha256}.*.tmp"):  # of a process that was killed: we have its lock
            shutil.rmtree(left, ignore_errors=True)
        say(
            f"converting {file.name} ({_size(file.nbytes)}, {', '.join(origin.types)}) for transformers, once: "
            "this takes a minute or two for each 500 million parameters"
        )
        with writing(root):
            made = Path(tempfile.mkdtemp(prefix=f"{origin.sha256}.", suffix=".tmp", dir=root))
        try:
            _convert(file, made)
            with writing(root):
                (made / ORIGIN_FILE).write_text(json.dumps(origin.record() | _environment()), encoding="utf-8")
                _sync(made)
                made.rename(root / origin.sha256)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    folder = root / origin.sha256
    say(
        f"{file.name} is kept as {folder} ({_size(folder_bytes(folder))}, float32); `headprobe models --clean-cache` "
        "removes it"
    )
    if file.rescales_rotary:
        say(
            f"note: {file.name} rescales its rotary frequencies, which transformers' GGUF reader leaves out: beyond "
            "the length that the model was first trained on its answers get worse than the original's"
        )
    return folder, origin


# -- conversion -----------------------------------------------------------------------------------------------------


def _convert(file: GgufFile, folder: Path) -> None:
    """Write model and tokenizer of a file into a folder, as `from_pretrained` with `gguf_file` loads them."""
    source, name = file.path.absolute().parent, file.path.name
    try:
        with quiet_transformers(), _no_bars():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, gguf_file=name)
            _set_special_tokens(tokenizer, file)
            tokenizer.save_pretrained(folder)
            unpacked: Any = transformers.GgufConfig(dequantize=True)  # without it newer releases keep them packed
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source, gguf_file=name, dtype=torch.float32, quantization_config=unpacked, output_loading_info=True
            )
            model, info = loaded
            _check_complete(file, info)
            model.save_pretrained(folder)
    except HeadprobeError:
        raise
    except OSError as error:
        raise FileAccessError(f"cannot convert {file.path}: {error.strerror or whole(error)}") from error
    except Exception as error:
        if is_out_of_memory(error):
            needed = _size(4 * file.num_elements)
            raise DeviceMemoryError(f"{file.path}: unpacked it takes {needed} of memory, more than there is") from error
        raise ModelError(f"{file.path} cannot be converted: {whole(error)}") from error


def _set_special_tokens(tokenizer: Any, file: GgufFile) -> None:
    """Special tokens as the file states them: older releases of transformers end a text where it begins."""
    for role, token_id in file.special.items():
        token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
        if token is not None and getattr(tokenizer, role) != token:
            setattr(tokenizer, role, token)
    for switch, is_on in file.adds.items():
        if getattr(tokenizer, switch, is_on) != is_on:
            setattr(tokenizer, switch, is_on)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Progress bars of transformers' older reader, which heeds no setting, on a terminal only."""
    bar = _old_reader.tqdm
    if sys.stderr is None or not sys.stderr.isatty():
        _old_reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        _old_reader.tqdm = bar


def _check_complete(file: GgufFile, info: Mapping[str, Any]) -> None:
    """transformers fills gaps with random numbers and only warns; here a gap is an error."""
    names = sorted(str(name) for name in info.get("missing_keys") or ())
    if names:
        raise ModelError(f"{file.path}: {len(names)} weight(s) missing, for example {names[0]}")


def _refuse_without_packages() -> None:
    """transformers reads GGUF files with two packages of the extra. Raises `ModelError`."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"GGUF files are read with {' and '.join(missing)}, not installed here: {INSTALL}")


def _convert_parts(parts: Parts, sha256: str) -> tuple[Path, GgufOrigin]:
    """Join the parts for as long as the conversion takes."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{sha256}.", suffix=".joined", dir=root))
    except OSError as error:
        raise FileAccessError(f"cannot write into the cache {root}: {error.strerror}") from None
    try:
        joined = beside / parts.file
        _join(parts.paths, joined)
        file = read_gguf(joined)
        return convert_once(file, GgufOrigin(parts.file, sha256, dict(file.types), parts.packages))
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _join(paths: Sequence[Path], target: Path) -> None:
    try:
        with target.open("wb") as whole:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole, CHUNK)
    except OSError as error:
        raise FileAccessError(f"cannot join the parts of {target.name}: {error.strerror}") from None


def _refuse_without_room(root: Path, file: GgufFile) -> None:
    needed, free = int(ROOM * 4 * file.num_elements), shutil.disk_usage(root).free
    if needed > free:
        raise FileAccessError(
            f"{file.name} takes {_size(needed)} once it is converted, {root} has {_size(free)} left: name a roomier "
            "folder with HEADPROBE_CACHE"
        )


def _environment() -> dict[str, str]:
    return {"transformers": transformers.__version__, "dtype": "float32"}


def _say_waiting(file: GgufFile, lock: Path) -> None:
    say(f"another process is converting {file.name}: waiting until it has ended ({lock})")


def _sync(folder: Path) -> None:
    """Force the files onto the disk, so that the name that comes next does not outlive them in a power cut."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _size(nbytes: int) -> str:
    """In decimal units, as file managers show it.

    >>> _size(98_362_432), _size(2_520_669_696)
    ('98 MB', '2.5 GB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"
