"""Where the parts of a heatmap go, in inches."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

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
