"""The heatmap of head scores as a figure: layers down, heads across, the best heads circled and numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke

from headprobe.pictures.content import HeatmapContent, heatmap_content, tick_step
from headprobe.pictures.page import (
    COLUMN,
    LINE,
    HeatmapLayout,
    Page,
    figure_bytes,
    fitting_size,
    house_style,
    pieces,
    wrapped,
)
from headprobe.pictures.style import (
    BELOW_ZERO,
    INK,
    ON_PAPER,
    PAPER,
    QUIET,
    RING,
    along,
    format_of,
    hexadecimal,
    is_dark,
)
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.files import refuse_existing, write_atomically
from headprobe.scores.head_scores import HeadScores

# Where the rank of a ringed head is written, so that no two numbers meet.

INSIDE_FROM = 14.0  # points: a cell this wide holds its number
_NEAR = ((1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class RankLabel:
    """The number `rank` at `(x, y)` in cells, `x` along the heads; `leader` when it stands away from its ring."""

    rank: int
    x: float
    y: float
    leader: bool = False


def place_ranks(
    heads: Sequence[tuple[int, int]], shape: tuple[int, int], cell_points: float, font_points: float
) -> list[RankLabel]:
    """A label for each of the `heads` `(layer, head)`, best first.

    In wide cells the number stands inside. In narrow ones it stands beside the ring, at the nearest of a fixed
    series of places that is inside the map and touches no ring and no other number; a head without such a place
    goes without a number (the list beside the map names it).

    >>> place_ranks([(0, 1)], (4, 8), 40.0, 9.0)
    [RankLabel(rank=1, x=1, y=0, leader=False)]
    """
    if cell_points >= INSIDE_FROM:
        return [RankLabel(rank, head, layer) for rank, (layer, head) in enumerate(heads, 1)]
    taken = [(head - 0.6, layer - 0.6, head + 0.6, layer + 0.6) for layer, head in heads]
    labels: list[RankLabel] = []
    for rank, (layer, head) in enumerate(heads, 1):
        half_width = (0.32 * len(str(rank)) + 0.08) * font_points / cell_points
        half_height = 0.44 * font_points / cell_points
        for x, y, leader in _places(head, layer, half_width, half_height):
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            if _inside(box, shape) and not any(_meet(box, other) for other in taken):
                taken.append(box)
                labels.append(RankLabel(rank, x, y, leader))
                break
    return labels


def _places(head: int, layer: int, half_width: float, half_height: float) -> list[tuple[float, float, bool]]:
    return [
        (head + right * (0.62 + half_width + away), layer + down * (0.62 + half_height + away), away > 0)
        for away in (0.0, 1.0, 2.0, 3.0)
        for right, down in _NEAR
    ]


def _inside(box: tuple[float, float, float, float], shape: tuple[int, int]) -> bool:
    layers, heads = shape
    return box[0] >= -0.5 and box[1] >= -0.5 and box[2] <= heads - 0.5 and box[3] <= layers - 0.5


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_heatmap(
    scores: HeadScores | AnyScores,
    path: Path | str,
    top: int = 10,
    kv_heads: bool = False,
    overwrite: bool = False,
) -> Path:
    """Draw `scores` into `path`, a png, svg or pdf, and return it. The same scores give the same bytes.

    The `top` best heads above 0 are circled, numbered by rank and listed; with `kv_heads` the columns are KV heads,
    each the mean of its query heads. Raises `OutputExistsError` for an existing picture unless `overwrite` is
    true, `OptionError` for another file type or a negative `top`, `NoPassingTrialError` when there is nothing to draw.
    """
    kind = format_of(path)
    refuse_existing(path, overwrite)
    return write_atomically(path, heatmap_bytes(scores, kind, top, kv_heads), overwrite)


def heatmap_bytes(scores: HeadScores | AnyScores, kind: str = "png", top: int = 10, kv_heads: bool = False) -> bytes:
    """The figure as a file of `kind` png, svg or pdf. Raises as `draw_heatmap`."""
    return figure_bytes(lambda: heatmap_figure(scores, top, kv_heads), kind)


def heatmap_figure(scores: HeadScores | AnyScores, top: int = 10, kv_heads: bool = False) -> Figure:
    """The figure itself, for a notebook. Raises as `draw_heatmap`."""
    return content_figure(heatmap_content(scores, top, kv_heads))


def content_figure(content: HeatmapContent) -> Figure:
    """The figure of a table of heads and the words around it."""
    with house_style():
        return _figure(content)


def _figure(content: HeatmapContent) -> Figure:
    rows, columns = content.table.shape
    layout = HeatmapLayout(rows, columns, len(content.top))
    measure = layout.width - layout.left - layout.right
    subtitle = wrapped(pieces(content.subtitle), " ", 9.5, measure)
    facts = wrapped(list(content.facts), "  \u00b7  ", 8.0, measure)
    head = layout.top + 0.14 + LINE * len(subtitle) + 0.24
    foot = layout.under_map + layout.scale_height + layout.under_scale + LINE * len(facts) + layout.bottom
    page = Page(layout.width, head + layout.body_height + foot)
    page.text(layout.left, layout.top, content.title, size=fitting_size(content.title, 13.0, measure), weight="bold")
    page.lines(layout.left, layout.top + 0.26, subtitle, size=9.5, colour=QUIET)
    _draw_map(page.axes(layout.left, head, *layout.map_size), content, layout)
    _draw_list(page, content, layout, head)
    below = head + layout.body_height + layout.under_map
    _draw_scale(page.axes(layout.left, below, layout.scale_width, layout.scale_height), content)
    page.lines(layout.left, below + layout.scale_height + layout.under_scale + 0.12, facts, size=8.0, colour=QUIET)
    return page.figure


def _colours(content: HeatmapContent) -> tuple[ListedColormap, Normalize]:
    low, high = content.limits
    reach = max(-low, high)
    steps = np.linspace(low / reach, high / reach, 512)
    shades = [along(ON_PAPER if step >= 0 else BELOW_ZERO, abs(float(step))) for step in steps]
    return ListedColormap(np.array(shades) / 255.0), Normalize(low, high)


def _draw_map(axes: Axes, content: HeatmapContent, layout: HeatmapLayout) -> None:
    rows, columns = content.table.shape
    palette, norm = _colours(content)
    line = min(1.2, layout.cell_points * 0.05)
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    axes.pcolormesh(*edges, content.table, cmap=palette, norm=norm, edgecolors=hexadecimal(PAPER), linewidth=line)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(0, columns, tick_step(columns, 16)))
    axes.set_yticks(range(0, rows, tick_step(rows, 20)))
    axes.set_xlabel(content.head_name, fontsize=9.5, color=hexadecimal(INK), labelpad=3)
    axes.set_ylabel("layer", fontsize=9.5, color=hexadecimal(INK), labelpad=3)
    if content.group_size > 1:
        borders = np.arange(content.group_size, columns, content.group_size) - 0.5
        axes.vlines(borders, -0.5, rows - 0.5, color=hexadecimal(PAPER), linewidth=line * 3, zorder=2)
    _draw_rings(axes, content, layout)


def _draw_rings(axes: Axes, content: HeatmapContent, layout: HeatmapLayout) -> None:
    heads = [(layer, head) for layer, head, _ in content.top]
    palette, norm = _colours(content)
    fills = [palette(norm(score)) for _, _, score in content.top]
    line = min(2.0, max(1.0, layout.cell_points * 0.07))
    ring, tile = 0.5 - 0.4 * line / layout.cell_points, 0.5 - 1.5 * line / layout.cell_points
    empty = [Rectangle((head - 0.5, layer - 0.5), 1, 1) for layer, head in heads]
    for shapes, style in (
        (empty, {"facecolor": hexadecimal(PAPER)}),
        (_rounded(heads, ring), {"facecolor": "none", "edgecolor": hexadecimal(RING), "linewidth": line}),
        (_rounded(heads, tile), {"facecolor": fills}),
    ):
        axes.add_collection(PatchCollection(shapes, clip_on=False, zorder=3, **style), autolim=False)
    _draw_ranks(axes, content, layout, heads, fills)


def _rounded(heads: list[tuple[int, int]], half: float) -> list[FancyBboxPatch]:
    style = "round,pad=0,rounding_size=0.2"
    return [FancyBboxPatch((head - half, layer - half), 2 * half, 2 * half, boxstyle=style) for layer, head in heads]


def _draw_ranks(
    axes: Axes,
    content: HeatmapContent,
    layout: HeatmapLayout,
    heads: list[tuple[int, int]],
    fills: list[tuple[float, float, float, float]],
) -> None:
    inside = layout.cell_points >= INSIDE_FROM
    size = min(10.0, layout.cell_points * 0.42) if inside else 7.0
    halo = [] if inside else [withStroke(linewidth=2.0, foreground=hexadecimal(PAPER))]
    for label in place_ranks(heads, content.table.shape, layout.cell_points, size):
        layer, head = heads[label.rank - 1]
        red, green, blue = (round(255 * part) for part in fills[label.rank - 1][:3])
        ink = (PAPER if is_dark((red, green, blue)) else INK) if inside else RING
        if label.leader:
            axes.plot([head, label.x], [layer, label.y], color=hexadecimal(RING), linewidth=0.6, zorder=2.5)
        style: Any = {"ha": "center", "va": "center_baseline", "weight": "bold", "path_effects": halo, "zorder": 4}
        axes.text(label.x, label.y, str(label.rank), fontsize=size, color=hexadecimal(ink), **style)


def _draw_list(page: Page, content: HeatmapContent, layout: HeatmapLayout, y: float) -> None:
    if not content.top:
        return
    x = layout.left + layout.map_size[0] + layout.gap
    for index, (layer, head, score) in enumerate(content.top[: layout.num_listed]):
        column, line = divmod(index, layout.lines_per_column)
        at, base = x + column * COLUMN, y + (line + 1) * LINE + 0.13
        page.text(at + 0.2, base, str(index + 1), 8.5, color=hexadecimal(RING), weight="bold", ha="right")
        page.text(at + 0.3, base, f"{layer}-{head}", 8.5)
        page.text(at + COLUMN - 0.3, base, content.number(score), 8.5, color=hexadecimal(QUIET), ha="right")
    more = len(content.top) - layout.num_listed
    title = f"layer-{content.head_name}" + (f" (+{more} more)" if more else "")
    page.text(x, y + 0.1, title, 8.5, color=hexadecimal(QUIET))


def _draw_scale(axes: Axes, content: HeatmapContent) -> None:
    palette, norm = _colours(content)
    low, high = content.limits
    shades = np.linspace(low, high, 256)[None, :]
    steps = np.linspace(low, high, 257), [0, 1]
    axes.pcolormesh(*steps, shades, cmap=palette, norm=norm, edgecolors="face", linewidth=0.2)
    axes.set(xlim=(low, high), yticks=[])
    middle = 0.0 if low < 0.0 < high else (low + high) / 2
    near_end = min(middle - low, high - middle) < 0.2 * (high - low)
    ticks = [low, high] if near_end else [low, middle, high]
    axes.set_xticks(ticks, [content.number(tick) for tick in ticks])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")
    axes.set_title(content.scale_title, loc="left", fontsize=8.5, color=hexadecimal(INK), pad=4)
