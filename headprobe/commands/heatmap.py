"""`headprobe heatmap`: draw a score file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprobe.commands.output import stdout_console, write_json

if TYPE_CHECKING:
    from headprobe.scores.head_scores import HeadScores

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
    top: Annotated[int, typer.Option("--top", help="How many heads to ring and to list.")] = 10,
    kv_heads: Annotated[
        bool, typer.Option("--kv-heads", help="Show KV heads, each the mean of its query heads.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print path and top heads as JSON instead of the picture.")
    ] = False,
) -> None:
    """Draw head scores, layer by head, as a picture and in the terminal."""
    from headprobe.pictures.heatmap import draw_heatmap
    from headprobe.scores.score_file import load_scores, newest_score_file

    source = scores or newest_score_file(SCORES_FOLDER)
    table = load_scores(source)
    path = draw_heatmap(table, output or source.with_suffix(".png"), top, kv_heads)
    if as_json:
        write_json(heatmap_record(table, source, path, top, kv_heads))
        return
    _print(table, path, top, kv_heads)


def heatmap_record(scores: HeadScores, source: Path, path: Path, top: int, kv_heads: bool) -> dict[str, Any]:
    """What `--json` prints; with KV heads, `head` counts these."""
    from headprobe.scores.head_scores import rank_heads

    best = rank_heads(scores.to_kv_heads())[:top] if kv_heads else scores.top(top)
    heads = [{"layer": layer, "head": head, "score": score} for layer, head, score in best]
    return {"path": str(path), "scores": str(source), "kv_heads": kv_heads, "top_heads": heads}


def _print(scores: HeadScores, path: Path, top: int, kv_heads: bool) -> None:
    from headprobe.pictures.terminal import terminal_heatmap

    console = stdout_console()
    terminal_heatmap(scores, console, top, kv_heads)
    console.print(f"\npicture: {path}", soft_wrap=True, highlight=False, markup=False)
