from __future__ import annotations

import pytest
import torch

from headprobe.errors import ModelError, OptionError
from headprobe.evaluation.knockout.switched_off import hidden_span
from headprobe.models.releases import cache_of, with_cache
from headprobe.spans import Span
from tests.tiny_models import TINY_MODELS, tiny_model

IDS = torch.arange(3, 33)[None]
SPAN = Span(12, 18)


def attention_of(model, ids):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return model(ids, output_attentions=True)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_hiding_from_no_head_changes_nothing(family: str) -> None:
    model = tiny_model(family, attn_implementation="eager")
    with torch.no_grad():
        plain = model(IDS).logits
        with hidden_span(model, [], SPAN):
            hidden = model(IDS).logits
    torch.testing.assert_close(hidden, plain, atol=1e-5, rtol=1e-5)


def test_only_the_named_heads_lose_the_span_and_only_from_behind_it() -> None:
    model = tiny_model("llama", attn_implementation="eager")
    plain = attention_of(model, IDS).attentions
    with hidden_span(model, [(0, 1)], SPAN):
        hidden = attention_of(model, IDS).attentions
    assert (hidden[0][0, 1, SPAN.end :, SPAN.start : SPAN.end] == 0).all()
    torch.testing.assert_close(hidden[0][0, 1, : SPAN.end], plain[0][0, 1, : SPAN.end])
    torch.testing.assert_close(hidden[0][0, [0, 2, 3]], plain[0][0, [0, 2, 3]])
    torch.testing.assert_close(hidden[0][0, 1].sum(-1), torch.ones(IDS.shape[1]))


@pytest.mark.parametrize("family", TINY_MODELS)
def test_decoding_with_a_cache_hides_the_span_as_a_whole_pass_does(family: str) -> None:
    model = tiny_model(family, seed=1)
    with torch.no_grad(), hidden_span(model, [(0, 0), (1, 2)], SPAN):
        whole = model(IDS).logits[:, -1]
        past = cache_of(model(IDS[:, :-3], use_cache=True))
        for t in (-3, -2, -1):
            step = model(IDS[:, [t]], **with_cache(model, past)).logits[:, -1]
    torch.testing.assert_close(step, whole, atol=1e-5, rtol=1e-5)


def test_the_models_own_attention_comes_back_after_an_error() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), hidden_span(model, [(0, 0)], SPAN):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_a_head_of_a_layer_that_never_attends_is_refused() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with (
        pytest.raises(ModelError, match="layer 2 of LlamaForCausalLM never attended"),
        torch.no_grad(),
        hidden_span(model, [(0, 0), (2, 1)], SPAN),
    ):
        model(IDS, use_cache=False)


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0)])
def test_a_head_outside_the_model_is_refused(head: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="outside the model's 2 x 4"), hidden_span(tiny_model("llama"), [head], SPAN):
        pass
