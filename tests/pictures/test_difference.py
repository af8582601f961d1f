from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.pictures.content import difference_content, pair_of
from headprobe.pictures.heatmap import content_figure
from headprobe.pictures.page import figure_bytes


def test_scores_of_one_method_are_subtracted_as_they_are(native):
    first, second = native([[0.5, 0.25], [0.0, 1.0]], "a.json"), native([[0.25, 0.75], [0.0, 1.0]], "b.json")
    content = difference_content(first, second, top=10)
    assert content.table.tolist() == [[0.25, -0.5], [0.0, 0.0]]
    assert content.top == ((0, 1, -0.5), (0, 0, 0.25))
    assert content.title == "a.json minus b.json"
    assert content.scale_title == "difference in the mean score"


def test_files_that_name_no_common_method_are_compared_by_share(native, keyed):
    first, second = native([[0.5, 1.5]], "a.json"), keyed([[[1.0, 1.0]]])
    pair = pair_of(first, second)
    assert pair.unit == "share of the total score in percent"
    assert [table.tolist() for table in pair.tables] == [[[25.0, 75.0]], [[50.0, 50.0]]]


def test_the_scale_reaches_as_far_down_as_up(native):
    content = difference_content(native([[0.0, 0.1]], "a.json"), native([[0.9, 0.0]], "b.json"), top=1)
    assert content.limits == (-0.9, 0.9)
    assert [content.number(score) for _, _, score in content.top] == ["-0.900"]


def test_equal_files_have_no_head_to_mark(native):
    content = difference_content(native([[0.5, 0.25]], "a.json"), native([[0.5, 0.25]], "b.json"), top=5)
    assert content.top == ()
    assert content.limits == (-1.0, 1.0)
    assert figure_bytes(lambda: content_figure(content), "svg").startswith(b"<?xml")


def test_query_heads_meet_kv_heads_as_the_mean_of_their_group(native, tmp_path):
    from headprobe.scores.any_scores import read_any

    (tmp_path / "full_attention_heads.tsv").write_text("1.0\t0.0\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"sink_size": 4, "recent_size": 16}', encoding="utf-8")
    content = difference_content(native([[0.5, 0.5, 0.0, 1.0]], kv_heads=2), read_any(tmp_path), top=0)
    assert content.table.tolist() == [[-50.0, 50.0]]
    assert content.head_name == "KV head"


def test_models_of_another_shape_are_refused(native):
    with pytest.raises(OptionError, match="a.json has 1 x 2 heads and b.json 2 x 2: they cannot be compared"):
        difference_content(native([[0.5, 0.25]], "a.json"), native([[0.5, 0.25]] * 2, "b.json"), top=5)


def test_a_ranking_is_refused(native, tmp_path):
    from headprobe.scores.any_scores import read_any

    (tmp_path / "heads.yaml").write_text('attn_head_set: "0-1,1-0"\n', encoding="utf-8")
    with pytest.raises(OptionError, match="heads.yaml is a ranking without scores"):
        pair_of(native(np.eye(2)), read_any(tmp_path / "heads.yaml"))
