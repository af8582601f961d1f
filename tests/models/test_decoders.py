from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Gemma3Config

from headprobe.errors import ModelError
from headprobe.models.config import read_config, read_geometry, read_window
from tests.tiny_models import tiny_config

FOLDER = Path("folder")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
T5 = {"model_type": "t5", "d_model": 8, "num_layers": 1, "num_heads": 2}
BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ROBERTA = {**BERT, "model_type": "roberta"}
DISTILBERT = {"model_type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 2}
BERT_GENERATION = {**BERT, "model_type": "bert-generation"}
EMBEDDING_GEMMA = {**BERT, "model_type": "gemma3_text", "use_bidirectional_attention": True}
NEOX = {**BERT, "model_type": "gpt_neox", "intermediate_size": 8, "vocab_size": 8}
MAMBA = {"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1}


def write_config(content: Any) -> Path:
    FOLDER.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (FOLDER / "config.json").write_text(text, encoding="utf-8")
    return FOLDER


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (T5, "t5 is an encoder-decoder; headprobe needs a decoder-only language model"),
        ({**BERT, "model_type": "bart"}, "bart is an encoder-decoder"),
        (BERT, "bert is an encoder; headprobe needs a decoder-only language model"),
        ({**BERT, "is_decoder": False}, "bert is an encoder"),
        (ROBERTA, "roberta is an encoder"),
        (DISTILBERT, "distilbert is an encoder"),
        (BERT_GENERATION, "bert-generation is an encoder"),
        (EMBEDDING_GEMMA, "gemma3_text is an encoder"),
        (VIT, "vit is not a causal language model"),
        (MAMBA, "mamba has no standard attention interface in transformers"),
    ],
)
def test_what_is_no_decoder_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"^folder: {words}"):
        read_config(write_config(config))


@pytest.mark.parametrize(
    "config", [NEOX, {**NEOX, "is_decoder": False}, {**BERT, "is_decoder": True}, {**ROBERTA, "is_decoder": True}]
)
def test_causal_decoders_are_taken_whatever_is_decoder_says_where_nothing_reads_it(config: dict[str, Any]) -> None:
    assert read_config(write_config(config)).model_type == config["model_type"]


def test_a_wrong_type_is_named_with_its_key_and_value() -> None:
    with pytest.raises(ModelError, match="config.json: .*'num_hidden_layers' expected int, got str .*'six'") as caught:
        read_config(write_config({"model_type": "llama", "num_hidden_layers": "six"}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is not a valid JSON file: Expecting value"),
        (b"\xef\xbb\xbf{}", "it is not a valid JSON file: Unexpected UTF-8 BOM"),
        (b'{"a": "\xff"}', "it is not a valid JSON file: byte 7 is not UTF-8"),
        (b"[" * 100_000, "it is not a valid JSON file: it is nested too deeply"),
        (b"3", "it holds no object"),
        (POINTER, "it is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    ],
)
def test_what_lies_in_place_of_a_config_is_said(content: bytes, words: str) -> None:
    write_config({})
    (FOLDER / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=f"^folder: broken or unknown config.json: .*{words}"):
        read_config(FOLDER)


def test_a_folder_in_place_of_a_config_is_said() -> None:
    (FOLDER / "config.json").mkdir(parents=True)
    with pytest.raises(ModelError, match="^folder: broken or unknown config.json: it is a folder, need a file"):
        read_config(FOLDER)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{broken", "is not a valid JSON file"),
        ("[1, 2]", ""),
        ({}, "Unrecognized model"),
        ({"model_type": "wobble"}, "has model type `wobble`"),
        ({"model_type": "llama", "num_hidden_layers": "six"}, ""),
    ],
)
def test_a_broken_config_is_a_model_error(content: Any, words: str) -> None:
    with pytest.raises(ModelError, match=f"^folder: broken or unknown config.json: .*{words}") as caught:
        read_config(write_config(content))
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no config.json in this folder"):
        read_config(tmp_path)


def test_heads_that_cannot_be_shared_are_a_model_error() -> None:
    config = SimpleNamespace(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=3, head_dim=8, layer_types=None, model_type="x"
    )
    config.get_text_config = lambda decoder: config
    with pytest.raises(ModelError, match="^folder: 4 query heads cannot be shared evenly by 3 KV heads"):
        read_geometry(config, FOLDER)


def test_layers_without_attention_are_refused() -> None:
    config = tiny_config("llama")
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="^folder: layers of the kind linear_attention have no attention"):
        read_geometry(config, FOLDER)


def test_a_multimodal_config_is_read_through_its_text_part() -> None:
    config = Gemma3Config(text_config=tiny_config("gemma3").to_dict())
    geometry = read_geometry(config, FOLDER)
    assert geometry.shape == (2, 4)
    assert geometry.layer_types == ("sliding_attention", "full_attention")
    assert read_window(config, None, FOLDER) == 1024


@pytest.mark.parametrize(
    ("positions", "tokenizer_limit", "window"),
    [(1024, None, 1024), (1024, 512, 512), (1024, 10**30, 1024), (1024, 0, 1024), (None, 512, 512)],
)
def test_the_window_is_the_smaller_sane_limit(positions: int | None, tokenizer_limit: int | None, window: int) -> None:
    config = SimpleNamespace(max_position_embeddings=positions)
    config.get_text_config = lambda decoder: config
    assert read_window(config, SimpleNamespace(model_max_length=tokenizer_limit), FOLDER) == window


def test_a_model_without_any_limit_is_refused() -> None:
    config = SimpleNamespace()
    config.get_text_config = lambda decoder: config
    with pytest.raises(ModelError, match="^folder: neither config .* nor tokenizer states a window"):
        read_window(config, None, FOLDER)
