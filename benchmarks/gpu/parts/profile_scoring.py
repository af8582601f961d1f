"""Where the time of scoring goes: its kernels beside those of a plain prefill, and attention behind a prefix.

Ten trials of 32k. Scoring lets 16k queries attend to the 32k before and among them by torch's kernel for causal masks
that are aligned to the end. Timed beside it: what stands before the queries and the queries among themselves, each
without a mask by cuDNN's attention, joined by their log-sum-exps; and a square causal call with as many products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts.profile import by_kernel
from benchmarks.gpu.parts.scoring import plain, prompt, score
from headprobe.attention.dense import fused_attention, joined, repeated


def run(bench: Bench, note: Any) -> None:
    depths = bench.shape.score_depths
    note("behind_a_prefix", behind_a_prefix(bench, bench.shape.short))
    prompts = [prompt(bench, bench.shape.short, i / (depths - 1)) for i in range(depths)]
    note("plain_prefill", by_kernel(bench, partial(plain, bench, prompts[0]), 1))
    note("a_trial", by_kernel(bench, partial(score, bench, prompts), depths))
    note("a_trial_s", bench.seconds(partial(score, bench, prompts)) / depths)


def behind_a_prefix(bench: Bench, tokens: int) -> dict[str, Any]:
    """Seconds of each way, one layer, and how far the joined output lies from the present one."""
    shape, scaling = bench.shape, bench.shape.head_dim**-0.5
    sizes = (shape.heads, tokens // 2), (shape.kv_heads, tokens), (shape.kv_heads, tokens)
    q, k, v = (torch.randn(1, *size, shape.head_dim, dtype=bench.dtype, device=bench.device) for size in sizes)
    square = round(tokens * 0.75**0.5)  # as many products below its diagonal as the queries have: 3/8 of tokens squared
    wide, values = (repeated(t, shape.heads)[:, :, :square] for t in (k, v))
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "aligned_to_the_end": lambda: fused_attention(q, k, v, None, scaling),
        "square": lambda: scaled_dot_product_attention(wide, wide, values, is_causal=True, scale=scaling),
    }
    if bench.on_gpu:
        ways["cudnn_joined"] = lambda: joined(q, k, v, partial(cudnn, scaling))
    found: dict[str, Any] = {}
    for name, way in ways.items():
        try:
            way()
            found[name] = bench.seconds(way, repeats=5)
        except Exception as error:  # one way's fault must not cost the others
            found[name] = {"error": bench.fault(error)}
    if isinstance(found.get("cudnn_joined"), float):
        own = ways["aligned_to_the_end"]().float()
        found["difference"] = float((ways["cudnn_joined"]().float() - own).norm() / own.norm())
    return found


def cudnn(
    scaling: float, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """cuDNN's attention, which torch takes for square causal masks, with its log-sum-exps."""
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = attend(query, key, value, None, True, 0.0, is_causal, False, scale=scaling)
    return out, lse
