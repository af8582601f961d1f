"""Attention and value norm of every token, after the first figure of VATP: sinks draw attention and hold nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headprobe.errors import OptionError
from headprobe.evaluation.value_norms import ValueNorms
from headprobe.pictures.page import GRID, Sheet, head_line, label_axes
from headprobe.pictures.style import INK, ON_PAPER, PAPER, RING, count, hexadecimal, printable

Head = tuple[int, int]

MOST_PANELS = 32
MOST_VECTORS = 4000  # tokens; more of them are drawn as pixels inside svg and pdf
RARE = 0.005  # of the tokens, those of least attention, may lie below the scale
LABELS, GAP_X, GAP_Y = 0.25, 0.5, 0.62
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UPPER, BETWEEN, LOWER = 1.3, 0.14, 1.1


def norms_figure(measured: ValueNorms, heads: Sequence[Head], model: str, prompt: str) -> Figure:
    """The picture: for each `(layer, KV head)` of `heads` attention (logarithmic) over the L1 norm of the values.

    A dot is a token, the sinks are orange. `model` and `prompt` say whose these are and what was read. Raises
    `OptionError` for more than `MOST_PANELS` heads.
    """
    if len(heads) > MOST_PANELS:
        raise OptionError(f"{len(heads)} heads are too many for one picture, at most {MOST_PANELS}: choose fewer")
    columns = _columns(heads)
    rows = -(-len(heads) // columns)
    height = rows * (UPPER + BETWEEN + LOWER) + (rows - 1) * GAP_Y + 0.6
    layers = {found.layer: found for found in measured.layers}
    drawn = np.concatenate([layers[layer].attention[head] for layer, head in heads])
    limits = _attention_limits(drawn)
    facts = _facts(measured, prompt, int((drawn < limits[0]).sum()))
    sheet = Sheet(printable(model), "attention and L1 norm of the value, for each token", facts, height)
    width = (sheet.measure - LABELS - GAP_X * (columns - 1)) / columns
    for index, (layer, head) in enumerate(heads):
        row, column = divmod(index, columns)
        x, y = LABELS + column * (width + GAP_X), 0.25 + row * (UPPER + BETWEEN + LOWER + GAP_Y)
        above = sheet.axes(x, y, width, UPPER)
        below = sheet.axes(x, y + UPPER + BETWEEN, width, LOWER)
        _draw_attention(above, layers[layer].attention[head], measured.num_sinks, limits, numbered=column == 0)
        _draw_norms(below, layers[layer].norms[head], measured.num_sinks)
        head_line(above, f"layer {layer}, KV head {head}")
        is_last = index + columns >= len(heads)
        label_axes(below, "token" if is_last else "", "value norm" if column == 0 else "")
        label_axes(above, "", "share of attention" if column == 0 else "")
    return sheet.page.figure


def _columns(heads: Sequence[Head]) -> int:
    """Panels side by side: the heads of a layer where several are asked for, else layers."""
    per_layer = max(sum(layer == first for layer, _ in heads) for first, _ in heads)
    if per_layer == 1:
        return min(len(heads), 3)
    return per_layer if per_layer <= 4 else 4


def _facts(measured: ValueNorms, prompt: str, below: int) -> tuple[str, ...]:
    one = measured.num_sinks == 1
    facts = [
        printable(prompt),
        count(len(measured.input_ids), "token"),
        "orange: the first token, a sink" if one else f"orange: the first {measured.num_sinks} tokens, the sinks",
        "dashed: median of the tokens after " + ("it" if one else "them"),
        "share of attention: of all queries of the prompt, mean over the query heads of the KV head",
    ]
    return (*facts, f"{count(below, 'dot')} on the lower edge: below the scale") if below else tuple(facts)


def _attention_limits(drawn: NDArray[np.float32]) -> tuple[float, float]:
    """Ends of the scale: a power of ten below nearly all shares, and room above the largest."""
    most = float(drawn.max()) or 1.0
    seen = np.sort(drawn[drawn > most * 1e-12])
    least = float(seen[int(RARE * len(seen))]) if len(seen) else most
    bottom = 10.0 ** floor(log10(least))
    return bottom, max(most * 3, bottom * 10)


def _draw_attention(
    axes: Axes, attention: NDArray[np.float32], num_sinks: int, limits: tuple[float, float], numbered: bool
) -> None:
    axes.set_yscale("log")
    axes.minorticks_off()
    _dots(axes, np.maximum(attention, limits[0]), num_sinks)
    axes.set_ylim(*limits)
    powers = range(floor(log10(limits[1])), round(log10(limits[0])) - 1, -1)
    kept = powers[:: -(-len(powers) // 5)]
    axes.set_yticks([10.0**power for power in kept], [_power(power) if numbered else "" for power in kept])
    axes.tick_params(labelbottom=False)
    _note(axes, f"sinks: {100 * float(attention[:num_sinks].sum(dtype=np.float64)):.3g} %")


def _power(power: int) -> str:
    return {0: "1", -1: "0.1", -2: "0.01"}.get(power, "10" + str(power).translate(SUPERSCRIPTS))


def _draw_norms(axes: Axes, norms: NDArray[np.float32], num_sinks: int) -> None:
    _dots(axes, norms, num_sinks)
    axes.set_ylim(0.0, float(norms.max()) * 1.22 or 1.0)
    axes.locator_params(axis="y", nbins=4)
    median = float(np.median(norms[num_sinks:]))
    axes.axhline(median, color=hexadecimal(INK), linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    if median > 0.0:
        _note(axes, f"sinks: {norms[:num_sinks].mean(dtype=np.float64) / median:.2f} x median")


def _dots(axes: Axes, values: NDArray[np.float32], num_sinks: int) -> None:
    tokens = len(values)
    places = np.arange(tokens)
    size = min(3.6, max(1.2, 60.0 / tokens**0.6))
    deep, mark = hexadecimal(ON_PAPER[4]), hexadecimal(RING)
    style: Any = {"markeredgewidth": 0.0, "clip_on": False}
    axes.plot(places[num_sinks:], values[num_sinks:], "o", color=deep, alpha=0.65, markersize=size,
              rasterized=tokens > MOST_VECTORS, zorder=2, **style)  # fmt: skip
    axes.plot(places[:num_sinks], values[:num_sinks], "o", color=mark, markersize=max(size, 4.2), zorder=4, **style)
    axes.set_xlim(-0.03 * tokens, 1.01 * tokens)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=4, integer=True)


def _note(axes: Axes, text: str) -> None:
    box = {"facecolor": hexadecimal(PAPER), "alpha": 0.8, "linewidth": 0, "pad": 1.0}
    axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color=hexadecimal(RING),
              zorder=5, bbox=box)  # fmt: skip
