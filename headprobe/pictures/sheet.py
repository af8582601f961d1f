"""A page with title, method and facts around a body that the picture fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from headprobe.pictures.colours import INK, QUIET, hexadecimal
from headprobe.pictures.layout import LINE
from headprobe.pictures.page import Page, fitting_size, pieces, wrapped

LEFT, RIGHT, TOP, BOTTOM = 0.72, 0.4, 0.34, 0.24
GRID = "#e6e6e1"


class Sheet:
    """A page whose body, `body_height` inches high, begins at `y`; title above it, facts below it."""

    def __init__(self, title: str, subtitle: str, facts: Sequence[str], body_height: float, width: float = 8.4) -> None:
        self.measure = width - LEFT - RIGHT
        above, below = (
            wrapped(pieces(subtitle), " ", 9.5, self.measure),
            wrapped(list(facts), "  ·  ", 8.0, self.measure),
        )
        self.y = TOP + 0.14 + LINE * len(above) + 0.3
        self.page = Page(width, self.y + body_height + 0.3 + LINE * len(below) + BOTTOM)
        self.page.text(LEFT, TOP, title, size=fitting_size(title, 13.0, self.measure), weight="bold")
        self.page.lines(LEFT, TOP + 0.26, above, size=9.5, colour=QUIET)
        self.page.lines(LEFT, self.y + body_height + 0.3 + 0.12, below, size=8.0, colour=QUIET)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes at `(x, y)` inches from the body's upper left corner."""
        return self.page.axes(LEFT + x, self.y + y, width, height)


def label_axes(axes: Axes, across: str = "", down: str = "") -> None:
    """Name the axes in the house's style."""
    style: dict[str, Any] = {"fontsize": 9.0, "color": hexadecimal(INK), "labelpad": 4}
    if across:
        axes.set_xlabel(across, **style)
    if down:
        axes.set_ylabel(down, **style)


def head_line(axes: Axes, text: str) -> None:
    """A small title flush left above the axes."""
    axes.set_title(text, loc="left", fontsize=9.0, color=hexadecimal(INK), pad=6)
