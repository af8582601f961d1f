from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headprobe.compression import importance
from headprobe.errors import ModelError, NonFiniteError, OptionError, PlanError
from headprobe.evaluation.value_norms import LayerNorms, SinkDrop, measure_value_norms, norm_capture
from headprobe.models.loading import LoadedModel, load_model
from tests.tiny_models import SLIDING_WINDOW, TINY_MODELS, WINDOW, build_tiny_model, tiny_model

IDS = tuple((7 * i) % 300 + 3 for i in range(45))


def load(family: str, folder: Path) -> LoadedModel:
    return load_model(str(build_tiny_model(family, folder)), device="cpu")


@pytest.mark.parametrize("family", TINY_MODELS)
def test_shares_of_attention_are_those_of_the_eager_model(family: str, tmp_path: Path) -> None:
    loaded = load(family, tmp_path)
    groups = loaded.geometry.num_key_value_heads
    model = tiny_model(family, attn_implementation="eager")
    with torch.no_grad():
        attentions = model(torch.tensor([IDS]), output_attentions=True).attentions
    measured = measure_value_norms(loaded, IDS)
    assert [layer.layer for layer in measured.layers] == [0, 1]
    for layer, weights in zip(measured.layers, attentions, strict=True):
        for group in range(groups):
            own = weights[0].view(groups, -1, len(IDS), len(IDS))[group]
            for token in (0, 1, 20, 44):
                expected = float(own[:, :, token].sum(1).mean()) / len(IDS)
                assert layer.attention[group, token] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tile", [1, 1 << 7, 1 << 24])
def test_tiles_do_not_change_the_shares(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("gemma3", tmp_path)
    whole = measure_value_norms(loaded, IDS)
    monkeypatch.setattr(importance, "TILE_ELEMENTS", tile)
    for plain, tiled in zip(whole.layers, measure_value_norms(loaded, IDS).layers, strict=True):
        np.testing.assert_allclose(tiled.attention, plain.attention, atol=1e-7)


def test_norms_are_the_values_summed_without_sign(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    decoder: Any = loaded.model.model
    hidden = decoder.layers[0].input_layernorm(decoder.embed_tokens(torch.tensor([IDS])))
    values = decoder.layers[0].self_attn.v_proj(hidden)[0].view(len(IDS), 2, 8)
    measured = measure_value_norms(loaded, IDS)
    for group in range(2):
        for token in range(len(IDS)):
            expected = sum(abs(float(x)) for x in values[token, group])
            assert measured.layers[0].norms[group, token] == pytest.approx(expected, rel=1e-5)


def test_sliding_layers_tell_their_window(tmp_path: Path) -> None:
    assert [layer.window for layer in measure_value_norms(load("gemma3", tmp_path), IDS).layers] == [
        SLIDING_WINDOW,
        None,
    ]


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nothing_of_tokens_by_tokens_is_built(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(family, tmp_path)
    monkeypatch.setattr(importance, "TILE_ELEMENTS", 1 << 16)
    with LargestTensor() as largest:
        measure_value_norms(loaded, (IDS * 30)[:WINDOW])
    assert largest.elements <= WINDOW * 384  # the embedding of the vocabulary, wider than any head


def test_the_drop_of_the_sinks_by_hand() -> None:
    norms = np.array([[1, 3, 4, 8, 6, 4], [2, 2, 2, 1, 5, 3]], dtype=np.float32)
    attention = np.array([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]], dtype=np.float32)
    drop = SinkDrop.of(LayerNorms(3, attention, norms), num_sinks=2)
    # medians of 4 8 6 4 and 2 1 5 3: 5 and 2.5; sinks' means 2 and 2
    assert (drop.layer, drop.median, drop.sink_norm) == (3, 3.75, 2.0)
    assert drop.ratio == pytest.approx(2 / 3.75)
    assert drop.position_ratios == (pytest.approx(1.5 / 3.75), pytest.approx(2.5 / 3.75))
    assert (drop.lowest_head, drop.lowest_ratio) == (0, pytest.approx(2 / 5))
    assert drop.attention == pytest.approx((0.6 + 0.5) / 2)


def test_values_that_are_all_zero_have_no_ratio() -> None:
    nothing = np.zeros((1, 4), dtype=np.float32)
    drop = SinkDrop.of(LayerNorms(0, nothing, nothing), num_sinks=1)
    assert (drop.ratio, drop.position_ratios, drop.lowest_head, drop.lowest_ratio) == (None, (None,), None, None)


def test_the_models_own_attention_comes_back_after_an_error() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), norm_capture(model, {}):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_prompts_beyond_the_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the prompt has 1025 tokens, the model's window only 1024"):
        measure_value_norms(load("llama", tmp_path), (5,) * (WINDOW + 1))


@pytest.mark.parametrize(("sinks", "message"), [(0, "sinks is 0"), (45, "has 45 tokens, need more than its 45 sinks")])
def test_sinks_must_leave_tokens_behind_them(sinks: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        measure_value_norms(load("llama", tmp_path), IDS, sinks)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    decoder: Any = loaded.model.model
    decoder.layers[1].self_attn.v_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="layer 1 has attention or values that are not finite"):
        measure_value_norms(loaded, IDS)


def test_norms_of_a_model_whose_logits_are_not_finite_are_refused(tmp_path: Path) -> None:
    loaded = load("llama", tmp_path)
    decoder: Any = loaded.model.model
    decoder.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    match = r"NaN or infinity in the logits after the prompt: .*model.layers.1.mlp.down_proj"
    with pytest.raises(NonFiniteError, match=match):
        measure_value_norms(loaded, IDS)


def test_attention_in_chunks_is_refused() -> None:
    model = tiny_model("gemma3")
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ModelError, match="attends in chunks"), norm_capture(model, {}):
        pass
