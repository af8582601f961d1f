from __future__ import annotations

import pytest

from headprobe.scores.formats.format import FaultError
from headprobe.scores.formats.locos import is_locos, read_locos


def test_scores_and_names_come_out_of_the_envelope() -> None:
    meta = {"model": "org/toy", "method": "logit_contrib"}
    value = {"meta": meta, "scores": {"0-0": [-1.5, 2], "0-1": [4, 4]}, "trial_ids": ["a", "b"]}
    assert is_locos(value)
    table = read_locos(value)
    assert table.mean.tolist() == [[0.25, 4.0]]
    assert (table.model, table.method, table.bound, table.notes) == ("org/toy", "logit_contrib", None, ())


def test_meta_may_be_anything() -> None:
    table = read_locos({"meta": None, "scores": {"0-0": [1]}})
    assert read_locos({"trial_ids": ["a"], "scores": {"0-0": [1]}}).mean.tolist() == [[1.0]]
    assert is_locos({"trial_ids": [], "scores": {}})
    assert not is_locos({"schema": "headprobe/1", "scores": {}, "meta": {}})
    assert (table.model, table.method) == (None, "locos")


def test_another_number_of_ids_than_of_trials_is_noted() -> None:
    table = read_locos({"meta": {}, "scores": {"0-0": [1, 2]}, "trial_ids": ["a"]})
    assert table.notes == ("unequal-trials: 1 trial_ids for 2 trials",)


@pytest.mark.parametrize("scores", [[], {}, None, "0-0"])
def test_scores_must_be_there(scores: object) -> None:
    with pytest.raises(FaultError, match="scores is not an object with a list for each head"):
        read_locos({"meta": {}, "scores": scores})
