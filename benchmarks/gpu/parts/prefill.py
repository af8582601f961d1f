"""What compressing adds to a prefill of 32k: (with - without) / with, where without is transformers' own cache."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import full_plan, planned, uneven_plan
from headprobe.compression.policies import CompressionPlan, make_policy
from headprobe.models.releases import with_cache

POLICIES = {"snapkv": "snapkv_share", "headkv-r2": "headkv_share", "h2o": "accumulated_share"}
BESIDE = ("full", "ada-snapkv", "scissorhands")
ROUNDS = 2


def run(bench: Bench, note: Any) -> None:
    tokens = bench.shape.short
    ids = bench.tokens(tokens)
    warm = bench.tokens(min(tokens, 2048))
    for policy in (*POLICIES, *BESIDE):
        compressed(bench, policy, warm)
    plain(bench, ids)
    alone = [bench.seconds(lambda: plain(bench, ids)) for _ in range(ROUNDS)]
    note("stock", {"seconds": alone})
    for policy in (*POLICIES, *BESIDE):
        before = bench.seconds(lambda: plain(bench, ids))
        times = [bench.seconds(partial(compressed, bench, policy, ids)) for _ in range(ROUNDS)]
        without = statistics.median([*alone, before])
        share = 1.0 - without / statistics.median(times)
        note(policy, {"seconds": times, "share": share, "added_over_stock": statistics.median(times) / without - 1.0})
        if policy in POLICIES:
            bench.record.target(POLICIES[policy], share)


def plain(bench: Bench, ids: torch.Tensor) -> None:
    """The model as it is."""
    cache = DynamicCache(config=bench.model.config)
    bench.model(input_ids=ids, **with_cache(bench.model, cache), use_cache=True, logits_to_keep=1)


def compressed(bench: Bench, policy: str, ids: torch.Tensor) -> None:
    """The same on a compressed cache."""
    with planned(bench, plan_of(bench, policy)) as session:
        bench.model(input_ids=ids, **with_cache(bench.model, session.new_cache()), use_cache=True, logits_to_keep=1)


def plan_of(bench: Bench, policy: str) -> CompressionPlan:
    """The policy at the shape's budget."""
    if policy == "full":
        return full_plan(bench.shape)
    if policy == "headkv-r2":
        return uneven_plan(bench.shape, bench.shape.budget)
    return CompressionPlan(make_policy(policy), bench.shape.layers, bench.shape.kv_heads, budget=bench.shape.budget)
