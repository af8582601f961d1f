"""The figures of all commands in one module: commands load it, and matplotlib with it, when there is one to draw."""

from __future__ import annotations

from headprobe.pictures.bench import bench_figure as bench_figure
from headprobe.pictures.budgets import budget_map_figure as budget_map_figure
from headprobe.pictures.comparison import PictureOfPair as PictureOfPair
from headprobe.pictures.comparison import comparison_figure as comparison_figure
from headprobe.pictures.heatmap import content_figure as content_figure
from headprobe.pictures.heatmap import heatmap_bytes as heatmap_bytes
from headprobe.pictures.kinds import picture_of as picture_of
from headprobe.pictures.knockout import knockout_figure as knockout_figure
from headprobe.pictures.needles import needle_grid_figure as needle_grid_figure
from headprobe.pictures.needles import recall_curve_figure as recall_curve_figure
from headprobe.pictures.norms import norms_figure as norms_figure
from headprobe.pictures.page import figure_bytes as figure_bytes
from headprobe.pictures.referee import referee_figure as referee_figure
