"""The model that a score file belongs to, where the file itself says too little."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from headprobe.errors import ModelError, OptionError
from headprobe.geometry import FULL_ATTENTION, ModelGeometry
from headprobe.home import in_home
from headprobe.models.catalog import CATALOG, CatalogEntry, find_alias
from headprobe.models.gguf_file import is_gguf
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.file_bytes import file_bytes
from headprobe.scores.strict_json import parse


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
    """The geometry of a model of the catalog, which does not tell the layers' kinds of attention."""
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
