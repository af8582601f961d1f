from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text

from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.pictures.content import PictureOptions
from headprobe.pictures.coverage import Coverage
from headprobe.pictures.kinds import KINDS, picture_of
from headprobe.pictures.page import figure_bytes
from headprobe.pictures.profiles import Distribution, LayerProfile
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
TABLES = {
    "one head": [[0.5]],
    "zeros": np.zeros((2, 4)),
    "negative": [[0.5, -0.25, 0.0, -1e-9]],
    "wide": np.random.default_rng(0).gamma(0.2, 0.1, (3, 96)),
    "deep": np.random.default_rng(1).gamma(0.2, 0.1, (90, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_kind_draws_every_table(native, kind, table):
    picture = picture_of(kind, native(table), PictureOptions())
    assert figure_bytes(picture.draw, "svg").startswith(STARTS["svg"])
    assert all(isinstance(line, str) and "\n" not in line for line in picture.lines)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        pytest.param(kind, ending, marks=[] if ending == "svg" or kind == KINDS[0] else pytest.mark.slow)
        for kind in KINDS
        for ending in STARTS
    ],
)
def test_the_same_scores_give_the_same_bytes(native, kind, ending):
    made = [figure_bytes(picture_of(kind, native(np.eye(3, 4), name), PictureOptions()).draw, ending) for name in "ab"]
    assert made[0] == made[1]
    assert made[0].startswith(STARTS[ending])


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_says_model_and_method(native, kind):
    figure = picture_of(kind, native(np.eye(3, 4), model="some/model"), PictureOptions()).draw()
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"some/model", "r2: mass on the answer"} <= texts


def test_an_unknown_kind_is_refused_with_the_known_ones(native):
    with pytest.raises(OptionError, match="called 'pie'; there are heatmap, distribution, layers, coverage, ranks"):
        picture_of("pie", native([[0.5]]), PictureOptions())


def test_the_distribution_counts_the_heads_that_hold_half():
    found = Distribution.of(np.array([[0.1, 0.4, 0.0], [0.3, 0.0, 0.2]]))
    assert found.scores.tolist() == [0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    assert (found.num_half, found.num_zero) == (2, 2)
    assert found.lines()[:2] == ["2 heads of 6 hold half of the total score", "2 heads (33.3 %) score 0"]


def test_the_layer_profile_leaves_scores_below_0_out_of_the_shares():
    found = LayerProfile.of(np.array([[0.5, -2.0], [0.5, 1.0]]))
    assert found.share.tolist() == [0.25, 0.75]
    assert found.best_head == (0, 1)
    assert found.lines()[1] == "    0  25.0%  0-0 0.500       #########"


def trial(number, length, depth, passed, scores):
    return Trial(str(number), "n", length, depth, passed, 1.0, "", 1, np.array(scores))


def test_coverage_counts_passes_and_repeats_by_cell():
    trials = (
        trial(0, 512, 0.0, True, [[0.5]]),
        trial(1, 512, 0.0, False, [[0.5]]),
        trial(2, 512, 50.0, True, [[0.5]]),
        trial(3, 1024, 0.0, True, [[0.25]]),
    )
    geometry = ModelGeometry(1, 1, 1, 8, ("full_attention",))
    found = Coverage.of(HeadScores(geometry, Method("r2", "", 1, {}), trials, Provenance(ModelIdentity("m"))))
    assert [(c.length, c.depth, c.passed, c.total, c.repeated) for c in found.cells] == [
        (512, 0.0, 1, 2, 0),
        (512, 50.0, 1, 1, 1),
        (1024, 0.0, 1, 1, 0),
    ]
    assert found.lines() == [
        "tokens    0   50",
        "   512  1/2  1/1",
        "  1024  1/1",
        "",
        "1 trial repeats the scores of another",
    ]


def test_coverage_needs_lengths_and_depths(keyed):
    with pytest.raises(OptionError, match="keyed.json does not state which length and depth its trials had"):
        picture_of("coverage", keyed([[[1.0]]]), PictureOptions())


def test_rank_intervals_have_no_width_where_all_trials_agree(native):
    record = picture_of("ranks", native([[0.5, 0.75, 0.25]]), PictureOptions(top=2)).record
    assert [(head["layer"], head["head"], head["rank_low"], head["rank_high"]) for head in record["heads"]] == [
        (0, 1, 1.0, 1.0),
        (0, 0, 2.0, 2.0),
    ]


def test_rank_intervals_need_a_head_and_trials(native, keyed, tmp_path):
    with pytest.raises(OptionError, match="top is 0, need at least 1"):
        picture_of("ranks", native([[0.5]]), PictureOptions(top=0))


def test_budgets_give_out_what_was_asked_for(native):
    # B = 4, half of it by score: 2 + p * 2 * 2 for p = 3/4 and 1/4
    options = PictureOptions(budget=4, beta=2.0, window=0, prompt_tokens=100)
    record = picture_of("budgets", native([[0.5, 1.0, 0.25, 0.25]], kv_heads=2), options).record
    assert record["budgets"] == [[5, 3]]
    assert record["total"] == 8


def test_budgets_of_a_file_without_kv_heads_need_their_number(keyed):
    scores = keyed([[[1.0, 0.0, 0.5, 0.5]]])
    with pytest.raises(OptionError, match="keyed.json does not say how many KV heads its model has"):
        picture_of("budgets", scores, PictureOptions())
    assert picture_of("budgets", scores, PictureOptions(num_kv_heads=2)).record["budgets"] == [[128, 128]]
    with pytest.raises(OptionError, match="4 query heads cannot be shared evenly by 3 KV heads"):
        picture_of("budgets", scores, PictureOptions(num_kv_heads=3))


def test_a_number_of_kv_heads_that_is_not_the_files_is_refused(native):
    with pytest.raises(OptionError, match="--num-kv-heads is 4, the file's model has 2"):
        picture_of("budgets", native([[0.5, 1.0, 0.25, 0.25]], kv_heads=2), PictureOptions(num_kv_heads=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 4, "window": 8}, "a budget of 4 entries per KV head is below the 8"),
        ({"beta": 1.0}, "beta is 1.0, need more than 1"),
        ({"prompt_tokens": 0}, "prompt tokens are 0"),
    ],
)
def test_budgets_that_cannot_be_are_refused(native, options, message):
    with pytest.raises(OptionError, match=message):
        picture_of("budgets", native([[0.5]]), PictureOptions(**options))
