from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, OlmoeConfig, OlmoeForCausalLM

from benchmarks.survey_models import families, tiny_configs
from benchmarks.survey_models import tiny_model as survey_model
from headprobe.attention.dense import dense_attention
from headprobe.attention.masks import Masks
from headprobe.attention.tap import LayerCall, tapped
from headprobe.errors import ModelError
from tests.tiny_models import SLIDING_WINDOW, TINY_MODELS, tiny_model

IDS = torch.arange(3, 33)[None]


def attend(call: LayerCall) -> torch.Tensor:
    """What any model computes itself."""
    options = {"scaling": call.scaling, "softcap": call.softcap, "sinks": call.sinks, "window": call.window}
    return dense_attention(call.query, call.key, call.value, call.mask, **options)  # type: ignore[arg-type]


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **options).logits


def calls_of(model: Any, **options: Any) -> list[LayerCall]:
    found: list[LayerCall] = []
    with tapped(model, lambda call: (found.append(call), attend(call))[1], **options):
        logits(model)
    return found


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_tap_that_attends_changes_nothing(family: str) -> None:
    model = tiny_model(family, attn_implementation="eager")
    own = logits(model)
    with tapped(model, attend):
        torch.testing.assert_close(logits(model), own, atol=1e-5, rtol=1e-5)


def test_a_call_holds_what_its_layer_attends_with() -> None:
    first, second = calls_of(tiny_model("gpt-oss"))
    assert (first.layer, second.layer) == (0, 1)
    assert (first.query.shape, first.key.shape, first.value.shape) == ((1, 4, 30, 8), (1, 2, 30, 8), (1, 2, 30, 8))
    assert (first.window, second.window) == (SLIDING_WINDOW, None)
    assert first.scaling == pytest.approx(8**-0.5)
    assert first.sinks is not None
    assert first.sinks.shape == (4,)
    assert (first.mask, first.padding, first.softcap) == (None, None, None)
    assert type(first.module).__name__ == "GptOssAttention"
    assert first.model_name == "GptOssForCausalLM"


def test_gemmas_softcap_arrives() -> None:
    assert [call.softcap for call in calls_of(tiny_model("gemma2"))] == [2.0, 2.0]


def test_weights_that_the_function_gives_are_handed_out() -> None:
    weights = torch.ones(1, 4, 30, 30)
    model = tiny_model("llama", attn_implementation="eager")
    with tapped(model, lambda call: (attend(call), weights)), torch.no_grad():
        out = model(IDS, output_attentions=True)
    assert [layer is weights for layer in out.attentions] == [True, True]


# -- windows and masks ------------------------------------------------------------------------------------------------


def test_a_window_that_the_layers_do_not_pass_on_is_known() -> None:
    kind, config_class, model_class = next(families(["qwen2_moe"]))
    ((_, config),) = tiny_configs(kind, config_class)
    assert [call.window for call in calls_of(survey_model(config, model_class))] == [16, None]


def test_a_window_that_no_mask_has_is_none() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = OlmoeConfig(vocab_size=64, num_experts=2, num_experts_per_tok=1, pad_token_id=0, **sizes)
    config.sliding_window = 8  # which it passes on, though all of its masks are causal alone
    torch.manual_seed(0)
    model = OlmoeForCausalLM._from_config(config, attn_implementation="eager").eval()
    own = logits(model)
    assert [call.window for call in calls_of(model)] == [None]
    with tapped(model, attend):
        torch.testing.assert_close(logits(model), own, atol=1e-5, rtol=1e-5)


def test_pads_make_a_whole_mask_or_come_along() -> None:
    model = tiny_model("llama")
    padded = torch.ones_like(IDS)
    padded[0, :3] = 0
    found: list[LayerCall] = []

    def taken(call: LayerCall) -> torch.Tensor:
        found.append(call)
        return attend(call)

    with tapped(model, taken):
        logits(model, attention_mask=padded)
    with tapped(model, taken, masks=Masks.PADDING):
        logits(model, attention_mask=padded)
    whole, apart = found[0], found[-1]
    assert whole.mask is not None
    assert whole.mask.shape == (1, 1, 30, 30)
    assert whole.mask[0, 0, 29].tolist() == [False] * 3 + [True] * 27
    assert apart.mask is None
    assert apart.padding is not None
    assert apart.padding.tolist() == [[False] * 3 + [True] * 27]


def test_a_mask_that_is_given_from_outside_is_used_or_refused() -> None:
    model = tiny_model("llama", attn_implementation="eager")
    mask = torch.zeros(1, 1, 30, 30).masked_fill(~torch.ones(30, 30, dtype=torch.bool).tril(), -1e9)
    mask[..., 5, 2] = -1e9
    own = logits(model, attention_mask=mask)
    with tapped(model, attend):
        torch.testing.assert_close(logits(model, attention_mask=mask), own, atol=1e-5, rtol=1e-5)
    with (
        tapped(model, attend, masks=Masks.PADDING),
        pytest.raises(ModelError, match="LlamaForCausalLM gives its layers masks of its own"),
    ):
        logits(model, attention_mask=mask)


# -- what is not understood -------------------------------------------------------------------------------------------


@contextmanager
def attention_of(model: Any, **options: Any) -> Iterator[Any]:
    """The attention function that transformers knows while `model` is tapped, and a call's first arguments."""
    with tapped(model, attend, **options):
        function = AttentionInterface()[model.config._attn_implementation]
        states = torch.ones(1, 4, 3, 8)
        yield lambda **more: function(model.model.layers[0].self_attn, states, states, states, None, **more)


@pytest.mark.parametrize(
    "said", [{"indices": torch.zeros(1)}, {"position_bias": torch.zeros(1)}, {"logit_cap": 3.0}, {"left_window": 5}]
)
def test_what_a_layer_says_and_nobody_knows_is_refused(said: dict[str, Any]) -> None:
    (name,) = said
    message = f"layer 0 of LlamaForCausalLM attends by '{name}', which headprobe does not know"
    with attention_of(tiny_model("llama")) as attention, pytest.raises(ModelError, match=message):
        attention(**said)


def test_attention_that_is_not_causal_is_refused() -> None:
    with attention_of(tiny_model("llama")) as attention, pytest.raises(ModelError, match="layer 0 .* is not causal"):
        attention(is_causal=False)


def test_what_came_with_the_pass_is_no_matter() -> None:
    model = tiny_model("llama")
    own = logits(model)
    with tapped(model, attend):
        given = logits(model, tokenizer=object(), num_items_in_batch=3)
    torch.testing.assert_close(given, own, atol=1e-5, rtol=1e-5)


def test_a_second_call_in_a_layer_is_refused_unless_allowed() -> None:
    message = "LlamaForCausalLM calls attention more than once in layer 0"
    with attention_of(tiny_model("llama")) as attention:
        attention()
        with pytest.raises(ModelError, match=message):
            attention()
    with attention_of(tiny_model("llama"), once=False) as attention:
        attention()
        attention()


@pytest.mark.parametrize("part", ["the model", "its decoder"])
def test_every_pass_may_call_each_layer(part: str) -> None:
    model, called = tiny_model("llama"), []
    with tapped(model, lambda call: (called.append(call.layer), attend(call))[1]), torch.no_grad():
        for _ in range(2):
            model(IDS) if part == "the model" else model.model(IDS)
    assert called == [0, 1, 0, 1]


# -- the model's own attention comes back -----------------------------------------------------------------------------


def test_taps_can_be_nested_and_the_inner_one_has_the_model() -> None:
    model, seen = tiny_model("llama"), []
    own = model.config._attn_implementation

    def by(name: str) -> Any:
        return lambda call: (seen.append((name, call.layer)), attend(call))[1]

    with tapped(model, by("outer")):
        with tapped(model, by("inner")):
            logits(model)
        logits(model)
    assert seen == [("inner", 0), ("inner", 1), ("outer", 0), ("outer", 1)]
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_taps_may_end_in_any_order(order: tuple[int, ...]) -> None:
    model = tiny_model("llama")
    own, wanted, seen = model.config._attn_implementation, logits(model), []

    def by(number: int) -> Any:
        return lambda call: (seen.append((number, call.layer)), attend(call))[1]

    taps = [tapped(model, by(number)) for number in range(3)]
    for tap in taps:
        tap.__enter__()
    left = [0, 1, 2]
    for number in order:
        taps[number].__exit__(None, None, None)
        left.remove(number)
        seen.clear()
        found = logits(model)
        assert seen == [(each, layer) for each in left[-1:] for layer in (0, 1)]
    assert model.config._attn_implementation == own
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_two_models_are_tapped_apart() -> None:
    one, other, seen = tiny_model("llama"), tiny_model("qwen3"), []
    with (
        tapped(one, lambda call: (seen.append("one"), attend(call))[1]),
        tapped(other, lambda call: (seen.append("other"), attend(call))[1]),
    ):
        logits(one)
        logits(other)
    assert seen == ["one"] * 2 + ["other"] * 2


def test_the_models_own_attention_comes_back_after_an_error() -> None:
    model = tiny_model("llama", attn_implementation="eager")

    def fail(call: LayerCall) -> torch.Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), tapped(model, fail):
        logits(model)
    assert model.config._attn_implementation == "eager"
    assert len(model._forward_pre_hooks) == len(model.model._forward_pre_hooks) == 0


def test_every_part_of_a_model_gets_its_own_attention_back() -> None:
    kind, config_class, model_class = next(families(["gemma3"]))
    ((_, config),) = tiny_configs(kind, config_class)
    model = survey_model(config, model_class)
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    before = config._attn_implementation
    with tapped(model, attend):
        assert config.text_config._attn_implementation == config._attn_implementation != before
    assert config._attn_implementation == before
    assert config.text_config._attn_implementation == "eager"
    assert config.vision_config._attn_implementation == "sdpa"
