"""What switching heads off leaves, in a picture: the best heads against random ones, on needles and on plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headprobe.errors import OptionError
from headprobe.pictures.page import GRID, Sheet, head_line, label_axes
from headprobe.pictures.style import INK, ON_PAPER, QUIET, RING, count, hexadecimal, printable

HIGH, LEGEND, AXIS, BETWEEN = 1.9, 0.5, 0.3, 0.55  # inches
TOP: dict[str, Any] = {"color": hexadecimal(ON_PAPER[4]), "linewidth": 1.9, "marker": "o", "markersize": 4}
RANDOM: dict[str, Any] = {"color": hexadecimal(RING), "linewidth": 1.4, "marker": "s", "markersize": 3.2}
DRAW: dict[str, Any] = {"color": hexadecimal(RING), "alpha": 0.45, "linewidth": 0.0, "marker": "_", "markersize": 7}
WHOLE: dict[str, Any] = {"color": hexadecimal(INK), "linewidth": 0.9, "linestyle": (0, (5, 3))}
PANELS = (
    ("answered", "needles answered, share"),
    ("answer_loss", "loss of the answer, nats"),
    ("text_loss", "plain text: rise of the loss"),
)
CHANGES = ("text_loss",)  # drawn as what heads cost on each text: texts differ more than sets of heads do

Estimates = Mapping[str, Mapping[str, Any]]


def knockout_figure(result: Mapping[str, Any], title: str) -> Figure:
    """The picture of one result (an entry of `causal` in a score file), with its verdict below the title.

    Raises `OptionError` for a result without steps.
    """
    steps = result["steps"]
    if not steps:
        raise OptionError("the result has no steps to draw")
    facts = [f"heads off by {result['mode']}", count(result["num_prompts"], "prompt")]
    if isinstance(draws := result.get("draws"), int):
        facts.append(f"{count(draws, 'draw')} of random heads, each a short line")
    sheet = Sheet(printable(title), printable(result["verdict"], 600), facts, LEGEND + HIGH + AXIS)
    width = (sheet.measure - BETWEEN * (len(PANELS) - 1)) / len(PANELS)
    panels = [panel for panel in PANELS if result["whole"].get(panel[0], {}).get("mean") is not None]
    for index, (metric, name) in enumerate(panels):
        axes = sheet.axes(index * (width + BETWEEN), LEGEND, width, HIGH)
        _draw(axes, result, metric)
        head_line(axes, name)
        label_axes(axes, "heads switched off")
    _legend(sheet)
    return sheet.page.figure


def _draw(axes: Axes, result: Mapping[str, Any], metric: str) -> None:
    steps, change = result["steps"], metric in CHANGES
    whole = result["whole"].get(metric, {}).get("mean")
    start = 0.0 if change else whole
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    if start is not None:
        axes.axhline(start, zorder=2, **WHOLE)
    for place, step in enumerate(steps, 1):
        values = (step.get("draws") or {}).get(metric, [])
        heights = [value - whole for value in values] if change and whole is not None else values
        axes.plot([place] * len(heights), heights, zorder=3, **DRAW)
    for side, style in (("random", RANDOM), ("top", TOP)):
        rows = [(step.get("changes") or {}).get(side) if change else step[side] for step in steps]
        _curve(axes, start, rows, metric, style)
    axes.set_xticks(range(len(steps) + 1), ["0", *(str(step["k"]) for step in steps)])
    axes.set_xlim(-0.3, len(steps) + 0.3)
    if metric == "answered":
        axes.set_ylim(-0.04, 1.04)


def _curve(
    axes: Axes, whole: float | None, estimates: Sequence[Estimates | None], metric: str, style: dict[str, Any]
) -> None:
    """A line from the whole model on through what was measured, with 95 % intervals; a gap stays a gap."""
    found = [None if each is None else each.get(metric) for each in estimates]
    heights = [whole, *(None if each is None else each["mean"] for each in found)]
    axes.plot(
        range(len(heights)), [float("nan") if h is None else h for h in heights], zorder=5, clip_on=False, **style
    )
    for place, each in enumerate(found, 1):
        if each is not None and each["low"] is not None:
            axes.vlines(place, each["low"], each["high"], color=style["color"], linewidth=1.0, alpha=0.6, zorder=4)


def _legend(sheet: Sheet) -> None:
    axes = sheet.axes(0, 0, sheet.measure, 0.2)
    axes.set_axis_off()
    parts = (
        ("the best heads, 95 % interval", TOP),
        ("random heads of the same layers", RANDOM),
        ("all heads on", WHOLE),
    )
    axes.legend(
        handles=[Line2D([], [], label=text, **style) for text, style in parts], loc="center left",
        bbox_to_anchor=(0, 0.5), ncols=len(parts), frameon=False, fontsize=8.0, labelcolor=hexadecimal(QUIET),
        handlelength=2.2, columnspacing=1.6, borderpad=0, borderaxespad=0,
    )  # fmt: skip
