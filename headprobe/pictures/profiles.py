"""How scores are spread, in pictures: over all heads from best to worst, and over the depth of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headprobe.pictures.content import tick_step
from headprobe.pictures.page import GRID, Sheet, head_line, label_axes
from headprobe.pictures.style import INK, ON_PAPER, QUIET, RING, count, hexadecimal
from headprobe.pictures.subject import Subject
from headprobe.scores.head_scores import Floats, normalize
from headprobe.scores.summary import half_mass_heads

# How the scores are spread: all heads from best to worst, on a logarithmic scale.

FLOOR = 1e-4  # of the best score: what lies below is drawn at the bottom


@dataclass(frozen=True, eq=False)
class Distribution:
    """Scores of all heads, best first `[heads]`; `num_half` heads hold half of the positive sum, `num_zero` score 0."""

    scores: Floats
    num_half: int
    num_zero: int

    @classmethod
    def of(cls, table: Floats) -> Distribution:
        """The distribution of a table `[layers, heads]`.

        >>> found = Distribution.of(np.array([[0.0, 3.0], [1.0, 2.0]]))
        >>> found.scores.tolist(), found.num_half, found.num_zero
        ([3.0, 2.0, 1.0, 0.0], 1, 1)
        """
        scores = np.sort(table.ravel())[::-1]
        return cls(scores, half_mass_heads(table), int((scores == 0.0).sum()))

    def lines(self) -> list[str]:
        """What a terminal shows."""
        heads, share = len(self.scores), 100 * self.num_zero / len(self.scores)
        quantiles = ", ".join(f"rank {rank} {self.scores[rank - 1]:.4g}" for rank in _milestones(heads))
        half = f"{count(self.num_half, 'head')} of {heads:,} hold half of the total score"
        return [half, f"{count(self.num_zero, 'head')} ({share:.1f} %) score 0", quantiles]

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        best = float(self.scores[0])
        return {"max": best, "heads_with_half": self.num_half, "zero_heads": self.num_zero,
                "sorted_scores": self.scores.tolist()}  # fmt: skip


def _milestones(heads: int) -> list[int]:
    return [rank for rank in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if rank <= heads]


def distribution_figure(subject: Subject) -> Figure:
    """The picture: rank across, score down, both logarithmic; the heads that hold half of the sum are shaded."""
    found = Distribution.of(subject.table)
    facts = (*found.lines()[:2], *subject.facts)
    sheet = Sheet(subject.title, subject.subtitle, facts, body_height=4.1)
    axes = sheet.axes(0.1, 0.2, sheet.measure - 0.1, 3.35)
    _draw(axes, found)
    head_line(axes, subject.scale_title)
    label_axes(axes, f"rank of the {subject.head_name}")
    return sheet.page.figure


def _draw(axes: Axes, found: Distribution) -> None:
    heads = len(found.scores)
    positive = found.scores[found.scores > 0.0]
    best = float(positive[0]) if len(positive) else 1.0
    lowest = max(float(positive[-1]), best * FLOOR) if len(positive) else best * FLOOR
    bottom = 10.0 ** np.floor(np.log10(lowest) - 0.02)
    ranks = np.arange(1, len(positive) + 1)
    axes.set(xscale="log", yscale="log", xlim=(0.9, max(heads * 1.08, 2)), ylim=(bottom, best * 1.5))
    axes.grid(which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    milestones = _milestones(heads)
    axes.set_xticks(milestones, [f"{rank:,}" for rank in milestones])
    powers = 10.0 ** np.arange(np.log10(bottom), np.log10(best * 1.5))
    axes.set_yticks(powers, [_plain(power) for power in powers])
    deep, mark = hexadecimal(ON_PAPER[4]), hexadecimal(RING)
    inside = ranks <= found.num_half
    axes.fill_between(ranks[inside], positive[inside], bottom, color=hexadecimal(ON_PAPER[1]), linewidth=0, alpha=0.7)
    axes.plot(ranks, np.maximum(positive, bottom), color=deep, linewidth=1.6, solid_capstyle="round")
    axes.plot(ranks[:10], positive[:10], "o", color=deep, markersize=3.6)
    _note_half(axes, found, mark)
    if found.num_zero:
        share = f"{found.num_zero:,} of {heads:,} score 0"
        axes.text(0.995, 0.03, share, transform=axes.transAxes, ha="right", fontsize=8.5, color=hexadecimal(QUIET))


def _plain(power: float) -> str:
    return f"{power:.0e}" if power < 9e-7 else f"{power:.6f}".rstrip("0").rstrip(".")


def _note_half(axes: Axes, found: Distribution, mark: str) -> None:
    if not found.num_half:
        return
    axes.axvline(found.num_half, color=mark, linewidth=1.0, linestyle=(0, (4, 3)))
    left = found.num_half > len(found.scores) ** 0.6
    text = f"half of the total score: {count(found.num_half, 'head')}"
    axes.annotate(
        text, (found.num_half, 0.07), xycoords=("data", "axes fraction"), xytext=(-6 if left else 6, 0),
        textcoords="offset points", ha="right" if left else "left", fontsize=8.5, color=hexadecimal(INK),
    )  # fmt: skip


# Where in depth the score lies: each layer's share of the sum, and its best head.

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
        """What a terminal shows: one bar per layer."""
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
    head_line(left, "share of the total score, percent")
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
