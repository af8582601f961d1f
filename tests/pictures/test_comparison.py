from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from headprobe.errors import OptionError
from headprobe.pictures.comparison import PictureOfPair, comparison_figure, draw_comparison
from headprobe.scores.comparison import Comparison, moved_heads, overlaps


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    a = rng.random((4, 8))
    b = np.clip(a + 0.2 * rng.standard_normal((4, 8)), 0, None)
    found = Comparison(a, b, "query", 0.5, 0.25, 0.75, None, overlaps(a, b), moved_heads(a, b, 3), ("a note",))
    return PictureOfPair("A  one", "B  two", found)


def test_a_pair_has_a_panel_of_ranks_and_one_of_scores(pair):
    figure = comparison_figure([pair])
    ranks, scores = figure.axes
    assert (ranks.get_xlabel(), ranks.get_ylabel()) == ("rank in A", "rank in B")
    assert (scores.get_xlabel(), scores.get_ylabel()) == ("score in A", "score in B")
    assert ranks.get_title(loc="left") == "rank: Spearman 0.500 (0.250 to 0.750)"
    assert ranks.get_xlim()[0] > ranks.get_xlim()[1]  # the best heads lie in the upper right corner


def test_every_head_is_a_dot_and_those_that_moved_are_named(pair):
    ranks, scores = comparison_figure([pair]).axes
    rest, top, moved = (dots.get_offsets() for dots in scores.collections)
    assert len(rest) + len(top) == 32
    first = pair.comparison.moved[0]
    assert moved[0].tolist() == [first.first_score, first.second_score]
    assert f"{first.layer}-{first.head}" in [text.get_text() for text in ranks.texts]


def test_every_pair_gets_its_own_panels(pair):
    assert len(comparison_figure([pair] * 3).axes) == 6


def test_a_comparison_without_ranks_is_drawn_all_the_same(pair):
    flat = Comparison(np.zeros((2, 2)), np.zeros((2, 2)), "query", None, None, None, None, (), (), ())
    ranks, scores = comparison_figure([replace(pair, comparison=flat)]).axes
    assert (ranks.get_title(loc="left"), scores.get_title(loc="left")) == ("rank", "score")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_comparison_gives_the_same_bytes(pair, tmp_path, ending):
    paths = [draw_comparison([pair], tmp_path / f"{name}.{ending}") for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_names_cannot_draw_or_steer(pair):
    named = replace(pair, first="A  $x$ \x1b[31m\n" + "long" * 100)
    texts = comparison_figure([named]).findobj(Text)
    assert [text.get_text() for text in texts if text.get_text().startswith("A ")] == [
        "A $x$ [31m " + "long" * 11 + "..." + "long" * 13 + "  ·  B two  ·  a note"
    ]
    assert not any(control in text.get_text() for text in texts for control in "\x1b\n")
    assert [text.get_parse_math() for text in texts if "$" in text.get_text()] == [False]


def test_no_pair_many_pairs_and_other_endings_are_refused(pair, tmp_path):
    for number in (0, 11):
        with pytest.raises(OptionError, match=f"{number} pairs of files to draw, need 1 to 10"):
            comparison_figure([pair] * number)
    with pytest.raises(OptionError, match="cannot draw x.gif"):
        draw_comparison([pair], tmp_path / "x.gif")
