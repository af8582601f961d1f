"""A page that is addressed in inches, and text that fits on it."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from headprobe.pictures.colours import INK, QUIET, hexadecimal
from headprobe.pictures.layout import LINE, POINTS


class Page:
    """A figure addressed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """A line of text whose base line is at `y`."""
        style = {"color": hexadecimal(INK), "ha": "left", "va": "baseline"} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **style)

    def lines(self, x: float, y: float, lines: list[str], size: float, colour: tuple[int, int, int]) -> None:
        """Lines of text, the first base line at `y`."""
        for index, line in enumerate(lines):
            self.text(x, y + index * LINE, line, size, color=hexadecimal(colour))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without a frame; `(x, y)` is their upper left corner."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=4, labelsize=8.5, labelcolor=hexadecimal(QUIET))
        return axes


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / POINTS


def fitting_size(text: str, size: float, width: float) -> float:
    """The font size, at most `size`, at which bold text is no wider than `width` inches."""
    return min(size, size * width / max(text_width(text, size, "bold"), 0.01))


def wrapped(parts: list[str], glue: str, size: float, width: float) -> list[str]:
    """The parts, joined by `glue` into lines that are at most `width` inches wide where the parts allow."""
    lines: list[str] = []
    for part in parts:
        longer = lines[-1] + glue + part if lines else part
        fits = text_width(longer, size) <= width
        lines = [*lines[:-1], longer] if fits and lines else [*lines, part]
    return lines


def pieces(text: str, longest: int = 48) -> list[str]:
    """The words of a text; words without end are cut."""
    return [word[i : i + longest] for word in text.split() for i in range(0, len(word), longest)]
