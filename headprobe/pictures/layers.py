"""Where in depth the score lies: each layer's share of the sum, and its best head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headprobe.pictures.caption import tick_step
from headprobe.pictures.colours import INK, ON_PAPER, QUIET, RING, hexadecimal
from headprobe.pictures.sheet import GRID, Sheet, head_line
from headprobe.pictures.subject import Subject
from headprobe.scores.head_scores import Floats, normalize

BAR_WIDTH = 28  # characters in a terminal
NAMED_FROM = 0.14  # inches a layer needs for the name of its best head


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """Per layer: `share` of all positive score, summing to 1, and the best head with its score; each `[layers]`."""

    share: Floats
    best_head: tuple[int, ...]
    best_score: Floats

    @classmethod
    def of(cls, table: Floats) -> LayerProfile:
        """The profile of a table `[layers, heads]`; of equal heads the first.

        >>> found = LayerProfile.of(np.array([[0.0, 1.0], [3.0, 0.0]]))
        >>> found.share.tolist(), found.best_head, found.best_score.tolist()
        ([0.25, 0.75], (1, 0), [1.0, 3.0])
        """
        return cls(normalize(table).sum(axis=1), tuple(table.argmax(axis=1).tolist()), table.max(axis=1))

    def lines(self) -> list[str]:
        """What a terminal shows: a bar a layer."""
        most = float(self.share.max()) or 1.0
        rows = ["layer  share  best head"]
        for layer, (share, head, score) in enumerate(zip(self.share, self.best_head, self.best_score, strict=True)):
            bar = "#" * round(BAR_WIDTH * share / most)
            rows.append(f"{layer:5d} {100 * share:5.1f}%  {layer}-{head} {score:.3f}".ljust(30) + bar)
        return [row.rstrip() for row in rows]

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        rows = zip(self.share.tolist(), self.best_head, self.best_score.tolist(), strict=True)
        return {"layers": [{"layer": layer, "share": share, "best_head": head, "best_score": score}
                           for layer, (share, head, score) in enumerate(rows)]}  # fmt: skip


def layers_figure(subject: Subject) -> Figure:
    """The picture: layers down as in the heatmap, bars of their share at the left, their best heads at the right."""
    found = LayerProfile.of(subject.table)
    layers = len(found.share)
    height = min(max(0.24 * layers, 1.6), 8.0)
    sheet = Sheet(subject.title, subject.subtitle, subject.facts, body_height=height + 0.5)
    half = (sheet.measure - 0.55) / 2
    left, right = (sheet.axes(x, 0.2, half, height) for x in (0.0, half + 0.55))
    left.barh(range(layers), 100 * found.share, height=0.72, color=hexadecimal(ON_PAPER[3]))
    head_line(left, "share of all score, percent")
    _draw_best(right, found, per_layer=height / layers)
    head_line(right, f"best {subject.head_name} of the layer")
    for axes in (left, right):
        _tidy(axes, layers)
    left.set_ylabel("layer", fontsize=9.0, color=hexadecimal(INK), labelpad=4)
    return sheet.page.figure


def _draw_best(axes: Axes, found: LayerProfile, per_layer: float) -> None:
    layers, best = len(found.best_score), max(float(found.best_score.max()), 0.0) or 1.0
    axes.hlines(range(layers), 0, found.best_score, color=hexadecimal(ON_PAPER[2]), linewidth=1.2)
    axes.plot(found.best_score, range(layers), "o", color=hexadecimal(RING), markersize=4)
    axes.set_xlim(min(float(found.best_score.min()), 0.0) * 1.1, best * 1.14)
    if per_layer < NAMED_FROM:
        return
    for layer, (head, score) in enumerate(zip(found.best_head, found.best_score.tolist(), strict=True)):
        if score > 0.0:
            axes.annotate(
                f"{layer}-{head}", (score, layer), xytext=(5, 0), textcoords="offset points", va="center",
                fontsize=min(8.0, per_layer * 40), color=hexadecimal(QUIET), annotation_clip=False,
            )  # fmt: skip


def _tidy(axes: Axes, layers: int) -> None:
    axes.set_ylim(layers - 0.4, -0.6)
    axes.set_yticks(np.arange(0, layers, tick_step(layers, 40 if layers <= 40 else 20)))
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
