"""The heatmap of head scores in a terminal: half blocks in colour, or plain characters."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from textwrap import wrap

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from headprobe.pictures.content import HeatmapContent, heatmap_content, tick_step
from headprobe.pictures.style import AT_NIGHT, BELOW_NIGHT, RGB, along, is_dark
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, HeadScores

SHADES = " .:-=+*#%@"
SHADES_ABOVE, SHADES_BELOW = " .:+*#", " -~=oO"  # of differences
UPPER_HALF = "\u2580"
NO_BREAK = "\u00a0"  # keeps a fact on one line while wrapping; printed as a space
MOST_LINES = 24
WIDEST = 100


def terminal_heatmap(scores: HeadScores | AnyScores, console: Console, top: int = 10, kv_heads: bool = False) -> None:
    """Print `scores` on `console`: one row per layer, one column per head, and the `top` best heads below.

    With at least 256 colours a head is a square made of half blocks, with its rank inside where there is room.
    Without colour (NO_COLOR, no terminal, no block characters) it is a character of `SHADES`, from 0 to the best
    score. Heads that are too many for the width are joined side by side, by the largest, and a line says so.
    """
    terminal_content(heatmap_content(scores, top, kv_heads), console)


def terminal_content(content: HeatmapContent, console: Console) -> None:
    """Print a table of heads and the words around it on `console`, as `terminal_heatmap` does."""
    for line in _lines(content, console):
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def shows_colour(console: Console) -> bool:
    """Whether the console can show half blocks in (at least 256) colours."""
    enough = console.color_system in {"256", "truecolor"}
    return enough and console.is_terminal and not console.no_color and not console.options.ascii_only


@dataclass(frozen=True)
class _Grid:
    """How the table fits the terminal: `joined` heads a column, and the size of a head in characters and lines."""

    table: Floats
    joined: int
    width: int
    height: float
    margin: int

    @property
    def column_step(self) -> int:
        """Heads from one column label to the next."""
        widest = len(str(self.table.shape[1] * self.joined)) + 1
        return tick_step(self.table.shape[1], max(1, self.table.shape[1] * self.width // widest))


def _lines(content: HeatmapContent, console: Console) -> list[Text]:
    room = min(console.width, WIDEST)
    coloured = shows_colour(console)
    grid = _fitted(content.table, room, coloured, content.diverging)
    rows = _half_blocks(content, grid) if coloured else _characters(grid, content.diverging)
    facts = " | ".join(fact.replace(" ", NO_BREAK) for fact in content.facts)
    above = [line for text in (content.title, content.subtitle, facts) for line in wrap(text, room)]
    pad = " " * grid.margin
    lines = [
        *above,
        "",
        *rows,
        pad + _column_labels(grid) + f"  {content.head_name}",
        "",
        *_legend(content, room, coloured),
    ]
    if grid.joined > 1:
        lines += wrap(f"each column is the best of {grid.joined} neighbouring heads", room)
    if content.diverging:
        lines += wrap(content.scale_title, room)
    if content.asked:
        named = f"{_marked(content)}: " + ", ".join(_named(content))
        lines += wrap(named, room, subsequent_indent="     ", break_on_hyphens=False)
    return [encodable(line, console) for line in lines]


def _marked(content: HeatmapContent) -> str:
    return "moved" if content.diverging else "top"


def _named(content: HeatmapContent) -> list[str]:
    named = [f"{layer}-{head}{NO_BREAK}{content.number(score)}" for layer, head, score in content.top]
    return named or ["none" if content.diverging else "none above 0"]


def encodable(line: str | Text, console: Console) -> Text:
    """A line in the letters that the console has; others become question marks."""
    if isinstance(line, Text):
        return line
    plain = line.replace(NO_BREAK, " ")
    return Text(plain.encode(console.encoding, "replace").decode(console.encoding))


def _fitted(table: Floats, room: int, coloured: bool, diverging: bool) -> _Grid:
    layers, heads = table.shape
    margin = max(len(str(layers - 1)), 2) + 2
    space = max(room - margin - 9, 8)
    joined = ceil(heads / space)
    if joined > 1:
        filled = np.full((layers, ceil(heads / joined) * joined), 0.0 if diverging else -np.inf)
        filled[:, :heads] = table
        table = (
            _furthest(filled.reshape(layers, -1, joined)) if diverging else filled.reshape(layers, -1, joined).max(2)
        )
    least = 0.5 if coloured else 1.0
    sizes = [(4, 2.0), (2, 1.0), (1, 0.5)] if coloured else [(4, 2.0), (2, 1.0), (1, 1.0)]
    most = max(MOST_LINES, layers * least)
    fitting = [(w, h) for w, h in sizes if table.shape[1] * w <= space and layers * h <= most]
    width, height = fitting[0] if fitting else sizes[-1]
    return _Grid(table, joined, width, height, margin)


def _furthest(joined: Floats) -> Floats:
    """Of each group along the last axis the value that is furthest from 0."""
    at = np.abs(joined).argmax(axis=2)[..., None]
    return np.take_along_axis(joined, at, axis=2)[..., 0]


def _row_label(grid: _Grid, layer: int) -> str:
    layers = grid.table.shape[0]
    step = max(tick_step(layers, 16), 1 if grid.height >= 1 else 2)
    return (str(layer) if layer % step == 0 else "").rjust(grid.margin - 2) + "  "


def _column_labels(grid: _Grid) -> str:
    line = ""
    for column in range(0, grid.table.shape[1], grid.column_step):
        line = line.ljust(column * grid.width) + str(column * grid.joined)
    return line.ljust(grid.table.shape[1] * grid.width)


def _characters(grid: _Grid, diverging: bool) -> list[str]:
    best = float(np.abs(grid.table).max() if diverging else grid.table.max())
    shade = _signed_shade if diverging else _shade
    lines: list[str] = []
    for layer, row in enumerate(grid.table.tolist()):
        cells = "".join(shade(score, best) * grid.width for score in row)
        label = _row_label(grid, layer)[:-1] + "|"
        blank = " " * (grid.margin - 1) + "|"
        lines += [f"{label if i == 0 else blank}{cells}|" for i in range(max(1, int(grid.height)))]
    return lines


def _shade(score: float, best: float, shades: str = SHADES) -> str:
    share = max(score, 0.0) / best if best > 0.0 else 0.0
    return shades[round(share * (len(shades) - 1))]


def _signed_shade(score: float, best: float) -> str:
    return _shade(abs(score), best, SHADES_ABOVE if score >= 0.0 else SHADES_BELOW)


def _half_blocks(content: HeatmapContent, grid: _Grid) -> list[Text]:
    reach = float(np.abs(grid.table).max()) or 1.0
    colours = [[_colour(score / reach) for score in row] for row in grid.table.tolist()]
    if grid.height < 1:
        return [_two_layers(grid, colours, layer) for layer in range(0, len(colours), 2)]
    ranks = {(layer, head): rank for rank, (layer, head, _) in enumerate(content.top, 1) if grid.joined == 1}
    return [line for layer in range(len(colours)) for line in _tall_layer(grid, colours[layer], layer, ranks)]


def _two_layers(grid: _Grid, colours: list[list[RGB]], layer: int) -> Text:
    line = Text(_row_label(grid, layer))
    lower = colours[layer + 1] if layer + 1 < len(colours) else None
    for column, upper in enumerate(colours[layer]):
        style = Style(color=_rich(upper), bgcolor=None if lower is None else _rich(lower[column]))
        line.append(UPPER_HALF * grid.width, style)
    return line


def _tall_layer(grid: _Grid, colours: list[RGB], layer: int, ranks: dict[tuple[int, int], int]) -> list[Text]:
    """The lines of one layer; ranks stand on the first."""
    lines: list[Text] = []
    for index in range(int(grid.height)):
        line = Text(_row_label(grid, layer) if index == 0 else " " * grid.margin)
        for head, colour in enumerate(colours):
            rank = str(ranks.get((layer, head), "")) if index == 0 else ""
            ink = (255, 255, 255) if is_dark(colour) else (0, 0, 0)
            shown = rank if len(rank) <= grid.width else ""
            line.append(shown.center(grid.width), Style(color=_rich(ink), bgcolor=_rich(colour), bold=bool(rank)))
        lines.append(line)
    return lines


def _legend(content: HeatmapContent, room: int, coloured: bool) -> list[str | Text]:
    low, high = content.limits
    if not coloured and content.diverging:
        return [f"{content.number(low)} '{SHADES_BELOW[::-1]}' 0 '{SHADES_ABOVE}' {content.number(high)}"]
    if not coloured:
        return [f"0 '{SHADES}' {content.number(max(float(content.table.max()), 0.0))}"]
    best = high if content.diverging else max(float(content.table.max()), 0.0)
    noun = "difference" if content.diverging else "mean score"
    line, end = Text(f"{content.number(low)} "), f" {content.number(best)}  {noun}"
    width = min(24, room - len(line) - len(end))
    reach = max(-low, high)
    for step in np.linspace(low / reach, high / reach, max(width, 2)).tolist():
        line.append(" ", Style(bgcolor=_rich(_colour(step))))
    return [line.append(end)]


def _colour(fraction: float) -> RGB:
    return along(AT_NIGHT, fraction) if fraction >= 0 else along(BELOW_NIGHT, -fraction)


def _rich(colour: RGB) -> Color:
    return Color.from_rgb(*colour)
