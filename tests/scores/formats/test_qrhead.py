from __future__ import annotations

import pytest

from headprobe.scores.formats.format import FaultError
from headprobe.scores.formats.qrhead import is_qrhead, read_qrhead


def test_the_first_head_has_most_points_and_the_others_none() -> None:
    table = read_qrhead(b'# best first\nattn_head_set: "1-2,0-0,1-0" # top3\nmodel_base_class: "Toy"\n')
    assert table.mean.tolist() == [[2.0, 0.0, 0.0], [1.0, 0.0, 3.0]]
    assert (table.is_ranking, table.bound, table.model, table.trial_scores) == (True, None, "Toy", None)
    assert table.notes == (
        "ranking-only: the file ranks heads and holds no scores; the points only say the order",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["attn_head_set: 0-1, 0-0", "attn_head_set: '0-1,0-0'\r\n", "a: b\nattn_head_set: 0-1,0-0 # x"]
)
def test_yaml_may_quote_as_it_likes(text: str) -> None:
    assert is_qrhead(text.encode())
    assert read_qrhead(text.encode()).mean.tolist() == [[1.0, 2.0]]


def test_the_full_name_of_the_model_goes_before_its_class() -> None:
    text = b'attn_head_set: 0-0\nmodel_base_class: "B"\nmodel_name_or_path: "org/B"\n'
    assert read_qrhead(text).model == "org/B"


@pytest.mark.parametrize(
    ("text", "check", "reason"),
    [
        (b"attn_head_set:\n", "missing-heads", "names no head"),
        (b'attn_head_set: "1-1,1-1"', "repeated-head", "names 1-1 twice"),
        (b"attn_head_set: &a [*a, *a]", "bad-key", "holds '&a \\[[*]a'"),
        (b"attn_head_set: !!python/object/apply:os.system [id]", "bad-key", "need layer-head"),
        (b"attn_head_set: 99999-99999", "wrong-shape", "100000 x 100000 heads, need at most 65536"),
        (
            b'attn_head_set: "1-2"\nattn_head_set: "3-4"\n',
            "repeated-key",
            "line 2: the key 'attn_head_set' occurs twice",
        ),
        (
            b"attn_head_set: 1-2\n'attn_head_set' : 3-4\n",
            "repeated-key",
            "line 2: the key 'attn_head_set' occurs twice",
        ),
        (b"a: 1\nattn_head_set: 1-2\na: 2\n", "repeated-key", "line 3: the key 'a' occurs twice"),
        (b'attn_head_set: "1-2" 3-4\n', "unreadable", "is not a quoted text on one line"),
        (b'attn_head_set: "1-2\n  3-4"\n', "unreadable", "is not a quoted text on one line"),
        (b"attn_head_set: 1_0-2", "bad-key", "holds '1_0-2'"),
        (b"attn_head_set: -1-2", "bad-key", "holds '-1-2'"),
        (b"attn_head_set: 01-2", "bad-key", "holds '01-2'"),
        (b"attn_head_set: 1 - 2", "bad-key", "holds '1 - 2'"),
        ("attn_head_set: \uff10-\uff11".encode(), "bad-key", "need layer-head"),
        ("attn_head_set: 1-2,\u00a03-4".encode(), "bad-key", "need layer-head"),
        (b"attn_head_set: 0-0\n\xff", "unreadable", "byte 19 is not UTF-8"),
    ],
)
def test_a_broken_ranking_is_refused_by_name(text: bytes, check: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason) as error:
        read_qrhead(text)
    assert error.value.check == check
