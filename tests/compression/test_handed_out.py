from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from headprobe.compression.ragged_cache import RaggedCache, is_same
from headprobe.compression.session import compress
from headprobe.errors import ModelError
from headprobe.models.releases import with_cache
from tests.tiny_models import tiny_config, tiny_model

IDS = torch.arange(3, 33)[None]
Pair = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def changed_behind_the_cache(monkeypatch: pytest.MonkeyPatch, change: Callable[[Pair], Pair]) -> Iterator[None]:
    """A model that does something to keys and values between its cache and its attention."""
    update = RaggedCache.update

    def changed(self: Any, *args: Any, **more: Any) -> Pair:
        return change(update(self, *args, **more))

    with monkeypatch.context() as patch:
        patch.setattr(RaggedCache, "update", changed)
        yield


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: (pair[0].repeat(1, 2, 1, 1), pair[1].repeat(1, 2, 1, 1)),
        lambda pair: (pair[0] * 1.01, pair[1]),
        lambda pair: (pair[0], pair[1].flip(1)),
        lambda pair: (pair[0].roll(1, 2), pair[1]),
        lambda pair: (pair[0], pair[1].double()),
        lambda pair: (pair[1], pair[0]),
    ],
    ids=["repeated", "scaled", "heads swapped", "moved", "other type", "swapped"],
)
def test_keys_and_values_changed_behind_the_cache_are_refused(
    change: Callable[[Pair], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "layer 0 of LlamaForCausalLM attends to other keys and values than its cache holds"
    with (
        changed_behind_the_cache(monkeypatch, change),
        compress(tiny_model("llama"), "full") as session,
        pytest.raises(ModelError, match=message),
    ):
        session.generate(IDS, max_new_tokens=2, do_sample=False)


def test_a_copy_of_keys_and_values_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    own = model.generate(IDS, max_new_tokens=5, do_sample=False)
    with (
        changed_behind_the_cache(monkeypatch, lambda pair: (pair[0].clone(), pair[1].contiguous())),
        compress(model, "full") as session,
    ):
        assert session.generate(IDS, max_new_tokens=5, do_sample=False).tolist() == own.tolist()


def test_views_of_one_place_are_the_same_and_others_are_not() -> None:
    held = torch.arange(12.0).view(1, 1, 3, 4)
    assert is_same(held.view(1, 1, 3, 4), held)
    assert is_same(held.clone(), held)
    assert not is_same(held[:, :, :2], held)
    assert not is_same(held.transpose(2, 3), held)
    assert not is_same(held.view(1, 3, 1, 4).expand(1, 3, 3, 4)[:, :1], held)
    assert not is_same(held + 1, held)


def test_attention_that_is_called_twice_for_one_update_is_refused() -> None:
    model = tiny_model("llama")
    with compress(model, "full") as session:
        session.generate(IDS, max_new_tokens=2, do_sample=False)
        with pytest.raises(ModelError, match="layer 0 of LlamaForCausalLM attends without new keys and values"):
            model(IDS)


def test_a_cache_whose_window_is_not_that_of_the_masks_is_refused() -> None:
    model = tiny_model("llama")
    model.config.sliding_window = 8  # transformers' cache keeps 8 entries; the model's masks know of no window
    model.config.layer_types = ["full_attention", "sliding_attention"]
    message = "layer 1 of LlamaForCausalLM has a window of None, its cache one of 8"
    with compress(model, "full") as session, pytest.raises(ModelError, match=message):
        session.generate(IDS, max_new_tokens=2, do_sample=False)


def test_more_or_fewer_kv_heads_than_the_config_says_are_refused() -> None:
    model = tiny_model("llama")
    model.config.num_key_value_heads = 4
    with (
        compress(model, "full") as session,
        pytest.raises(ModelError, match="caches 2 KV heads, by the model's config it has 4"),
    ):
        session.generate(IDS, max_new_tokens=2, do_sample=False)


def test_a_cache_of_latents_is_refused_before_anything_runs() -> None:
    model = tiny_model("llama")
    model.config.kv_lora_rank = 16
    with (
        pytest.raises(ModelError, match=r"LlamaForCausalLM caches a latent .*kv_lora_rank 16"),
        compress(model, "snapkv", budget=8),
    ):
        pass


def test_layers_that_share_keys_are_refused_before_anything_runs() -> None:
    model = tiny_model("llama")
    model.config.num_kv_shared_layers = 1
    with (
        pytest.raises(ModelError, match="1 layers of LlamaForCausalLM use the keys and values of other layers"),
        compress(model, "snapkv", budget=8),
    ):
        pass


def test_a_mask_that_is_not_plainly_causal_is_refused() -> None:
    config = tiny_config("llama")
    config.is_causal = False
    model = type(tiny_model("llama"))._from_config(config).eval()
    with (
        compress(model, "full") as session,
        pytest.raises(ModelError, match="LlamaForCausalLM works with attention masks that are not plainly causal"),
    ):
        model(IDS, **with_cache(model, session.new_cache()))
