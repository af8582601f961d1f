"""A page that is addressed in inches: where its parts go, text that fits, title and facts, and the file's bytes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from headprobe.pictures.style import INK, PAPER, QUIET, hexadecimal

# A figure as a file: the house's style, the formats, and bytes that hold no date.

DPI = 200
_NO_DATES = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": "headprobe"},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": "headprobe"},
}
_STYLE = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "headprobe",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "axes.unicode_minus": False,
}


def figure_bytes(draw: Callable[[], Figure], kind: str) -> bytes:
    """What `draw` makes, as a file of `kind`; the same figure gives the same bytes."""
    buffer = BytesIO()
    with house_style():
        figure = draw()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_NO_DATES[kind], facecolor=hexadecimal(PAPER))
    return buffer.getvalue()


@contextmanager
def house_style() -> Iterator[None]:
    """Whatever a user's matplotlibrc says, the same picture; letters that the font lacks are drawn as boxes."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        yield


# Where the parts of a heatmap go, in inches.

POINTS = 72.0
LINE = 0.19
LARGEST_CELL, SMALLEST_CELL = 0.56, 0.135
WIDEST_MAP, HIGHEST_MAP = 8.64, 8.0
COLUMN = 1.5
MAX_COLUMNS = 2
SMALLEST_WIDTH = 6.4


@dataclass(frozen=True)
class HeatmapLayout:
    """Sizes in inches for a map of `rows` x `columns` beside a list of `listed` heads."""

    rows: int
    columns: int
    listed: int

    left: float = 0.72
    right: float = 0.3
    gap: float = 0.3
    top: float = 0.34
    under_map: float = 0.66
    scale_height: float = 0.11
    under_scale: float = 0.34
    bottom: float = 0.24

    @property
    def cell(self) -> float:
        """Edge of one head's square."""
        fitting = min(WIDEST_MAP / self.columns, HIGHEST_MAP / self.rows, LARGEST_CELL)
        return max(fitting, SMALLEST_CELL)

    @property
    def cell_points(self) -> float:
        """Edge of one head's square in points."""
        return self.cell * POINTS

    @property
    def map_size(self) -> tuple[float, float]:
        """Width and height of the map."""
        return self.columns * self.cell, self.rows * self.cell

    @property
    def scale_width(self) -> float:
        """Length of the colour bar; wide enough for its numbers under a map of few heads."""
        return min(max(self.map_size[0], 2.2), 4.5)

    @property
    def lines_per_column(self) -> int:
        """Heads in one column of the list."""
        return max(10, int(self.map_size[1] / LINE) - 1)

    @property
    def list_columns(self) -> int:
        """Columns of the list of heads."""
        return min(ceil(self.listed / self.lines_per_column), MAX_COLUMNS)

    @property
    def num_listed(self) -> int:
        """Heads that find room in the list."""
        return min(self.listed, self.list_columns * self.lines_per_column)

    @property
    def body_height(self) -> float:
        """Height of map or list, whichever is higher."""
        lines = min(self.listed, self.lines_per_column) + 1
        return max(self.map_size[1], lines * LINE if self.listed else 0.0)

    @property
    def width(self) -> float:
        """Width of the figure."""
        beside = self.gap + self.list_columns * COLUMN if self.list_columns else 0.0
        return max(self.left + self.map_size[0] + beside + self.right, SMALLEST_WIDTH)


# A page that is addressed in inches, and text that fits on it.


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


# A page with title, method and facts around a body that the picture fills.

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
