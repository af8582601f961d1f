"""`headprobe models`: the short names of models and what is known about each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, stdout_console, write_json
from headprobe.errors import ModelError
from headprobe.models.catalog import CATALOG, CatalogEntry, bundled_model_folder, is_bundled, planted_heads
from headprobe.models.gguf_cache import Removed, cache_folder, clean_cache
from headprobe.models.hub import cached_folder, installed_parts


def models_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects instead of a table.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean-cache", help="Remove the folders that GGUF files were converted to, and stop.")
    ] = False,
) -> None:
    """List the models that have a short name, and where they are on this machine."""
    if clean:
        _clean(as_json)
        return
    records = [model_record(entry) for entry in CATALOG]
    if as_json:
        write_json(records)
        return
    print_table(
        ("name", "id", "layers x heads / KV", "window", "licence", "on this machine", "note"),
        [_row(record) for record in records],
        right=("layers x heads / KV", "window"),
    )


def model_record(entry: CatalogEntry) -> dict[str, Any]:
    """An alias as `--json` prints it; `path` is None for a model that is not here, `planted_heads` for `demo` only."""
    path = local_path(entry)
    record: dict[str, Any] = {
        "name": entry.alias,
        "id": entry.repo_id,
        "path": None if path is None else str(path),
        "num_hidden_layers": entry.num_hidden_layers,
        "num_attention_heads": entry.num_attention_heads,
        "num_key_value_heads": entry.num_key_value_heads,
        "head_dim": entry.head_dim,
        "window": entry.window,
        "licence": entry.licence,
        "note": entry.note,
    }
    if entry.repo_id is None:
        record["planted_heads"] = _copying_heads()
    return record


def local_path(entry: CatalogEntry) -> Path | None:
    """Where the model lies: in our package, in the hub's cache, in another installed package, or nowhere (None)."""
    if entry.repo_id is None:
        return bundled_model_folder() if is_bundled() else None
    parts = installed_parts(entry.alias)
    return cached_folder(entry.repo_id) or (None if parts is None else parts.paths[0].parent)


def _clean(as_json: bool) -> None:
    found = clean_cache()
    if as_json:
        write_json([{"path": str(r.path), "file": r.file, "bytes": r.nbytes, "removed": r.is_gone} for r in found])
    elif found:
        _print_removed(found)
    else:
        stdout_console().print(f"nothing to remove in {cache_folder()}", soft_wrap=True, markup=False)


def _print_removed(found: list[Removed]) -> None:
    rows = [
        (r.file or "unfinished", f"{r.nbytes:,}", str(r.path) if r.is_gone else f"{r.path} is being written: left")
        for r in found
    ]
    print_table(("file", "bytes", "removed"), rows, right=("bytes",))
    freed = sum(r.nbytes for r in found if r.is_gone)
    stdout_console().print(f"\n{freed:,} bytes freed", soft_wrap=True, markup=False)


def _copying_heads() -> list[list[int]] | None:
    try:
        return [list(pair) for pair in planted_heads().copying]
    except ModelError:
        return None


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    heads = "{num_hidden_layers} x {num_attention_heads} / {num_key_value_heads}".format(**record)
    where = record["path"] or ("missing" if record["id"] is None else "not downloaded")
    size = f"{record['window']:,}"
    return record["name"], record["id"] or "bundled", heads, size, record["licence"], where, record["note"]
