"""How the scores are spread: all heads from best to worst, on a logarithmic scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headprobe.pictures.colours import INK, ON_PAPER, QUIET, RING, hexadecimal
from headprobe.pictures.sheet import GRID, Sheet, head_line, label_axes
from headprobe.pictures.subject import Subject
from headprobe.pictures.wording import count
from headprobe.scores.head_scores import Floats
from headprobe.scores.summary import half_mass_heads

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
        half = f"{count(self.num_half, 'head')} of {heads:,} hold half of all score"
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
    text = f"half of all score: {count(found.num_half, 'head')}"
    axes.annotate(
        text, (found.num_half, 0.07), xycoords=("data", "axes fraction"), xytext=(-6 if left else 6, 0),
        textcoords="offset points", ha="right" if left else "left", fontsize=8.5, color=hexadecimal(INK),
    )  # fmt: skip
