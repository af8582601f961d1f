"""`compression.json`: what a model's folder recommends, and what of it is taken."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headprobe.compression.policies import make_policy
from headprobe.compression.selectors import Window
from headprobe.errors import FileFormatError
from headprobe.evaluation.known_scores import Recommended, window_note, with_recommended_window
from headprobe.models.catalog import bundled_model_folder


def model(folder: Path, text: str | None) -> Any:
    if text is not None:
        (folder / "compression.json").write_text(text, encoding="utf-8")
    return SimpleNamespace(source=str(folder), name="mine")


@pytest.mark.parametrize(
    ("text", "selector", "note"),
    [
        (None, Window(8, 7), None),
        ('{"pool": 15}', Window(8, 15), "window policies pool over 15 entries, as mine recommends"),
        ('{"window": 3}', Window(3, 7), "window policies use the last 3 queries, as mine recommends"),
        (
            '{"window": 2, "pool": 49}',
            Window(2, 49),
            "window policies use the last 2 queries, pooled over 49, as mine recommends",
        ),
    ],
)
def test_either_number_may_be_recommended_alone(
    tmp_path: Path, text: str | None, selector: Window, note: str | None
) -> None:
    loaded = model(tmp_path, text)
    assert with_recommended_window(loaded, make_policy("snapkv")).selector == selector
    assert window_note(loaded) == note
    assert with_recommended_window(loaded, make_policy("h2o")) == make_policy("h2o")


def test_what_the_user_gives_overrules_its_own_kind_only(tmp_path: Path) -> None:
    loaded = model(tmp_path, '{"window": 2, "pool": 49}')
    assert with_recommended_window(loaded, make_policy("snapkv", pool=7), pool=7).selector == Window(2, 7)
    assert window_note(loaded, pool=7) == "window policies use the last 2 queries, as mine recommends"
    assert with_recommended_window(loaded, make_policy("snapkv", window=5), window=5).selector == Window(5, 49)
    assert window_note(loaded, window=5) == "window policies pool over 49 entries, as mine recommends"
    both = make_policy("snapkv", window=8, pool=7)
    assert with_recommended_window(loaded, both, 8, 7) == both
    assert window_note(loaded, 8, 7) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "one of the two"),
        ("[2, 49]", "one of the two"),
        ('{"pools": 15}', "one of the two"),
        ('{"pool": 15, "beta": 2}', "one of the two"),
        ('{"pool": "15"}', "pool is '15', need a whole number"),
        ('{"pool": 15.0}', "pool is 15.0, need a whole number"),
        ('{"window": true}', "window is True, need a whole number"),
        ('{"window": null}', "window is None, need a whole number"),
        ('{"pool": 14}', "pool is 14, need an odd number of 1 or more"),
        ('{"window": 0}', "the window is 0 queries, need at least 1"),
        ('{"pool": 15, "pool": 17}', "the key 'pool' occurs twice"),
        ("pool: 15", "not JSON"),
    ],
)
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=f"compression.json:.*{message}"):
        Recommended.of(model(tmp_path, text).source)


@pytest.mark.parametrize("text", ["[" * 100_000, "", '{"window": "' + "9" * 5000 + '", "pool": 3}'])
def test_whatever_a_file_holds_the_error_is_short(tmp_path: Path, text: str) -> None:
    with pytest.raises(FileFormatError, match="compression.json:") as caught:
        Recommended.of(model(tmp_path, text).source)
    assert len(str(caught.value)) - len(str(tmp_path)) < 300


def test_the_bundled_model_recommends_both() -> None:
    assert Recommended.of(str(bundled_model_folder())) == Recommended(window=2, pool=49)
