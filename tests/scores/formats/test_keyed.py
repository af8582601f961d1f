from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from headprobe.scores.formats.format import FaultError
from headprobe.scores.formats.keyed import is_keyed, keyed_bytes, read_keyed


def test_heads_are_found_by_key_and_not_by_order() -> None:
    table = read_keyed({"1-0": [0.5], "0-1": [0.25], "1-1": [1.0], "0-0": [0]})
    assert table.mean.tolist() == [[0.0, 0.25], [0.5, 1.0]]
    assert table.trial_scores is not None
    assert table.trial_scores.tolist() == [[[0.0, 0.25], [0.5, 1.0]]]


def test_the_first_key_that_stands_elsewhere_is_noted() -> None:
    notes = read_keyed({"0-1": [1], "0-0": [1]}).notes
    told = "key 1 is 0-1, in layer, head order it is 0-0; 2 of 2 keys are elsewhere"
    assert notes == (f"keys-out-of-order: {told}",)


def test_keys_in_the_order_of_their_text_are_out_of_order() -> None:
    keys = sorted(f"0-{head}" for head in range(12))
    assert "key 3 is 0-10" in read_keyed({key: [0.5] for key in keys}).notes[0]


def test_heads_of_different_numbers_of_trials_have_means_but_no_trials() -> None:
    table = read_keyed({"0-0": [1, 0], "0-1": [1]})
    assert table.mean.tolist() == [[0.5, 1.0]]
    assert table.trial_scores is None
    assert table.notes == (
        "unequal-trials: heads differ in their number of trials: 0-1 has 1, 0-0 has 2",
    )  # fmt: skip


def test_one_number_a_head_is_a_mean() -> None:
    table = read_keyed({"0-0": 0.5, "0-1": 1})
    assert (table.mean.tolist(), table.trial_scores) == ([[0.5, 1.0]], None)


@pytest.mark.parametrize(
    ("value", "check", "reason"),
    [
        ({"0-0": [1], "1-1": [1]}, "missing-heads", "2 of 2 x 2 heads are missing, the first is 0-1"),
        ({"0-0": [1], "99999-99999": [1]}, "missing-heads", "of 100000 x 100000 heads are missing"),
        ({"0-0": [1], "0-01": [1]}, "bad-key", "the key '0-01' is not of the form layer-head"),
        ({"0-0": [1], "0-٣": [1]}, "bad-key", "is not of the form layer-head"),
        ({"0-0": [1], "1_0-2": [1]}, "bad-key", "the key '1_0-2' is not of the form layer-head"),
        ({"0-0": [1], "-1-2": [1]}, "bad-key", "the key '-1-2'"),
        ({"0-0": [1], "0-1 ": [1]}, "bad-key", "the key '0-1 '"),
        ({"0-0": [1], "0-1\n": [1]}, "bad-key", "the key '0-1"),
        ({"0-0": [1], "\uff10-\uff11": [1]}, "bad-key", "is not of the form layer-head"),
        ({f"{i // 256}-{i % 256}": 1 for i in range(257 * 256)}, "wrong-shape", "65792 heads, need at most 65536"),
        ({"0-0": []}, "empty-head", "head 0-0 has no trial"),
        ({"0-0": [0] * 20_001}, "too-long", "head 0-0 has 20001 trials, need at most 20000"),
        ({"0-0": [1, "1"]}, "not-a-number", "the score of head 0-0 in trial 2 is '1', need a number"),
        ({"0-0": [True]}, "not-a-number", "in trial 1 is True, need a number"),
        ({"0-0": {"a": 1}}, "not-a-number", "the score of head 0-0 is an object of 1, need a number"),
        ({"0-0": [float("nan")]}, "not-finite", "in trial 1 is nan, need a finite number"),
        ({"0-0": [float("inf")]}, "not-finite", "in trial 1 is inf, need a finite number"),
        ({"0-0": [10**400]}, "out-of-range", "is an integer of more than 20 digits, need at most 1e[+]06"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_name(value: dict, check: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason) as error:
        read_keyed(value)
    assert error.value.check == check


@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6)))
def test_what_is_written_is_read_again_to_the_last_bit(scores: np.ndarray) -> None:
    written = keyed_bytes(scores)
    assert written.count(b"\n") == 0
    again = read_keyed(json.loads(written))
    assert again.notes == ()
    assert again.trial_scores is not None
    assert again.trial_scores.tobytes() == scores.tobytes()


@pytest.mark.parametrize("value", [{}, [], None, "0-0", {"a": [1]}])
def test_other_json_is_no_keyed_table(value: object) -> None:
    assert not is_keyed(value)
