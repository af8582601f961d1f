from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from headprobe.pictures.content import HeatmapContent
from headprobe.pictures.style import AT_NIGHT, BELOW_NIGHT, ON_PAPER, along
from headprobe.pictures.terminal import shows_colour, terminal_content, terminal_heatmap

STYLE = re.compile(r"\x1b\[[\d;]*m")


def printed(scores, width=80, colour=None, encoding="utf-8", top=10, kv_heads=False, environ=None):
    """What the picture prints on a console that is a terminal if `colour` is given."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    console = Console(
        file=file, width=width, color_system=colour, force_terminal=colour is not None, _environ=environ or {}
    )
    terminal_heatmap(scores, console, top, kv_heads)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_complete_plain_picture(make_scores):
    scores = make_scores([[0.5, 0.25, 0.0, 0.0], [0.0, 0.125, 0.75, 0.0]], kv_heads=2)
    assert printed(scores, top=3) == (
        "toy/model\n"
        "r2: mass on the answer\n"
        "3 of 4 trials passed (75 %) | 512 to 4,096 tokens | depth 0 to 100 % |\n"
        "needles reasoning | haystack essays | 2 layers x 4 query heads, 2 per KV head\n"
        "\n"
        " 0 |****----        |\n"
        "   |****----        |\n"
        " 1 |    ::::@@@@    |\n"
        "   |    ::::@@@@    |\n"
        "    0   1   2   3     head\n"
        "\n"
        "0 ' .:-=+*#%@' 0.750\n"
        "top: 1-2 0.750, 0-0 0.500, 0-1 0.250\n"
    )


def test_plain_characters_go_from_blank_to_at(make_scores):
    ninths = np.arange(10)[None, :] / 9
    (line,) = [line for line in printed(make_scores(ninths)).splitlines() if line.startswith(" 0 |")]
    assert line == " 0 |" + "".join(shade * 4 for shade in " .:-=+*#%@") + "|"


def test_plain_pictures_hold_nothing_but_ascii(make_sparse):
    assert printed(make_sparse(80, 64, 8)).isascii()


@pytest.mark.parametrize("shape", [(4, 8), (6, 8), (32, 32), (80, 64), (2, 300)])
@pytest.mark.parametrize("colour", [None, "truecolor", "256"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(make_sparse, shape, colour, width):
    lines = STYLE.sub("", printed(make_sparse(*shape), width, colour)).splitlines()
    assert max(map(len, lines)) <= width


def test_colour_shows_two_layers_a_line(make_scores):
    table = np.zeros((32, 32))
    table[0, 0], table[1, 0] = 1.0, 0.5
    lines = printed(make_scores(table), colour="truecolor").splitlines()
    (first,) = [line for line in lines if STYLE.sub("", line).startswith(" 0  \u2580")]
    upper, lower = (";".join(map(str, along(AT_NIGHT, share))) for share in (1.0, 0.5))
    assert first.startswith(f" 0  \x1b[38;2;{upper};48;2;{lower}m\u2580\x1b[0m")
    assert sum("\u2580" in line for line in lines) == 16


def test_an_odd_last_layer_has_no_lower_half(make_sparse):
    lines = printed(make_sparse(33, 40), colour="truecolor").splitlines()
    last = [line for line in lines if "\u2580" in line][-1]
    assert ";48;2;" not in last


def test_ranks_stand_in_wide_cells(make_scores):
    lines = STYLE.sub("", printed(make_scores([[0.5, 0.25], [0.0, 0.75]]), colour="truecolor")).splitlines()
    assert " 0   2   3  " in lines
    assert " 1       1  " in lines


def test_scores_below_zero_have_colours_of_their_own(make_scores):
    out = printed(make_scores([[-0.5, 0.5]]), colour="truecolor")
    assert "48;2;{};{};{}m".format(*BELOW_NIGHT[-1]) in out
    assert "-0.500 " in out


def test_too_many_heads_are_joined_by_the_best(make_scores):
    table = np.zeros((1, 300))
    table[0, 299] = 1.0
    out = printed(make_scores(table), width=80)
    assert "each column is the best of 5 neighbouring heads" in out
    assert " 0 |" + " " * 59 + "@|" in out


def test_kv_heads(make_scores):
    out = printed(make_scores([[0.5, 0.25, 0.0, 0.0]], kv_heads=2), kv_heads=True)
    assert " 0 |@@@@    |" in out
    assert "top: 0-0 0.375\n" in out
    assert "KV head" in out


def test_nothing_above_zero_is_told(make_scores):
    assert "top: none above 0" in printed(make_scores([[0.0, 0.0]]))


@pytest.mark.parametrize("table", [[[0.5, 0.25]], [[0.0, 0.0]]])
def test_a_top_of_0_lists_nothing(make_scores, table):
    out = printed(make_scores(table), top=0)
    assert "top:" not in out
    assert "none" not in out


def difference(table, top=()):
    return HeatmapContent(np.array(table), top, "head", "a minus b", "", (), asked=2, diverging=True)


def shown(content, **options):
    file = io.StringIO()
    terminal_content(content, Console(file=file, width=options.pop("width", 80), _environ={}, **options))
    return file.getvalue()


def test_differences_have_characters_of_their_own_below_0():
    out = shown(difference([[-1.0, -0.4, 0.0, 0.4, 1.0]], top=((0, 0, -1.0), (0, 4, 1.0))))
    assert " 0 |OOOO~~~~    ::::####|" in out
    assert "-1.000 'Oo=~- ' 0 ' .:+*#' +1.000\n" in out
    assert "moved: 0-0 -1.000, 0-4 +1.000\n" in out


def test_joined_columns_of_differences_show_the_furthest_from_0():
    row = [0.0] * 200
    row[0], row[1], row[199] = 0.5, -1.0, 0.25
    out = shown(difference([row]), width=60)
    assert " 0 |O" in out
    assert "moved: none\n" in out


def test_coloured_differences_say_both_ends():
    out = shown(difference([[-0.5, 0.25]]), color_system="truecolor", force_terminal=True)
    assert "-0.500 " in out
    assert " +0.500  difference" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"color_system": "truecolor", "force_terminal": True}, True),
        ({"color_system": "256", "force_terminal": True}, True),
        ({"color_system": "standard", "force_terminal": True}, False),
        ({"color_system": None, "force_terminal": True}, False),
        ({"color_system": "truecolor", "force_terminal": False}, False),
        ({"color_system": "truecolor", "force_terminal": True, "_environ": {"NO_COLOR": "1"}}, False),
    ],
)
def test_colour_needs_a_terminal_that_has_it_and_wants_it(options, expected):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert shows_colour(Console(file=file, **{"_environ": {}, **options})) is expected


def test_no_color_gives_plain_characters(make_scores):
    out = printed(make_scores([[0.5, 0.25]]), colour="truecolor", environ={"NO_COLOR": "1"})
    assert " 0 |@@@@====|" in out.replace("++++", "====")
    assert "\x1b" not in out


def test_a_terminal_without_block_characters_gets_plain_ones(make_scores):
    out = printed(make_scores([[0.5, 0.25]], model="caf\u00e9"), colour="truecolor", encoding="ascii")
    assert "caf?" in out
    assert "|@@@@" in out


def test_names_from_strangers_cannot_steer_the_terminal(make_scores):
    out = printed(make_scores([[0.5]], model="[red]x\x1b[31m\x07\u202e[/red]", formula="a\x1b]0;title\x07"))
    assert out.startswith("[red]x[31m[/red]\nr2: a]0;title\n")


def test_ramps_grow_evenly_lighter_or_darker():
    for ramp in (ON_PAPER, AT_NIGHT):
        light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (along(ramp, i / 64) for i in range(65))]
        steps = np.diff(light)
        assert (steps < 0).all() or (steps > 0).all()


def test_colours_beyond_the_ends_are_the_ends():
    assert along(ON_PAPER, -1.0) == ON_PAPER[0]
    assert along(ON_PAPER, 2.0) == ON_PAPER[-1]
