"""`headprobe heatmap`: draw a score file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.options import OverwritePictureOption
from headprobe.commands.output import stdout_console, write_json
from headprobe.commands.picture_output import PictureFile, figures, picture_file
from headprobe.commands.reading import with_geometry
from headprobe.errors import OptionError
from headprobe.pictures.content import (
    HeatmapContent,
    PictureOptions,
    check_kind,
    difference_content,
    heatmap_content,
    pair_of,
)
from headprobe.pictures.terminal import encodable, terminal_content
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.head_scores import rank_heads
from headprobe.scores.score_file import newest_score_file

SCORES_FOLDER = "scores"


def heatmap_command(
    scores: Annotated[
        Path | None, typer.Argument(help="The score file; default: the newest in scores/.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture, ending in .png, .svg or .pdf; default: beside the score file.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="heatmap, distribution, layers, coverage, ranks, budgets.")
    ] = "heatmap",
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Draw SCORES minus this file.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many heads to circle and list; 0 for none.")] = 10,
    kv_heads: Annotated[
        bool, typer.Option("--kv-heads", help="Show KV heads, each the mean of its query heads.")
    ] = False,
    num_kv_heads: Annotated[
        int | None,
        typer.Option("--num-kv-heads", help="KV heads per layer, for files that do not state it.", show_default=False),
    ] = None,
    budget: Annotated[int, typer.Option("--budget", help="Budgets: tokens kept per KV head, on average.")] = 128,
    beta: Annotated[float, typer.Option("--beta", help="Budgets: closer to 1 gives head scores more weight.")] = 1.2,
    window: Annotated[int, typer.Option("--window", help="Budgets: latest tokens that every head keeps.")] = 8,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Budgets: length of the prompt.")] = 8192,
    overwrite: OverwritePictureOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the picture shows as JSON instead of the terminal's version.")
    ] = False,
) -> None:
    """Draw head scores, layer by head, as a picture and in the terminal."""
    check_kind(kind)
    options = PictureOptions(top, kv_heads, num_kv_heads, budget, beta, window, prompt_tokens)
    if against is not None and kind != "heatmap":
        raise OptionError(f"--against draws a heatmap of the difference, not {kind!r}")
    table = with_geometry(read_any(scores or newest_score_file(SCORES_FOLDER)))
    path = output or _beside(table, "--against" if against else "" if kind == "heatmap" else f"--{kind}")
    picture = picture_file(path, overwrite, {"SCORES": table.path, "--against": against})
    if against is not None:
        _draw_difference(table, with_geometry(read_any(against)), picture, options, as_json)
    elif kind == "heatmap":
        _draw_heatmap(table, picture, options, as_json)
    else:
        _draw_kind(kind, table, picture, options, as_json)


def _beside(scores: AnyScores, ending: str) -> Path:
    return scores.path.with_name(f"{scores.path.stem}{ending}.png")


def _draw_heatmap(scores: AnyScores, file: PictureFile, options: PictureOptions, as_json: bool) -> None:
    content = heatmap_content(scores, options.top, options.kv_heads, options.num_kv_heads)
    _draw_content(content, file)
    if not as_json:
        _print_content(content, file.path)
        return
    best = rank_heads(content.table)[: options.top]
    heads = [{"layer": layer, "head": head, "score": score} for layer, head, score in best]
    write_json({"path": str(file.path), "scores": str(scores.path), "kv_heads": options.kv_heads, "top_heads": heads})


def _draw_difference(
    first: AnyScores, second: AnyScores, file: PictureFile, options: PictureOptions, as_json: bool
) -> None:
    content = difference_content(first, second, options.top, options.kv_heads, options.num_kv_heads)
    _draw_content(content, file)
    if not as_json:
        _print_content(content, file.path)
        return
    pair = pair_of(first, second, options.kv_heads, options.num_kv_heads)
    names = {"path": str(file.path), "scores": str(first.path), "against": str(second.path)}
    heads = [
        {"layer": layer, "head": head, "first": float(pair.tables[0][layer, head]),
         "second": float(pair.tables[1][layer, head]), "difference": difference}
        for layer, head, difference in content.top
    ]  # fmt: skip
    write_json({**names, "kv_heads": content.head_name != "head", "unit": pair.unit, "moved": heads})


def _draw_kind(kind: str, scores: AnyScores, file: PictureFile, options: PictureOptions, as_json: bool) -> None:
    picture = figures().picture_of(kind, scores, options)
    file.write(picture.draw)
    if as_json:
        write_json({"path": str(file.path), "scores": str(scores.path), "kind": kind, **picture.record})
    else:
        words = [picture.subject.title, picture.subject.subtitle, " | ".join(picture.subject.facts), ""]
        _print_lines([*words, *picture.lines], file.path)


def _draw_content(content: HeatmapContent, file: PictureFile) -> None:
    file.write(lambda: figures().content_figure(content))


def _print_content(content: HeatmapContent, path: Path) -> None:
    terminal_content(content, stdout_console())
    _print_lines([], path)


def _print_lines(lines: list[str], path: Path) -> None:
    console = stdout_console()
    for line in [*lines, "", f"picture: {path}"]:
        console.print(encodable(line, console), soft_wrap=True)
