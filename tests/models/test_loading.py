from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from headprobe.errors import DeviceMemoryError, ModelError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models import catalog, hub, loading
from headprobe.models.loading import geometry_of, load_model
from tests.tiny_models import CHAT_TEMPLATE, TINY_MODELS, VOCAB_SIZE, WINDOW, build_tiny_model, tiny_model

FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = {
    "mistral": (SLIDING, SLIDING),
    "gemma2": (SLIDING, FULL),
    "gemma3": (SLIDING, FULL),
    "gpt-oss": (SLIDING, FULL),
}
HEAD_DIM = {"qwen3": 16}
KV_HEADS = {"olmo2": 4}
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("family", TINY_MODELS)
def test_every_family_loads_with_its_geometry_and_its_weights(family: str, tmp_path: Path, no_network) -> None:
    loaded = load_model(str(build_tiny_model(family, tmp_path)), device="cpu")
    layer_types = LAYER_TYPES.get(family, (FULL, FULL))
    geometry = ModelGeometry(2, 4, KV_HEADS.get(family, 2), HEAD_DIM.get(family, 8), layer_types)
    assert (loaded.geometry, loaded.window, loaded.dtype) == (geometry, WINDOW, "float32")
    assert loaded.architecture == type(tiny_model(family)).__name__
    ids = loaded.tokenizer("Where is the key?", return_tensors="pt").input_ids
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, tiny_model(family)(ids).logits)


def test_a_loaded_model_says_where_it_comes_from(llama_folder: Path) -> None:
    loaded = load_model(str(llama_folder), device="cpu")
    assert (loaded.name, loaded.source, loaded.revision) == (str(llama_folder), str(llama_folder), None)
    assert loaded.config_sha256 == sha256((llama_folder / "config.json").read_bytes())
    assert loaded.tokenizer_sha256 == sha256((llama_folder / "tokenizer.json").read_bytes())
    assert loaded.chat_template_sha256 == sha256(CHAT_TEMPLATE.encode())
    assert (loaded.device, loaded.attn_implementation) == (torch.device("cpu"), "sdpa")


def test_a_model_without_chat_template_has_no_hash_of_it(tmp_path: Path) -> None:
    assert load_model(str(build_tiny_model("llama", tmp_path)), device="cpu").chat_template_sha256 is None


def test_a_loaded_model_is_in_evaluation_mode_without_gradients(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), device="cpu").model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_dtype_and_attention_can_be_chosen(llama_folder: Path) -> None:
    loaded = load_model(str(llama_folder), device="cpu", dtype="bf16", attn_implementation="eager")
    assert (loaded.dtype, loaded.model.dtype) == ("bfloat16", torch.bfloat16)
    assert loaded.attn_implementation == "eager"


def test_loading_prints_nothing_and_leaves_the_loggers_as_they_were(
    llama_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("transformers").level
    load_model(str(llama_folder), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level == level


def test_the_geometry_needs_no_weights(own_llama: Path) -> None:
    (own_llama / "model.safetensors").unlink()
    assert geometry_of(str(own_llama)) == ModelGeometry(2, 4, 2, 8, (FULL, FULL))


def test_the_tokenizers_limit_narrows_the_window(own_llama: Path) -> None:
    path = own_llama / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 300}), encoding="utf-8")
    assert load_model(str(own_llama), device="cpu").window == 300


def test_a_hub_model_carries_its_revision(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir()
    snapshot.symlink_to(llama_folder)
    monkeypatch.setattr(hub, "fetch", lambda resolved, patterns: snapshot)
    loaded = load_model("qwen3-8b", device="cpu")
    assert (loaded.name, loaded.source, loaded.revision) == ("qwen3-8b", "Qwen/Qwen3-8B", "a" * 40)


def test_pickled_weights_are_fetched_only_where_there_are_no_others(
    llama_folder: Path, own_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(hub, "fetch", lambda resolved, patterns: (asked.append(patterns), llama_folder)[1])
    load_model("qwen3-8b", device="cpu")
    assert hub.PICKLED_WEIGHTS not in asked
    torch.save(load_file(own_llama / "model.safetensors"), own_llama / "pytorch_model.bin")
    (own_llama / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "fetch", lambda resolved, patterns: (asked.append(patterns), own_llama)[1])
    assert load_model("qwen3-8b", device="cpu").architecture == "LlamaForCausalLM"
    assert asked[-1] == hub.PICKLED_WEIGHTS


def test_a_missing_bundled_model_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network
) -> None:
    for module in (catalog, loading):
        monkeypatch.setattr(module, "bundled_model_folder", lambda: tmp_path / "bundled")
    with pytest.raises(ModelError, match=r"the bundled model is missing from .*; reinstall headprobe, or train"):
        load_model("demo")


def test_the_bundled_model_loads_without_network(no_network) -> None:
    if not catalog.is_bundled():
        pytest.skip("the bundled model has not been trained yet")
    assert load_model("demo", device="cpu").window >= 2048


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"junkjunkjunkjunk", "the weights cannot be loaded: .*header"),
        ("model.safetensors", b"", "the weights cannot be loaded: .*header"),
        ("model.safetensors", None, "the weights cannot be loaded: .*no file named model.safetensors"),
        ("tokenizer.json", b"{", "broken tokenizer: "),
        ("tokenizer.json", b"{}", "broken tokenizer: "),
        ("tokenizer.json", None, "no tokenizer in this folder"),
        ("config.json", b"{", "broken or unknown config.json: .*not a valid JSON"),
        ("config.json", None, "no config.json in this folder"),
    ],
)
def test_a_broken_folder_is_a_model_error_of_one_line(
    name: str, content: bytes | None, words: str, own_llama: Path
) -> None:
    if content is None:
        (own_llama / name).unlink()
    else:
        (own_llama / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"my-model: {words}") as caught:
        load_model(str(own_llama), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_slow_tokenizer_is_refused(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(folder: Path, *, trust_remote_code: bool, local_files_only: bool) -> Any:
        assert (folder, trust_remote_code, local_files_only) == (llama_folder, False, True)
        return SimpleNamespace(is_fast=False)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", slow)
    with pytest.raises(ModelError, match="llama: SimpleNamespace is not a fast tokenizer, so it gives no exact spans"):
        load_model(str(llama_folder), device="cpu")


def test_a_models_own_code_runs_only_when_it_is_trusted(own_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_llama / "own_code.py").write_text(OWN_CODE, encoding="utf-8")
    path = own_llama / "config.json"
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    config = {**json.loads(path.read_text(encoding="utf-8")), "model_type": "own", "auto_map": auto_map}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        ModelError, match="my-model: the model brings its own code; it runs only with headprobe.load_model"
    ):
        load_model(str(own_llama), device="cpu")
    assert load_model(str(own_llama), device="cpu", trust_remote_code=True).architecture == "OwnModel"


def test_a_truncated_weight_file_is_a_model_error(own_llama: Path) -> None:
    path = own_llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        load_model(str(own_llama), device="cpu")


def test_weights_that_are_missing_are_never_filled_with_random_numbers(own_llama: Path) -> None:
    path = own_llama / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weight\(s\) missing, for example model.layers.1.self_attn.q_proj.weight"):
        load_model(str(own_llama), device="cpu")


def test_weights_of_another_shape_are_a_model_error(own_llama: Path) -> None:
    path = own_llama / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match="my-model: .*weight") as caught:
        load_model(str(own_llama), device="cpu")
    shapes = "model.norm.weight is 31 in the file and 32 by config.json"
    assert str(caught.value).endswith(f"my-model: the weights do not have the shapes that config.json states: {shapes}")


def test_a_config_with_another_vocabulary_names_the_first_weight_and_counts_the_others(own_llama: Path) -> None:
    change_config(own_llama, vocab_size=VOCAB_SIZE + 2)
    shapes = f"lm_head.weight is {VOCAB_SIZE} x 32 in the file and {VOCAB_SIZE + 2} x 32 by config.json"
    with pytest.raises(ModelError, match=rf"states: {shapes} \(1 more weight\(s\) differ\)$"):
        load_model(str(own_llama), device="cpu")


def test_shapes_beyond_all_memory_are_a_model_error(own_llama: Path) -> None:
    change_config(own_llama, vocab_size=10**13)
    with pytest.raises(ModelError, match="weights do not have the shapes that config.json states|cannot be loaded"):
        load_model(str(own_llama), device="cpu")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", POINTER, "the weights cannot be loaded: model.safetensors is a Git LFS pointer"),
        ("tokenizer.json", POINTER, "broken tokenizer: tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", b"", "broken tokenizer: tokenizer.json is not a valid JSON file"),
        ("tokenizer.json", b"[" * 100_000, "broken tokenizer: tokenizer.json is not a valid JSON file: it is nested"),
        ("tokenizer_config.json", POINTER, "broken tokenizer: tokenizer_config.json is a Git LFS pointer"),
        ("tokenizer_config.json", b"[1]", "broken tokenizer: tokenizer_config.json .*holds no object"),
        ("tokenizer_config.json", b"\xff", "broken tokenizer: tokenizer_config.json .*byte 0 is not UTF-8"),
        ("special_tokens_map.json", b"3", "broken tokenizer: special_tokens_map.json .*holds no object"),
        ("config.json", POINTER, "broken or unknown config.json: it is a Git LFS pointer"),
        ("generation_config.json", b"", "generation_config.json is not a valid JSON"),
    ],
)
def test_the_file_that_is_broken_is_named(name: str, content: bytes, words: str, own_llama: Path) -> None:
    (own_llama / name).write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(str(own_llama), device="cpu")
    assert len(str(caught.value).removeprefix(str(own_llama))) < 300


@pytest.mark.parametrize("value", ["x", True, [[1]], {"a": 1}, -5, float("nan")])
def test_a_limit_of_the_tokenizer_that_is_no_number_is_refused_before_the_weights(value: Any, own_llama: Path) -> None:
    path = own_llama / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": value}), encoding="utf-8")
    (own_llama / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"my-model: model_max_length in tokenizer_config.json is .*, need a whole"):
        load_model(str(own_llama), device="cpu")


@pytest.mark.parametrize("value", [True, 0, 1.5, [1], ["x"], [{"name": "default"}], {"default": 3}])
def test_a_chat_template_that_is_no_text_is_named(value: Any, own_llama: Path) -> None:
    path = own_llama / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}), encoding="utf-8")
    with pytest.raises(ModelError, match="my-model: chat_template in tokenizer_config.json is .*, need text"):
        load_model(str(own_llama), device="cpu")


def test_layers_that_differ_are_refused_before_the_weights(own_llama: Path) -> None:
    change_config(own_llama, global_head_dim=512)
    (own_llama / "model.safetensors").write_bytes(b"")
    for read in (load_model, geometry_of):
        with pytest.raises(ModelError, match=r"my-model: head_dim \(global_head_dim\) differs from layer to layer"):
            read(str(own_llama))


@pytest.mark.parametrize(("option", "value"), [("device", "wobble"), ("dtype", "int3")])
def test_a_bad_option_is_told_before_anything_is_loaded(option: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"{option} '{value}' is unknown"):
        load_model("./nowhere", **{option: value})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out"), MemoryError(), RuntimeError("can't allocate memory")])
def test_a_model_that_does_not_fit_is_a_memory_error(
    error: Exception, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(DeviceMemoryError, match=r"0.0 GiB of weight files do not fit on cpu as float32; take --dtype"):
        load_model(str(llama_folder), device="cpu")


@pytest.mark.gpu
def test_on_a_gpu_half_precision_is_the_default(llama_folder: Path) -> None:
    loaded = load_model(str(llama_folder))
    assert (loaded.device.type, loaded.dtype) == ("cuda", "bfloat16")
