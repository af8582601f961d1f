from __future__ import annotations

import pytest

from headprobe.errors import OptionError
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.pictures.needles import curve, needle_grid_figure, panel_rows, recall_curve_figure
from headprobe.pictures.page import figure_bytes
from headprobe.pictures.style import ON_PAPER, PAPER, hexadecimal
from tests.evaluation.grid_rows import row, small_grid


def summary() -> GridSummary:
    return GridSummary(small_grid())


def test_a_row_of_panels_is_a_policy_and_baselines_stay_out() -> None:
    assert [[key.budget for key in keys] for keys in panel_rows(summary(), False)] == [[None], [16, 64], [16]]
    assert [keys[0].name for keys in panel_rows(summary(), True)][-1] == "headkv-r2 (shuffled)"


def test_tiles_show_the_share_and_what_was_not_measured() -> None:
    """snapkv at 64: right at 256 tokens and depth 0, out of memory at 512 and 50 %, the other places not planned."""
    figure = needle_grid_figure(summary(), "demo", "share of exact answers")
    tiles = [patch.get_facecolor() for patch in figure.axes[2].patches]
    assert [as_hex(tile) for tile in tiles] == [hexadecimal(ON_PAPER[5]), *[hexadecimal(PAPER)] * 3]
    assert "outlines: not measured" in " ".join(text.get_text() for text in figure.texts)


def as_hex(colour: tuple[float, ...]) -> str:
    red, green, blue = (round(255 * part) for part in colour[:3])
    return hexadecimal((red, green, blue))


def test_a_curve_runs_by_rising_budget() -> None:
    cells = curve(GridSummary((row("p", "h2o", 64, True), row("p", "h2o", 16, False))), "h2o", (None,))
    assert [(cell.key.budget, cell.exact_match.mean) for cell in cells] == [(16, 0.0), (64, 1.0)]


def test_a_panel_for_each_policy_and_its_baselines_in_it() -> None:
    figure = recall_curve_figure(summary(), "demo", "share of exact answers")
    panels = figure.axes[:-1]
    assert [panel.get_title(loc="left") for panel in panels] == ["snapkv", "headkv-r2"]
    own = panels[1].lines[-1]
    assert (list(own.get_xdata()), list(own.get_ydata())) == ([16], [1.0])
    legend = figure.axes[-1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "this policy, 95 % interval", "on random scores", "on shuffled scores", "full cache", "other policies",
    ]  # fmt: skip


def test_the_same_rows_give_the_same_bytes() -> None:
    for draw in (needle_grid_figure, recall_curve_figure):
        first, second = (figure_bytes(lambda: draw(summary(), "demo", "s"), "svg") for _ in range(2))  # noqa: B023
        assert first == second


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(OptionError, match="no metric is called 'bleu'"):
        needle_grid_figure(summary(), "demo", "", metric="bleu")
    with pytest.raises(OptionError, match="only the full cache was measured"):
        recall_curve_figure(GridSummary((row("p", "full", None, True),)), "demo", "")
