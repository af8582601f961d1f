"""Weights that are quantized while they are loaded, and those whose files are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headprobe.compression.generation import generate
from headprobe.compression.session import compress
from headprobe.errors import ModelError, OptionError
from headprobe.models.loading import load_model
from headprobe.models.placement import bits_of, quantization_of
from headprobe.profiling.job import ScoreOptions
from headprobe.profiling.run import score
from headprobe.scores.score_file import load_scores
from tests.tiny_models import build_tiny_model

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")


@pytest.fixture(scope="module")
def int8() -> Any:
    return load_model("demo", device="cpu", quantization="int8")


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_int8_weights_are_smaller_and_score_the_same_heads(int8: Any, tmp_path: Path) -> None:
    plain = load_model("demo", device="cpu")
    options = ScoreOptions(methods=("r2", "logit"), lengths=(256,), depths=3, needles_per_cell=1)
    found = {}
    for name, loaded in (("plain", plain), ("int8", int8)):
        found[name] = score(loaded, options, output=tmp_path / name / "").scores
    for method in options.methods:
        first, second = (found[name][method] for name in ("plain", "int8"))
        assert first.num_passed == second.num_passed == 3
        assert {head[:2] for head in first.top(3)} == {head[:2] for head in second.top(3)}
        assert 0 < abs(first.mean - second.mean).max() <= 0.01 * abs(first.mean).max()


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_the_score_file_says_how_the_weights_were_held(int8: Any, tmp_path: Path) -> None:
    options = ScoreOptions(lengths=(256,), depths=1, needles_per_cell=1)
    score(int8, options, output=tmp_path / "int8.json")
    held = load_scores(tmp_path / "int8.json").provenance.model
    assert held.quantization is not None
    assert (held.quantization["quant_method"], held.quantization["quant_type"]) == ("torchao", "Int8WeightOnlyConfig")
    assert held.dtype == "float32"
    assert held.weights_sha256 != load_model("demo", device="cpu").weights_sha256


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_a_compressed_cache_answers_on_quantized_weights(int8: Any) -> None:
    with compress(int8.model, "snapkv", budget=16, kv_cache_dtype="int8") as session:
        made = generate(session, list(range(5, 90)), max_new_tokens=3)
    assert len(made.tokens) == 3
    assert made.kv_entries == 24 * 16


def stated(folder: Path, block: Any) -> str:
    """A tiny model whose config states this quantization."""
    path = build_tiny_model("llama", folder)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": block}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("block", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_weights_that_cannot_be_read_here_are_an_error_that_names_method_and_package(
    tmp_path: Path, block: dict[str, Any], package: str
) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    match = f"its weights are quantized by {block['quant_method']} and cannot be loaded on cpu: .*{package}"
    with pytest.raises(ModelError, match=match):
        load_model(stated(tmp_path, block), device="cpu")


@needs_torchao
def test_weights_that_are_quantized_already_are_not_quantized_again(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="quantized already, by awq: leave out quantization int8"):
        load_model(stated(tmp_path, {"quant_method": "awq", "bits": 4}), device="cpu", quantization="int8")


def test_unknown_ways_and_missing_packages_are_refused_before_anything_is_read() -> None:
    with pytest.raises(OptionError, match="quantization is 'int2', need one of int8"):
        load_model("no-such-model", quantization="int2")
    if find_spec("torchao") is None:
        with pytest.raises(OptionError, match="needs the package torchao.*headprobe\\[torchao\\]"):
            load_model("no-such-model", quantization="int8")


def test_what_a_config_says_is_recorded_as_plain_values() -> None:
    block = {
        "quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
        "modules_to_not_convert": ["lm_head"], "dtype": torch.float32,
    }  # fmt: skip
    found = quantization_of(SimpleNamespace(quantization_config=block))
    assert found == {"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig"}
    assert (bits_of(found), bits_of({"bits": 4}), bits_of({"load_in_4bit": True}), bits_of(None)) == (8, 4, 4, None)
    assert quantization_of(object()) is None
