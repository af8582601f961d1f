"""`headprobe scores compare`: how far score files agree, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprobe.commands.options import OverwritePictureOption
from headprobe.commands.output import print_table, printable, stdout_console, write_json
from headprobe.commands.picture_output import PictureFile, figures, picture_file
from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.comparison import Comparison, Move, compare

if TYPE_CHECKING:
    Pairs = dict[tuple[str, str], Comparison]

MOST_FILES = 26


def compare_command(
    files: Annotated[list[Path], typer.Argument(help="Two or more score files of any format.", show_default=False)],
    gqa: Annotated[
        str, typer.Option("--gqa", help="How query heads are combined into KV heads where files differ: mean or max.")
    ] = "mean",
    moved: Annotated[int, typer.Option("--moved", help="How many of the heads that moved most to list.")] = 10,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Draw ranks and scores to this .png, .svg or .pdf.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwritePictureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the rankings of score files: Spearman, overlap of the best heads, and the heads that moved most."""
    if not 2 <= len(files) <= MOST_FILES:
        told = f"{len(files)} score file{'s' if len(files) > 1 else ''}"
        raise OptionError(f"{told} given, need 2 to {MOST_FILES} to compare")
    if moved < 0:
        raise OptionError(f"--moved is {moved}, need at least 0")
    inputs = {f"input {number}": path for number, path in enumerate(files, 1)}
    picture = None if output is None else picture_file(output, overwrite, inputs)
    sides = {chr(ord("A") + i): read_any(path) for i, path in enumerate(files)}
    pairs = {(a, b): compare(sides[a], sides[b], num_moved=moved, gqa=gqa) for a, b in combinations(sides, 2)}
    if picture is not None:
        _draw(sides, pairs, picture)
    if as_json:
        write_json(compare_record(sides, pairs, output))
        return
    _print(sides, pairs)
    if output is not None:
        stdout_console().print(f"\npicture: {output}", soft_wrap=True, markup=False)


def compare_record(sides: dict[str, AnyScores], pairs: Pairs, picture: Path | None) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "files": [_file(name, scores) for name, scores in sides.items()],
        "pairs": [_pair(names, found, sides) for names, found in pairs.items()],
        "picture": None if picture is None else str(picture),
    }


def _file(name: str, scores: AnyScores) -> dict[str, Any]:
    native, trials = scores.native, scores.trial_scores
    return {
        "name": name,
        "path": str(scores.path),
        "format": scores.format,
        "model": scores.model,
        "method": scores.method,
        "heads": scores.heads,
        "num_layers": int(scores.mean.shape[0]),
        "num_heads": int(scores.mean.shape[1]),
        "num_trials": native.num_passed if native else None if trials is None else len(trials),
        "lengths": sorted({t.length for t in native.trials}) if native else None,
        "seed": native.provenance.probes.get("seed") if native else None,
    }


def _pair(names: tuple[str, str], found: Comparison, sides: dict[str, AnyScores]) -> dict[str, Any]:
    return {
        "first": names[0],
        "second": names[1],
        "paths": [str(sides[name].path) for name in names],
        "heads": found.heads,
        "num_heads": int(found.first.size),
        "spearman": found.spearman,
        "spearman_interval": None if found.low is None else [found.low, found.high],
        "attainable_spearman": found.attainable,
        "top_k_overlap": [vars(overlap) for overlap in found.overlaps],
        "moved": [vars(move) for move in found.moved],
        "notes": list(found.notes),
    }


def _draw(sides: dict[str, AnyScores], pairs: Pairs, picture: PictureFile) -> None:
    drawn = [
        figures().PictureOfPair(_label(a, sides[a]), _label(b, sides[b]), comparison)
        for (a, b), comparison in pairs.items()
    ]
    picture.write(lambda: figures().comparison_figure(drawn))


def _label(name: str, scores: AnyScores) -> str:
    said = ", ".join(text for text in (scores.model, scores.method) if text)
    return f"{name}  {scores.path.stem}" + (f" ({said})" if said else "")


def _print(sides: dict[str, AnyScores], pairs: Pairs) -> None:
    _print_files([_file(name, scores) for name, scores in sides.items()])
    console = stdout_console()
    heads = next(iter(pairs.values()))
    unit = {"query": "query heads", "kv": "KV heads"}[heads.heads]
    console.print(f"\nagreement over {heads.first.size:,} {unit}:\n" if len(pairs) == 1 else "\nagreement:\n")
    _print_pairs(pairs)
    _print_moved(pairs)
    for note in dict.fromkeys(note for found in pairs.values() for note in found.notes):
        console.print(f"note: {printable(note)}", soft_wrap=True, markup=False)


def _print_files(records: Sequence[dict[str, Any]]) -> None:
    words = {"query": "query heads", "kv": "KV heads"}
    rows = [
        (
            *(r[name] for name in ("name", "path", "format", "model", "method")),
            f"{r['num_layers']} x {r['num_heads']} {words[r['heads']]}",
            *(r["num_trials"], _span(r["lengths"]), r["seed"]),
        )
        for r in records
    ]
    columns = ("", "file", "format", "model", "method", "heads", "trials", "tokens", "seed")
    shown = [i for i, column in enumerate(columns) if i < 7 or any(row[i] is not None for row in rows)]
    print_table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows], right=("trials", "seed"))


def _span(lengths: Sequence[int] | None) -> str | None:
    if not lengths:
        return None
    return f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"


def _print_pairs(pairs: Pairs) -> None:
    tops = sorted({overlap.k for found in pairs.values() for overlap in found.overlaps})
    columns = ("", "Spearman", "95 % interval", "attainable", *(f"top {k}" for k in tops))
    rows = []
    for (a, b), found in pairs.items():
        shared = {overlap.k: f"{overlap.shared:.3g}" for overlap in found.overlaps}
        interval = None if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
        rows.append(
            (f"{a} {b}", _decimals(found.spearman), interval, _decimals(found.attainable), *map(shared.get, tops))
        )
    if len(pairs) == 1:
        chances = (f"{overlap.by_chance:.2g}" for overlap in next(iter(pairs.values())).overlaps)
        rows.append(("by chance", "0", None, None, *chances))
    print_table(columns, rows, right=columns[1:])


def _print_moved(pairs: Pairs) -> None:
    for (a, b), found in pairs.items():
        if not found.moved:
            continue
        stdout_console().print(f"\nheads that moved most from {a} to {b}:\n")
        rows = [(f"{m.layer}-{m.head}", *_numbers(m)) for m in found.moved]
        columns = ("layer-head", f"rank in {a}", f"rank in {b}", f"score in {a}", f"score in {b}")
        print_table(columns, rows, right=columns[1:])
    stdout_console().print()


def _decimals(number: float | None) -> str | None:
    return None if number is None else f"{number:.3f}"


def _numbers(move: Move) -> tuple[str, ...]:
    return tuple(f"{n:.4g}" for n in (move.first_rank, move.second_rank, move.first_score, move.second_score))
