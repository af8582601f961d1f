"""A plain oracle: transformers, no cache, and a mask for each head. Every token is computed anew from all before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headprobe_vllm.plan import ServePlan

NAME = "headprobe_serving_oracle"


def masked_answers(
    folder: str | Path, prompts: Sequence[Sequence[int]], plan: ServePlan, new_tokens: int
) -> list[list[int]]:
    """The likeliest `new_tokens` tokens behind each prompt.

    Full heads see all before them; the others the first `sinks` and the last `window` tokens and themselves, and, with
    `prefill="dense"`, everything while the query lies in the prompt.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    reading = {"prompt": 0}

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        seen = _mask(plan, module.layer_idx, query.shape[2], reading["prompt"])
        group = query.shape[1] // key.shape[1]
        key, value, seen = (states.repeat_interleave(group, -3) for states in (key, value, seen))
        weights = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=NAME).eval()
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            reading["prompt"] = len(prompt) if plan.prefill == "dense" else 0
            tokens = list(prompt)
            for _ in range(new_tokens):
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            answers.append(tokens[len(prompt) :])
    return answers


def _mask(plan: ServePlan, layer: int, tokens: int, prompt: int) -> torch.Tensor:
    """What each KV head's queries see: bool `[G, n, n]`."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    causal = key <= query
    near = causal & ((key < plan.sinks) | (key >= query - plan.window) | (query < prompt))
    return torch.stack([causal if head in plan.full_heads[layer] else near for head in range(plan.num_kv_heads)])
