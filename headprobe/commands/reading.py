"""What commands read: prompts, and score files with the model they belong to where the file says too little."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from headprobe.errors import FileAccessError, FileFormatError, ModelError, OptionError
from headprobe.geometry import FULL_ATTENTION, ModelGeometry
from headprobe.home import in_home
from headprobe.models.catalog import CATALOG, CatalogEntry, find_alias
from headprobe.models.gguf_file import is_gguf
from headprobe.probes.plan import parse_lengths
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.files import file_bytes
from headprobe.scores.strict_json import parse

# The model that a score file belongs to, where the file itself says too little.


@dataclass(frozen=True)
class StatedModel:
    """A model's name and geometry, and `source`: who states them (`--model`, the file, or the file's name)."""

    name: str
    geometry: ModelGeometry
    source: str


def stated_model(scores: AnyScores, model: str | None = None) -> StatedModel | None:
    """The model of a file: from `--model` (an alias, a hub id of the catalog, or a folder with `config.json`), else
    from the file, else from its name and folder, where the catalog knows it. None where nothing is known.

    Raises `OptionError` for a `--model` that is neither in the catalog nor a folder, `ModelError` for a folder whose
    config states no geometry.
    """
    if model is not None:
        return StatedModel(model, named_geometry(model), "--model")
    if scores.geometry is not None and scores.model is not None:
        return StatedModel(scores.model, scores.geometry, "the file")
    for text, source in ((scores.model, "the file"), (_name_of(scores.path), "the file's name")):
        entry = None if text is None else catalog_entry_in(text)
        if entry is not None:
            return StatedModel(entry.repo_id or entry.alias, entry_geometry(entry), source)
    return None


def named_geometry(model: str) -> ModelGeometry:
    """The geometry of an alias, a hub id that the catalog holds, a local folder or a GGUF file.

    Raises `OptionError` for any other name, `ModelError` for a folder or file that cannot be read.
    """
    entry = find_alias(model) or next((e for e in CATALOG if (e.repo_id or "").lower() == model.lower()), None)
    if entry is not None:
        return entry_geometry(entry)
    if (in_home(model) / "config.json").is_file():
        return _folder_geometry(in_home(model))
    if is_gguf(in_home(model)):
        from headprobe.models.loading import geometry_of  # torch, only for what needs transformers to be read

        return geometry_of(model)
    raise OptionError(
        f"--model {model!r} is neither in the catalog (see `headprobe models`) nor a model's folder or GGUF file"
    )


def catalog_entry_in(text: str) -> CatalogEntry | None:
    """The model of the catalog whose name is part of `text` (of several the longest), or None.

    >>> catalog_entry_in("Meta-Llama-3-8B-Instruct_retrieval_heads").alias
    'llama3-8b'
    """
    plain = _plain(text)
    names = ((_plain(entry.repo_id.split("/")[-1]), entry) for entry in CATALOG if entry.repo_id is not None)
    found = [(len(name), entry) for name, entry in names if name in plain]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def entry_geometry(entry: CatalogEntry) -> ModelGeometry:
    """The geometry of a model of the catalog, which does not state the layers' kinds of attention."""
    layers = entry.num_hidden_layers
    heads = entry.num_attention_heads, entry.num_key_value_heads
    return ModelGeometry(layers, *heads, entry.head_dim, (FULL_ATTENTION,) * layers)


def _folder_geometry(folder: Path) -> ModelGeometry:
    config = parse(file_bytes(folder / "config.json", 2**20), folder / "config.json")
    config = config if isinstance(config, dict) else {}
    text = config.get("text_config")
    try:
        return ModelGeometry.from_config(SimpleNamespace(**(text if isinstance(text, dict) else config)))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def _name_of(path: Path) -> str:
    return f"{path.absolute().parent.name} {path.name}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# What commands read: prompts, and score files with the number of KV heads also where the file does not tell.


def with_geometry(scores: AnyScores, model: str | None = None) -> AnyScores:
    """The scores with the geometry of the model that `--model`, the file or its name states, where it fits the table.

    Raises `OptionError` for a `--model` that is not known or has other heads than the file.
    """
    stated = None if scores.geometry is not None and model is None else stated_model(scores, model)
    if stated is None:
        return scores
    layers, heads, groups = (
        stated.geometry.num_hidden_layers,
        stated.geometry.num_attention_heads,
        stated.geometry.num_key_value_heads,
    )
    if scores.mean.shape == (layers, heads if scores.heads == "query" else groups):
        return scores if scores.geometry is not None else replace(scores, geometry=stated.geometry)
    if model is not None:
        shape = f"{scores.num_layers} layers of {scores.num_heads} {'query' if scores.heads == 'query' else 'KV'} heads"
        raise OptionError(
            f"{scores.path.name} has {shape}, --model {model} {layers} layers of {heads} query and {groups} KV heads"
        )
    return scores


def one_length(text: str, option: str, longest: int | None = None) -> int:
    """Tokens from text such as `2k`, at most `longest`. Raises `OptionError`, which names `option`."""
    lengths = parse_lengths(text) if longest is None else parse_lengths(text, longest)
    if len(lengths) != 1:
        raise OptionError(f"{option} takes one length, got {text!r}")
    return lengths[0]


def read_text(prompt: str) -> str:
    """The text of a file, or of stdin (`-`), as a haystack is read: UTF-8, without a byte order mark, lines end in \\n.

    Raises `FileFormatError` for what is not text, or empty, `FileAccessError` for a file that cannot be read.
    """
    name = "stdin" if prompt == "-" else prompt
    if prompt == "-" and sys.stdin is None:
        raise FileAccessError("stdin is closed")
    data = _stdin() if prompt == "-" else in_home(prompt).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"byte {error.start} is not UTF-8: a prompt is plain text", name) from None
    if "\x00" in text:
        raise FileFormatError(f"a zero byte at character {text.index(chr(0))}: a prompt is plain text", name)
    if not text.strip():
        raise FileFormatError("the prompt is empty", name)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _stdin() -> bytes:
    """All of stdin; its bytes, since how they are decoded would depend on the locale."""
    buffer = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode("utf-8", "surrogatepass") if buffer is None else buffer.read()


def prompt_name(prompt: str | None) -> str:
    """What output calls a prompt that was read from a file, or from stdin (`-`)."""
    return "stdin" if prompt == "-" else Path(str(prompt)).name
