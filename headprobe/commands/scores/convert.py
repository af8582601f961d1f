"""`headprobe scores convert`: a score file in another program's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import one_line, write_json
from headprobe.commands.reading import StatedModel, stated_model
from headprobe.commands.streams import write_error
from headprobe.errors import OptionError
from headprobe.geometry import FULL_ATTENTION, ModelGeometry
from headprobe.scores.any_scores import AnyScores, StatedFacts, convert, read_any
from headprobe.scores.files import check_place, refuse_one_place, write_atomically
from headprobe.scores.formats import FORMATS, names_to_write


def convert_command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="The score file, native or foreign.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="The new file; with --to duo a folder.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(names_to_write())}.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose scores these are: an alias, a hub id of the catalog or a folder."),
    ] = None,
    num_kv_heads: Annotated[
        int | None, typer.Option("--num-kv-heads", help="KV heads per layer, for models not in the catalog.")
    ] = None,
    head_dim: Annotated[
        int | None,
        typer.Option("--head-dim", help="Width of a head, for models not in the catalog; default: 1."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="The method, where the file does not state it.")
    ] = None,
    gqa: Annotated[
        str, typer.Option("--gqa", help="How query heads are combined into a KV head with --to duo: mean or max.")
    ] = "mean",
    sink_size: Annotated[int | None, typer.Option("--sink-size", help="For Duo's config.json.")] = None,
    recent_size: Annotated[int | None, typer.Option("--recent-size", help="For Duo's config.json.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths and notes as JSON.")] = False,
) -> None:
    """Write a score file in another format, and say what that format cannot hold."""
    _check(gqa, sink_size, recent_size)
    scores = read_any(source)
    stated = stated_model(scores, model)
    geometry = _geometry(scores, stated, num_kv_heads, head_dim)
    sizes = {"sink_size": sink_size, "recent_size": recent_size}
    config = {name: size for name, size in sizes.items() if size is not None}
    knows_width = stated is not None or head_dim is not None
    made = convert(scores, to, StatedFacts(stated.name if stated else None, geometry, method, gqa, config, knows_width))
    files = _places(output, made.files)
    refuse_one_place({f"output {number}": path for number, path in enumerate(files, 1)}, _read(source, scores))
    for path in files:
        check_place(path, overwrite)
    for path, data in files.items():
        write_atomically(path, data, overwrite)
    if as_json:
        paths = [str(path) for path in files]
        write_json({"source": str(source), "from": scores.format, "to": to, "paths": paths, "notes": list(made.lost)})
        return
    for note in (*scores.notes, *made.lost):
        write_error(one_line(note))
    for path in files:
        print(f"written to {path}")


def _read(source: Path, scores: AnyScores) -> dict[str, Path]:
    """What is read, none of which may be written over: some formats have several files."""
    beside = {f"IN's {path.name}": path for path in FORMATS[scores.format].beside(scores.path)}
    return {"IN": source, "IN's table": scores.path} | beside


def _check(gqa: str, *sizes: int | None) -> None:
    if gqa not in ("mean", "max"):
        raise OptionError(f"--gqa is {gqa!r}, need mean or max")
    for size in sizes:
        if size is not None and size < 0:
            raise OptionError(f"a window of {size} tokens, need at least 0")


def _geometry(
    scores: AnyScores, stated: StatedModel | None, num_kv_heads: int | None, head_dim: int | None
) -> ModelGeometry | None:
    """That of the model; `--num-kv-heads` and `--head-dim` stand in for a model that nobody knows."""
    if stated is not None:
        due = stated.geometry.num_key_value_heads
        if num_kv_heads not in (None, due):
            raise OptionError(f"--num-kv-heads is {num_kv_heads}, {stated.name} (stated by {stated.source}) has {due}")
        return stated.geometry
    if num_kv_heads is None or scores.heads == "kv":
        return None
    width = 1 if head_dim is None else head_dim
    _check_divides(scores.num_heads, num_kv_heads, width)
    layers = scores.num_layers
    return ModelGeometry(layers, scores.num_heads, num_kv_heads, width, (FULL_ATTENTION,) * layers)


def _check_divides(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise OptionError(f"--num-kv-heads is {num_kv_heads}, need a divisor of the {num_heads} query heads")
    if head_dim < 1:
        raise OptionError(f"--head-dim is {head_dim}, need at least 1")


def _places(output: Path, files: Mapping[str, bytes]) -> dict[Path, bytes]:
    """Where each file goes: one without a name to `output` itself, a table with its config into that folder."""
    if "" in files:
        return {output: files[""]}
    table, *others = files
    if output.suffix == Path(table).suffix != "":
        return {output: files[table]} | {output.parent / name: files[name] for name in others}
    return {output / name: data for name, data in files.items()}
