from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from io import BytesIO, TextIOWrapper

import numpy as np
import pytest
from rich.console import Console

from headprobe.compression.policies import make_policy
from headprobe.evaluation.head_budgets import BudgetTable, ReferenceLoss
from headprobe.pictures.budget_map import BudgetMap, budget_lines, told_policy
from headprobe.pictures.budgets import budget_map_figure
from headprobe.pictures.page import house_style
from headprobe.pictures.subject import Subject

TABLE = BudgetTable(
    policy=make_policy(), budget=600, ratio=None, prompt_tokens=2048, gqa="mean", layers=(1, 3),
    head_scores=np.array([[0.1, 0.2], [0.3, 0.4]]), capacity=np.array([[8, 92], [1100, 1200]]), bytes_per_entry=64,
    reference=ReferenceLoss("query", 4800, 4803, 4790, Fraction(10, 4800)), notes=(),
)  # fmt: skip


def plain(width: int) -> Console:
    return Console(width=width, color_system=None)


def test_numbers_where_they_fit() -> None:
    assert [line.plain.rstrip() for line in budget_lines(TABLE, plain(80))] == [
        "layer      0      1       mean",
        "    1      8     92       50.0",
        "    3  1,100  1,200    1,150.0",
    ]


def test_a_character_a_head_where_they_do_not() -> None:
    assert [line.plain for line in budget_lines(TABLE, plain(24))] == [
        "layer   least    mean    most   KV heads 0 to 1",
        "    1       8      50      92   | .|",
        "    3   1,100   1,150   1,200   |%@|",
        "",
        "0 ' .:-=+*#%@' 1,200",
    ]


def test_colour_has_a_tile_a_head() -> None:
    written = TextIOWrapper(BytesIO(), encoding="utf-8")
    console = Console(file=written, width=80, force_terminal=True, color_system="truecolor", legacy_windows=False)
    lines = budget_lines(TABLE, console)
    assert [len(line.spans) for line in lines[1:]] == [2, 2]
    assert lines[2].spans[1].style.bgcolor.triplet == (255, 250, 214)  # type: ignore[union-attr]


def test_facts_and_losses_in_words() -> None:
    drawn = BudgetMap(TABLE)
    assert drawn.outcome() == (
        "headkv-r2 (window 8, beta 1.2)",
        "600 entries per KV head on average",
        "prompt of 2,048 tokens",
        "8 to 1,200 entries per head",
        "2,400 of 8,192 entries (29.3 %)",
        "150 KiB of 512 KiB of KV cache",
    )
    assert drawn.losses() == [
        "budget lost to rounding and clamping: 0 %",
        "by the published code, on query heads: 0.208 % of 4,800 entries "
        "(rounding 0.0625 % overdrawn, clamping 0.271 %)",
    ]
    assert drawn.facts() == (*drawn.outcome(), *drawn.losses())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("full", "full"),
        ("razor", "razor (sinks 4, most_full 0.15)"),
        ("ada-snapkv", "ada-snapkv (window 8, alpha 0.2)"),
        ("headkv-vatp", "headkv-vatp (window 8, sinks 4, beta 1.2)"),
    ],
)
def test_a_policy_is_told_with_its_options(name: str, told: str) -> None:
    assert told_policy(replace(TABLE, policy=make_policy(name))) == told


def figure_of(subject: Subject):  # type: ignore[no-untyped-def]
    with house_style():
        return budget_map_figure(subject, TABLE)


def test_the_picture_names_the_layers_that_are_compressed() -> None:
    scores = np.arange(16.0).reshape(4, 4)
    figure = figure_of(Subject(scores, "head", 2, "toy", "r2", ("4 layers",)))
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["query heads", "KV heads", "tokens kept"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["1", "3"]
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), scores[[1, 3]])


def test_heads_that_share_nothing_are_drawn_once() -> None:
    figure = figure_of(Subject(np.ones((4, 2)), "head", 1, "toy", "r2", ()))
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["KV heads", "tokens kept"]
