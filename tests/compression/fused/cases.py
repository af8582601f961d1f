"""The fused step against plain torch: `python -m tests.compression.fused.cases` prints what was found, in JSON.

Run by the tests beside it in Triton's interpreter, and on a GPU by themselves. Inputs are new at each run.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import linear, silu
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.fused import layers
from headprobe.compression.fused.launches import Blocking, project
from headprobe.compression.generation import join
from headprobe.compression.session import compress

# Error of a projection in float64, as a part of the output's norm. The interpreter cuts bfloat16 off, a GPU rounds it.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
EPSILON = 1e-5


@dataclass(frozen=True)
class Projection:
    """`sizes`: outputs of the layers, for `rows` inputs of this `width`."""

    sizes: tuple[int, ...]
    rows: int = 1
    width: int = 64
    biased: bool = False
    normed: bool = False
    gated: bool = False
    summed: bool = False
    dtype: torch.dtype = torch.float32
    by_dot: bool = False


def projections() -> dict[str, Projection]:
    """Three layers behind a norm, a gated pair, a sum; one row by both ways of multiplying; sizes that fit no block."""
    kinds: dict[str, dict[str, Any]] = {
        "three layers": {"sizes": (48, 16, 16), "normed": True},
        "three with biases, odd sizes": {"sizes": (40, 24, 7), "normed": True, "biased": True},
        "gated": {"sizes": (70, 70), "normed": True, "gated": True},
        "added": {"sizes": (50,), "summed": True},
        "one alone": {"sizes": (33,)},
    }
    found = {}
    for (name, kind), rows, width, dtype in product(kinds.items(), (1, 3, 16), (64, 200), BOUNDS):
        for by_dot in (False, True) if rows == 1 else (True,):
            words = f"{name}, {rows} x {width}, {str(dtype)[6:]}, {'dot' if by_dot else 'sum'}"
            found[words] = Projection(rows=rows, width=width, dtype=dtype, by_dot=by_dot, **kind)
    return found


def projection_error(case: Projection, device: str, blocking: Blocking | None = None) -> float:
    """The error of a projection, as a part of what is allowed."""
    x = torch.randn(case.rows, case.width).to(case.dtype) * 2
    weights = [torch.randn(size, case.width).to(case.dtype) / 8 for size in case.sizes]
    biases = [torch.randn(size).to(case.dtype) if case.biased else None for size in case.sizes]
    gain = (torch.rand(case.width) + 0.5).to(case.dtype)
    added = torch.randn(case.rows, case.sizes[0]).to(case.dtype) if case.summed else None

    def there(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else tensor.to(device)

    given = project(
        there(x), [(there(w), there(b)) for w, b in zip(weights, biases, strict=True)],
        norm=(there(gain), EPSILON) if case.normed else None, gated=case.gated, added=there(added),
        blocking=blocking or Blocking(16, 64, 4, 2, by_dot=case.by_dot),
    )  # fmt: skip
    wide = x.double()
    if case.normed:
        wide = gain.double() * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON))
    outs = [linear(wide, w.double(), None if b is None else b.double()) for w, b in zip(weights, biases, strict=True)]
    wanted = silu(outs[0]) * outs[1] if case.gated else torch.cat(outs, -1)
    if added is not None:
        wanted = wanted + added.double()
    assert given.shape == wanted.shape
    return float((given.cpu().double() - wanted).norm() / wanted.norm()) / BOUNDS[case.dtype]


MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
POLICIES = ("full", "snapkv", "h2o")
CASES = [*product(["llama"], POLICIES, (1, 3)), *product(["mistral", "qwen2", "qwen3"], ["snapkv", "h2o"], [3])]
VOCABULARY, STEPS = 97, 4


def small_model(kind: str, head_dim: int = 16) -> Any:
    """Two random layers, their norms' gains spread."""
    config_class, model_class = MODELS[kind]
    config: Any = config_class(
        vocab_size=VOCABULARY, hidden_size=3 * head_dim, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim, max_position_embeddings=512, eos_token_id=None,
    )  # fmt: skip
    if kind == "mistral":
        config.sliding_window = None
    model: Any = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model


def logits_of(
    model: Any, policy: str, batch: int, *, fused: bool, graphs: bool = False, **serving: Any
) -> tuple[torch.Tensor, Decoder]:
    """Logits `[STEPS, B, vocabulary]` behind prompts of different lengths, joined; and what decoded them."""
    budget = None if policy == "full" else 24
    with compress(model, policy, budget=budget, **serving) as session, torch.inference_mode():
        caches = []
        for row in range(batch):
            caches.append(session.new_cache())
            ids = torch.randint(VOCABULARY, (1, 60 + 7 * row), generator=torch.Generator().manual_seed(row))
            run_step(model, caches[-1], ids.to(model.device))
            session.reset()
        decoder = Decoder(model, caches[0] if batch == 1 else join(caches), fused=fused, graphs=graphs)
        tokens = [torch.arange(batch, device=model.device) + step for step in range(STEPS)]
        return torch.stack([decoder.step(row).clone() for row in tokens]), decoder


def layers_error(kind: str, policy: str, batch: int, **serving: Any) -> float | str:
    """How far fused logits in float32 lie from those of the layers themselves; or what is wrong with them."""
    model, steps, own = small_model(kind), [], layers.FusedLayer.__call__
    wanted, _ = logits_of(model, policy, batch, fused=False, **serving)

    def counted(layer: layers.FusedLayer, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        steps.append(layer)
        return own(layer, x, rotary)

    with (
        patch.object(layers, "_refusal", layers.unfit),  # otherwise on CUDA devices in bfloat16 alone
        patch.object(layers.FusedLayer, "__call__", counted),
    ):
        given, decoder = logits_of(model, policy, batch, fused=True, **serving)
    if decoder.fused_refusal is not None or len(steps) != STEPS * len(model.model.layers):
        return f"{len(steps)} steps of layers were fused: {decoder.fused_refusal}"
    if any("forward" in vars(layer) for layer in model.model.layers):
        return "a layer was left changed"
    return float((given - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    from tests.compression.kernels.interpreter import mend_interpreter

    mend_interpreter()
    found = {"projections": {name: projection_error(case, "cpu") for name, case in projections().items()}}
    models = {" ".join(map(str, case)): layers_error(*case) for case in CASES}
    models["chunks"] = layers_error("llama", "snapkv", 3, prefill_chunk=16)
    json.dump(found | {"layers": models}, sys.stdout)
