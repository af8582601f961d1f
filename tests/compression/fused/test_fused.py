"""Fused decode steps: projections and whole layers against plain torch, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.fused.launches import Blocking
from headprobe.compression.fused.layers import unfit
from headprobe.compression.session import compress
from tests.compression.fused.cases import (
    CASES,
    MODELS,
    POLICIES,
    Projection,
    logits_of,
    projection_error,
    projections,
    small_model,
)

ROOT = Path(__file__).parents[3]
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted() -> Any:
    command = [sys.executable, "-W", "error", "-m", "tests.compression.fused.cases"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", list(projections()))
def test_a_projection_equals_plain_torch_within_the_bound_of_its_type(interpreted: Any, case: str) -> None:
    assert interpreted["projections"][case] <= 1


@pytest.mark.parametrize("case", [" ".join(map(str, case)) for case in CASES])
def test_a_fused_layer_gives_the_logits_of_the_layer_itself(interpreted: Any, case: str) -> None:
    error = interpreted["layers"][case]
    assert isinstance(error, float), error
    assert error < 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_on_a_gpu_a_projection_equals_plain_torch(rows: int, gated: bool) -> None:
    sizes = (512, 512) if gated else (512, 128, 120)
    case = Projection(sizes, rows, 1024, normed=True, gated=gated, dtype=torch.bfloat16)
    assert projection_error(case, "cuda", Blocking.of(rows, normed=True, gated=gated)) < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("policy", POLICIES)
def test_on_a_gpu_fused_and_captured_steps_give_the_logits_of_the_layers_themselves(kind: str, policy: str) -> None:
    model = small_model(kind, head_dim=64).to("cuda", torch.bfloat16)
    exact, _ = logits_of(model.float(), policy, 3, fused=False)
    model.to(torch.bfloat16)
    own, given = (logits_of(model, policy, 3, fused=fused, graphs=True) for fused in (False, True))
    assert given[1] is None
    errors = [float((found - exact).norm() / exact.norm()) for found in (own[0], given[0])]
    assert errors[1] <= (0.5 if policy == "h2o" else 1.5 * errors[0] + 1e-3)  # it may evict others after rounding


def refusal(model: Any, batch: int = 1) -> str | None:
    with compress(model, "full") as session, torch.inference_mode():
        cache = session.new_cache()
        run_step(model, cache, torch.arange(9)[None].repeat(batch, 1))
        return unfit(model, cache)


def test_what_is_not_of_the_known_form_is_left_as_it_is() -> None:
    model = small_model("llama")
    assert refusal(model) is None
    assert refusal(model, 17) == "a batch of 17 sequences, at most 16 are read once with the weights"
    hook = model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: None)
    assert refusal(model) == "mlp has hooks"
    hook.remove()
    model.model.layers[1].mlp.act_fn = nn.GELU().eval()
    assert refusal(model) == "the activation is GELU, not SiLU"


def test_another_linear_layer_than_torchs_own_is_left_as_it_is() -> None:
    class Adapted(nn.Linear):
        """As adapters do."""

    model = small_model("qwen2")
    own = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = Adapted(own.in_features, own.out_features)
    assert refusal(model.eval()) == "its linear layers are not torch's own"


def test_a_bias_where_none_is_expected_is_left_as_it_is() -> None:
    model = small_model("llama")
    own = model.model.layers[0].self_attn.o_proj
    model.model.layers[0].self_attn.o_proj = nn.Linear(own.in_features, own.out_features, bias=True)
    assert refusal(model.eval()) == "linear layers have biases where none are expected"


def test_a_model_of_another_kind_is_left_as_it_is() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    assert refusal(GPTNeoXForCausalLM(config).eval()) == "layers of GPTNeoXForCausalLM are not of a known form"


def test_on_a_cpu_nothing_is_fused_and_the_decoder_says_why() -> None:
    model = small_model("llama")
    with compress(model, "full") as session, torch.inference_mode():
        cache = session.new_cache()
        run_step(model, cache, torch.arange(9)[None])
        assert Decoder(model, cache).fused_refusal == (
            "a step is fused on CUDA devices in bfloat16, not on cpu in float32"
        )
        assert Decoder(model, cache, fused=False).fused_refusal == "fused layers are switched off"
