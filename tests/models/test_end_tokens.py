"""`generation_config.json`, and the tokens that end a sequence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headprobe.errors import ModelError
from headprobe.models.config import check_generation_config, end_token_ids

FOLDER = Path("m")


def write(content: Any) -> Path:
    FOLDER.mkdir()
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (FOLDER / "generation_config.json").write_bytes(data)
    return FOLDER


def test_ends_are_those_of_the_generation_config_and_of_the_tokenizer() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[2, 7]))
    assert end_token_ids(model, SimpleNamespace(eos_token_id=5)) == {2, 5, 7}
    assert end_token_ids(SimpleNamespace(generation_config=None), SimpleNamespace(eos_token_id=None)) == set()


def test_a_wrong_end_of_a_model_in_memory_is_an_error() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id="x"))
    with pytest.raises(ModelError, match="eos_token_id of the generation config is 'x', need a token id"):
        end_token_ids(model, SimpleNamespace(eos_token_id=5))


@pytest.mark.parametrize("content", [{}, {"eos_token_id": 2}, {"eos_token_id": [2, 3], "pad_token_id": -1}])
def test_a_sound_file_is_taken_and_may_be_missing(content: Any) -> None:
    check_generation_config(write(content))
    (FOLDER / "generation_config.json").unlink()
    check_generation_config(FOLDER)


@pytest.mark.parametrize("value", ["x", True, -1, 1.5, [[1]], ["x"], {"a": 1}, 10**30, float("nan"), float("-inf")])
def test_a_wrong_end_is_named_with_file_key_and_value(value: Any) -> None:
    with pytest.raises(ModelError, match=r"^m/generation_config.json: eos_token_id is .*, need a token id"):
        check_generation_config(write({"eos_token_id": value}))


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["x" * 5000, False, [1], 0.5])
def test_other_tokens_are_checked_too(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"^m/generation_config.json: {name} is .*, need a token id") as caught:
        check_generation_config(write({name: value}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a valid JSON file"),
        (b"\xef\xbb\xbf{}", "is not a valid JSON file: Unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', "is not a valid JSON file: byte 7 is not UTF-8"),
        (b"[" * 100_000, "is not a valid JSON file: it is nested too deeply"),
        (b'{"eos_token_id": ' + b"9" * 5000 + b"}", "is not a valid JSON file: Exceeds the limit"),
        (b"[1]", "it holds no object"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_transformers_would_leave_out_in_silence_is_an_error(content: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=f"^m/generation_config.json {words}|^m/generation_config.json .*{words}"):
        check_generation_config(write(content))


def test_a_folder_in_its_place_is_an_error() -> None:
    (FOLDER / "generation_config.json").mkdir(parents=True)
    with pytest.raises(ModelError, match="^m/generation_config.json is a folder, need a file"):
        check_generation_config(FOLDER)
