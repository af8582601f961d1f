from __future__ import annotations

import numpy as np
import pytest

from headprobe.scores.formats import FORMATS, names_to_write
from headprobe.scores.formats.format import Contents, FaultError


def test_formats_are_called_as_they_are_listed() -> None:
    assert [form.name for form in FORMATS.values()] == list(FORMATS)


def test_the_formats_to_write_are_those_that_can_be_written() -> None:
    assert names_to_write() == [name for name, form in FORMATS.items() if form.write is not None]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"heads": "heads"}, "heads is 'heads', need query or kv"),
        ({"mean": np.zeros(3)}, "the scores have the shape [3], need [layers, heads]"),
        ({"mean": np.array([[0.0, np.nan]])}, "the score of head 0-1 is nan"),
        ({"trial_scores": np.zeros((2, 1, 3))}, "the trials have the shape [2, 1, 3], need [trials, 1, 2]"),
        ({"trial_scores": np.full((1, 1, 2), np.inf)}, "a trial's score is not a finite number"),
    ],
)
def test_what_a_reader_hands_on_is_a_table_of_finite_numbers(fields: dict, reason: str) -> None:
    with pytest.raises(FaultError) as error:
        Contents(**({"heads": "query", "mean": np.zeros((1, 2))} | fields))
    assert reason in str(error.value)


def test_tables_that_were_read_cannot_be_written_to() -> None:
    held = Contents("kv", np.zeros((1, 2)), np.zeros((3, 1, 2)))
    assert not held.mean.flags.writeable
    assert held.trial_scores is not None
    assert not held.trial_scores.flags.writeable
