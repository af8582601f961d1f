"""The scoring procedure as the published code goes about it, written plainly, to measure ours against.

Prefill each prompt on its own, then decode one token at a time with `output_attentions=True`, and walk over layers,
heads and top positions in Python.
"""

from __future__ import annotations

from typing import Any

import torch

from headprobe.models.releases import cache_of, with_cache
from headprobe.probes.prompt import Prompt


def published_trial(model: Any, prompt: Prompt, eos_token_ids: set[int]) -> tuple[list[int], list[list[float]]]:
    """Produced tokens and the top-N attention mass on the answer, `[L][H]`; `model` must use eager attention."""
    span, size = prompt.answer_span, len(prompt.answer_span)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    scores = [[0.0] * heads for _ in range(layers)]
    with torch.inference_mode():
        ids = torch.tensor([prompt.input_ids], device=model.device)
        past = cache_of(model(ids[:, :-1], use_cache=True, logits_to_keep=1))
        token, produced = ids[:, -1:], []
        for _ in range(len(prompt.answer_ids)):
            out = model(token, **with_cache(model, past), use_cache=True, output_attentions=True)
            for layer in range(layers):
                for head in range(heads):
                    values, positions = torch.topk(out.attentions[layer][0, head, -1], k=size)
                    for value, position in zip(values, positions, strict=True):
                        if span.start <= position.item() < span.end:
                            scores[layer][head] += value.item() / size
            token = out.logits[:, -1:].argmax(-1)
            produced.append(token.item())
            if token.item() in eos_token_ids:
                break
    return produced, scores
