"""Which logits a token can be chosen from, and what is advised where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from headprobe.errors import NonFiniteError
from headprobe.models.finite import advice, non_finite, usable, watched_generate
from tests.tiny_models import tiny_model

INF, NAN = torch.inf, torch.nan
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("row", "is_usable"),
    [
        ([0.0, 1.0, 2.0], True),
        ([0.0, -INF, -INF], True),
        ([-INF, -INF, -INF], False),
        ([0.0, INF, 1.0], False),
        ([0.0, NAN, 1.0], False),
        ([NAN, NAN, NAN], False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_is_usable_where_its_largest_logit_is_finite(
    row: list[float], is_usable: bool, dtype: torch.dtype
) -> None:
    assert usable(torch.tensor([row, [0.0, 0.0, 0.0]], dtype=dtype)).tolist() == [is_usable, True]


def with_weight(value: float, dtype: torch.dtype = torch.float32, names: tuple[str, ...] = (DOWN,)) -> Any:
    model = tiny_model("llama").to(dtype)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name)[0, 0] = value
    return model


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (NAN, torch.float32, f"the weights themselves hold NaN ({DOWN}), the model's files are broken"),
        (NAN, torch.float16, f"the weights themselves hold NaN ({DOWN}), the model's files are broken"),
        (INF, torch.float16, f"weights overflow in float16 ({DOWN}), try --dtype bfloat16 or float32"),
        (-INF, torch.bfloat16, f"the weights themselves hold infinity ({DOWN})"),
        (1.0, torch.float16, "float16 overflows in many models, try --dtype bfloat16 or float32"),
        (1.0, torch.bfloat16, "try --dtype float32"),
        (1.0, torch.float32, "it is computed in float32 already, so weights and config do not fit"),
    ],
)
def test_advice_fits_weights_and_dtype(value: float, dtype: torch.dtype, words: str) -> None:
    assert advice(with_weight(value, dtype)) == words


def test_many_broken_weights_are_counted() -> None:
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = tuple(f"model.layers.{i}.self_attn.{part}.weight" for i in range(2) for part in parts)
    listed = "model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.k_proj.weight, "
    listed += "model.layers.0.self_attn.v_proj.weight and 5 more"
    error = non_finite(with_weight(NAN, names=names), "NaN in it")
    assert str(error) == f"NaN in it: the weights themselves hold NaN ({listed}), the model's files are broken"


@pytest.mark.parametrize("sampling", [False, True])
def test_generate_is_watched(sampling: bool) -> None:
    ids = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": sampling, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in the logits: the weights themselves hold NaN"):
        watched_generate(with_weight(NAN), ids, **options)


def test_watching_changes_nothing_and_masked_entries_are_fine() -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(watched_generate(model, ids, **options), model.generate(ids, **options))
    mask = LogitsProcessorList([SuppressTokensLogitsProcessor(list(range(10, 300)))])
    wanted = model.generate(ids, logits_processor=mask, **options)
    assert torch.equal(watched_generate(model, ids, logits_processor=mask, **options), wanted)


def test_other_runtime_errors_pass() -> None:
    model = tiny_model("llama")
    with pytest.raises(IndexError):
        watched_generate(model, torch.tensor([[5, 100_000]]), max_new_tokens=2)
