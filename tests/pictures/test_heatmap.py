from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import headprobe
from headprobe.errors import NoPassingTrialError, OptionError, OutputExistsError
from headprobe.pictures.heatmap import draw_heatmap, heatmap_bytes, heatmap_figure

SHAPES = [(4, 8, 4), (6, 8, 4), (32, 32, 8), (80, 64, 8)]
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def texts_of(svg):
    """The texts of an SVG, which draws letters as paths and keeps the words in comments."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), re.DOTALL)]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_ending_names_the_format(tmp_path, make_sparse, kind):
    path = draw_heatmap(make_sparse(4, 8, 4), tmp_path / f"picture.{kind}")
    assert path == tmp_path / f"picture.{kind}"
    assert path.read_bytes().startswith(STARTS[kind])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_same_scores_give_the_same_bytes(make_sparse, kind):
    first = heatmap_bytes(make_sparse(6, 8, 4), kind)
    assert first == heatmap_bytes(make_sparse(6, 8, 4), kind)
    assert first != heatmap_bytes(make_sparse(6, 8, 4, seed=1), kind)


def test_the_settings_of_the_user_change_nothing_and_stay(make_sparse):
    plain = heatmap_bytes(make_sparse(4, 8), "svg")
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "axes.facecolor": "red"}):
        assert heatmap_bytes(make_sparse(4, 8), "svg") == plain
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "png"])
def test_other_endings_are_refused(tmp_path, make_sparse, name):
    with pytest.raises(OptionError, match=rf"cannot draw {name}: its ending must be .png, .svg or .pdf"):
        draw_heatmap(make_sparse(4, 8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_top_is_refused(make_sparse):
    with pytest.raises(OptionError, match="top is -3, need at least 0"):
        heatmap_bytes(make_sparse(4, 8), "svg", top=-3)


def test_nothing_is_drawn_without_a_passing_trial(make_scores):
    scores = make_scores([[0.5]])
    failed = replace(scores, trials=tuple(replace(trial, passed=False) for trial in scores.trials))
    with pytest.raises(NoPassingTrialError, match="none of 4 trials passed"):
        heatmap_bytes(failed, "svg")


def test_title_list_and_caption_say_it_all(make_scores):
    scores = make_scores([[0.5, 0.25, 0.0, 0.0], [0.0, 0.125, 0.75, 0.0]], kv_heads=2)
    texts = texts_of(heatmap_bytes(scores, "svg", top=3))
    assert "toy/model" in texts
    assert "r2: mass on the answer" in texts
    for index, name, score in (("1", "1-2", "0.750"), ("2", "0-0", "0.500"), ("3", "0-1", "0.250")):
        at = texts.index(name)
        assert texts[at - 1 : at + 2] == [index, name, score]
    caption = " ".join(texts)
    for fact in ("3 of 4 trials passed (75 %)", "512 to 4,096 tokens", "depth 0 to 100 %", "needles reasoning",
                 "haystack essays", "2 layers x 4 query heads, 2 per KV head"):  # fmt: skip
        assert fact in caption


def test_kv_heads_show_the_mean_of_their_query_heads(make_scores):
    scores = make_scores([[0.5, 0.25, 0.0, 0.0], [0.0, 0.125, 0.75, 0.0]], kv_heads=2)
    texts = texts_of(heatmap_bytes(scores, "svg", top=2, kv_heads=True))
    assert [texts[texts.index(name) + 1] for name in ("1-1", "0-0")] == ["0.375", "0.375"]
    assert texts.index("0-0") < texts.index("1-1")
    assert "KV head" in texts
    assert "2 layers x 2 KV heads, each the mean of 2 query heads" in " ".join(texts)


def test_heads_of_no_score_have_no_rank(make_scores):
    texts = texts_of(heatmap_bytes(make_scores([[0.5, 0.0, 0.0]]), "svg", top=3))
    assert "0-0" in texts
    assert "0-1" not in texts


@pytest.mark.parametrize("table", [[[0.0]], [[0.0, 0.0], [0.0, 0.0]], [[-0.5, -0.1]], [[-0.5, 0.25]], [[1e-12]]])
@pytest.mark.parametrize("top", [0, 10])
def test_odd_tables_are_drawn(make_scores, table, top):
    assert heatmap_bytes(make_scores(table), "png", top=top).startswith(STARTS["png"])


@pytest.mark.parametrize("kv_heads", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_texts_meet_and_none_leaves_the_page(make_sparse, shape, kv_heads):
    assert_texts_keep_apart(heatmap_figure(make_sparse(*shape), top=12, kv_heads=kv_heads))


@pytest.mark.parametrize("table", [[[-0.01, 0.5]], [[-0.5, 0.01]], [[-0.25, 0.25]], [[-0.5, 0.0]], [[0.0, 0.0]]])
def test_no_texts_meet_below_the_scale(make_scores, table):
    assert_texts_keep_apart(heatmap_figure(make_scores(table)))


def assert_texts_keep_apart(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    drawn = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in drawn]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        assert not a.padded(-0.75).overlaps(b.padded(-0.75)), (first, second)


@pytest.mark.parametrize(
    "model",
    [
        "$\\alpha_{$",
        "a" * 500,
        "evil\x1b[31m\nname",
        "\u6a21\u578b-\u82b1",
        "",
        "W" * 64,
    ],
)
def test_any_name_can_be_drawn(make_scores, model):
    scores = make_scores([[0.5, 0.25]], model=model, formula=model + " x" * 400)
    figure = heatmap_figure(scores)
    assert heatmap_bytes(scores, "svg").startswith(STARTS["svg"])
    assert all(text.isprintable() for text in (item.get_text() for item in figure.findobj(Text)))


def test_a_picture_is_replaced_and_nothing_left_behind(tmp_path, make_sparse):
    for _ in range(2):
        draw_heatmap(make_sparse(4, 8), tmp_path / "deep" / "p.svg", overwrite=True)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["p.svg"]


def test_a_picture_that_is_there_is_kept_unless_overwritten(tmp_path, make_sparse):
    (tmp_path / "p.svg").write_text("mine")
    with pytest.raises(OutputExistsError, match="p.svg already exists; --overwrite replaces it"):
        draw_heatmap(make_sparse(4, 8), tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text() == "mine"


def test_long_lists_name_what_is_left_out(make_sparse):
    texts = texts_of(heatmap_bytes(make_sparse(4, 8), "svg", top=32))
    listed = [text for text in texts if re.fullmatch(r"\d-\d", text)]
    assert len(listed) == 20
    assert "layer-head (+12 more)" in texts


def test_the_scores_floor_needs_no_matplotlib():
    code = "import sys, headprobe.scores.score_file, headprobe.pictures.terminal; print('matplotlib' in sys.modules)"
    folder = Path(headprobe.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stdout == "False\n"
