"""Heads that are off in a batch, against hooks on the input of the output projection, and one span at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from headprobe.errors import ModelError, OptionError
from headprobe.evaluation.knockout.switched_off import hidden_span, mean_outputs, switched_off
from headprobe.models.releases import with_cache
from headprobe.profiling.prefix import PrefixCache
from headprobe.spans import Span
from tests.tiny_models import TINY_MODELS, tiny_model

IDS = torch.arange(3, 43)[None]
SPAN = Span(12, 18)
ROWS = ((), ((0, 1), (1, 2)), ((1, 0),), ((0, 0), (0, 1), (0, 2), (0, 3)))


@contextmanager
def projected(model: Any, heads: Any, filled: Any = None) -> Iterator[None]:
    """The plain way: what heads put out stands side by side in the input of `o_proj`, and is written over there."""
    hooks = []
    for layer, block in enumerate(model.get_decoder().layers):

        def change(module: Any, given: Any, layer: int = layer) -> Any:
            width = given[0].shape[-1] // 4
            out = given[0].clone()
            for at, head in heads:
                if at == layer:
                    part = 0.0 if filled is None else torch.tensor(filled[layer, head], dtype=out.dtype)
                    out[..., head * width : (head + 1) * width] = part
            return (out, *given[1:])

        hooks.append(block.self_attn.o_proj.register_forward_pre_hook(change))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def exact_model(family: str, seed: int) -> Any:
    """Gemma 2 with the attention that caps its scores: older releases of transformers leave that out by default."""
    return tiny_model(family, seed, attn_implementation="eager" if family == "gemma2" else None)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_zeroed_heads_give_what_a_zeroed_slice_of_the_projection_gives(family: str) -> None:
    model = exact_model(family, seed=2)
    with switched_off(model, ROWS, "zero"):
        found = logits(model, IDS.expand(len(ROWS), -1))
    for row, heads in enumerate(ROWS):
        with projected(model, heads):
            torch.testing.assert_close(found[row], logits(model, IDS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "qwen3"])
def test_mean_outputs_and_heads_that_give_them_equal_plain_hooks(family: str) -> None:
    model = exact_model(family, seed=3)
    texts = [tuple(range(5, 30)), tuple(range(40, 60))]
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    hooks = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, given, at=at: seen[at].append(given[0][0]))
        for at, block in enumerate(model.get_decoder().layers)
    ]
    for text in texts:
        logits(model, torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    plain = np.stack([torch.cat(seen[at]).view(45, 4, -1).double().mean(0).numpy() for at in (0, 1)])
    means = mean_outputs(model, texts)
    np.testing.assert_allclose(means, plain, atol=1e-6)
    with switched_off(model, ROWS, "mean", means=means):
        found = logits(model, IDS.expand(len(ROWS), -1))
    for row, heads in enumerate(ROWS):
        with projected(model, heads, plain):
            torch.testing.assert_close(found[row], logits(model, IDS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("span", [SPAN, Span(0, 5), Span(33, 39), Span(7, 7)])
def test_a_span_hidden_in_a_batch_is_hidden_as_from_each_row_alone(family: str, span: Span) -> None:
    model = tiny_model(family, seed=1)
    with switched_off(model, ROWS, "mask", span=span):
        found = logits(model, IDS.expand(len(ROWS), -1))
    for row, heads in enumerate(ROWS):
        with hidden_span(model, heads, span):
            torch.testing.assert_close(found[row], logits(model, IDS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt-oss"])
@pytest.mark.parametrize("mode", ["mask", "zero"])
def test_in_pieces_on_a_cache_it_is_as_in_one_pass(family: str, mode: str) -> None:
    model, ids = tiny_model(family, seed=4), IDS.expand(len(ROWS), -1)
    span = SPAN if mode == "mask" else None
    with switched_off(model, ROWS, mode, span=span), torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts = PrefixCache(2, IDS.shape[1]), []
        for start, end in ((0, 15), (15, 16), (16, 37), (37, 40)):
            parts.append(model(ids[:, start:end], **with_cache(model, cache), use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


def test_many_heads_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from headprobe.evaluation.knockout import switched_off as module

    model = tiny_model("llama", seed=1)
    every = tuple((layer, head) for layer in (0, 1) for head in range(4))
    found = []
    for limit in (1 << 26, 1):
        monkeypatch.setattr(module, "COPIED_ELEMENTS", limit)
        with switched_off(model, (every, ROWS[1]), "mask", span=SPAN):
            found.append(logits(model, IDS.expand(2, -1)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0)])
def test_a_head_outside_the_model_is_refused(head: tuple[int, int]) -> None:
    with (
        pytest.raises(OptionError, match="outside the model's 2 x 4"),
        switched_off(tiny_model("llama"), [(head,)], "zero"),
    ):
        pass


def test_an_unknown_mode_is_refused_and_one_without_its_means_too() -> None:
    model = tiny_model("llama")
    with (
        pytest.raises(OptionError, match="switched off by mask, zero, mean, not 'none'"),
        switched_off(model, [()], "none"),
    ):
        pass
    for mode, span in (("mask", None), ("zero", SPAN), ("mean", None)):
        with pytest.raises(ValueError, match="with span"), switched_off(model, [()], mode, span=span):
            pass


def test_a_layer_that_never_attends_is_refused_and_the_models_own_attention_comes_back() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    model.config.num_hidden_layers = 3
    with (
        pytest.raises(ModelError, match="layer 2 of LlamaForCausalLM never attended"),
        switched_off(model, [((2, 1),)], "zero"),
    ):
        logits(model, IDS)
    assert model.config._attn_implementation == before
