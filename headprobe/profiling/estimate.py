"""What a run will cost, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headprobe.models.loading import LoadedModel
from headprobe.probes.prompt import Prompt
from headprobe.profiling.profiler import prefix_order

TRIAL_TOKENS = 512


@dataclass(frozen=True)
class Estimate:
    """`tokens` of all prompts and answers; `tokens_to_compute` once prefixes are shared; `kv_bytes` of the longest
    prompt's cache; `seconds`, rough: it grows a short prompt's time linearly and leaves out the quadratic part."""

    tokens: int
    tokens_to_compute: int
    kv_bytes: int
    seconds: float


def estimate(loaded: LoadedModel, prompts: Sequence[Prompt]) -> Estimate:
    """The cost of measuring `prompts`, from one timed pass over the start of the longest."""
    lengths = [len(p.input_ids) + len(p.answer_ids) for p in prompts]
    _, shared = prefix_order(prompts)
    to_compute = sum(lengths) - sum(shared) + shared[0]
    longest = max(prompts, key=lambda p: len(p.input_ids))
    per_element = torch.finfo(loaded.model.dtype).bits // 8
    return Estimate(
        tokens=sum(lengths),
        tokens_to_compute=to_compute,
        kv_bytes=max(lengths) * loaded.geometry.kv_bytes_per_token(per_element),
        seconds=to_compute * _seconds_per_token(loaded, longest.input_ids[:TRIAL_TOKENS]),
    )


def _seconds_per_token(loaded: LoadedModel, tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([tokens], device=loaded.device)
    with torch.inference_mode():
        for _ in range(2):
            begin = time.perf_counter()
            logits = loaded.model(input_ids=ids, logits_to_keep=1).logits
            logits.sum().item()
    return (time.perf_counter() - begin) / len(tokens)
