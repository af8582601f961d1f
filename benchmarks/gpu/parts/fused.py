"""Logits of fused decode steps against those of the model's own layers on the same cache, at batch 1 and 16.

Both round to bfloat16 at every layer, and not alike: `BOUND` is what that may cost over all layers. Tokens agree where
one is clearly the most likely, which it seldom is with random weights: how many do is reported.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_cache, planned, uneven_plan
from headprobe.compression.decoding import Decoder

STEPS = 4
BOUND = 0.05  # of the logits' norm


def run(bench: Bench, note: Any) -> None:
    plan = uneven_plan(bench.shape, bench.shape.budget)
    for batch in (1, bench.shape.batch):
        with planned(bench, plan) as session:
            cache = filled_cache(bench, plan, session.kernel, bench.shape.short, batch, STEPS + 1)
            decoders = [Decoder(bench.model, cache, graphs=False, fused=fused) for fused in (True, False)]
            errors, same = [], 0
            for step in range(STEPS):
                tokens = bench.tokens(batch, seed=step)[0]
                given = decoders[0].step(tokens).float()
                cache.take_back(1)
                wanted = decoders[1].step(tokens).float()
                errors.append(float((given - wanted).norm() / wanted.norm()))
                same += int((given.argmax(-1) == wanted.argmax(-1)).sum())
        found = {"error": max(errors), "same_token": [same, STEPS * batch], "not_fused": decoders[0].fused_refusal}
        note(f"batch_{batch}", found)
        bench.free()
        if not max(errors) < BOUND:
            raise RuntimeError(f"logits of fused layers are off by {max(errors):.3f} of their norm, at most {BOUND}")
