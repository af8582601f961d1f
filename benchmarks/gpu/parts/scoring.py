"""Scoring 100 trials up to 32k, over plain prefill of the same prompts.

Prompts are random tokens laid out as needle prompts are: one haystack for all, cut off at each length, with a needle at
each depth. Every token counts as the end of an answer, so that no trial is decoded further: as with a model that gives
the gold answer, all its rows come from the one pass. Plain prefill is timed once for each length and
counted for all prompts of that length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.gpu.bench import Bench
from headprobe.models.releases import with_cache
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import estimators
from headprobe.profiling.prefix import prefix_order
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.spans import Span

NEEDLE, ANSWER, QUESTION, GOLD = 48, 12, 24, 20  # tokens


def run(bench: Bench, note: Any) -> None:
    shape = bench.shape
    lengths = [shape.short * (i + 1) // shape.score_lengths for i in range(shape.score_lengths)]
    depths = [i / (shape.score_depths - 1) for i in range(shape.score_depths)]
    prompts = [prompt(bench, length, depth) for length in lengths for depth in depths]
    _, shared = prefix_order(prompts)
    total = sum(len(p.input_ids) for p in prompts)
    note("trials", {"number": len(prompts), "longest": max(lengths), "tokens": total,
                    "share_of_tokens_computed": (total - sum(shared) + max(shared)) / total})  # fmt: skip
    plain(bench, prompts[0])
    prefill_s = sum(len(depths) * bench.seconds(partial(plain, bench, p)) for p in prompts[:: len(depths)])
    note("plain_prefill_s", prefill_s)
    score(bench, prompts[:1])
    score_s = bench.seconds(lambda: score(bench, prompts))
    note("score_s", score_s)
    bench.record.target("score_over_prefill", score_s / prefill_s)


def prompt(bench: Bench, length: int, depth: float) -> Prompt:
    """Random tokens as a needle prompt of `length` tokens with its gold answer."""
    haystack = bench.tokens(bench.shape.long, seed=1)[0].tolist()
    needle, question, gold = (tuple(bench.tokens(n, seed=n)[0].tolist()) for n in (NEEDLE, QUESTION, GOLD))
    room = length - NEEDLE - QUESTION - GOLD - 1
    at = round(depth * room)
    span = Span(at, at + NEEDLE)
    ids = (*haystack[:at], *needle, *haystack[at:room], *question)
    return Prompt(
        trial_id=f"random@{length}@{depth:g}", text="", input_ids=ids, answer_span=Span(at, at + ANSWER),
        distractor_span=None, question_span=Span(len(ids) - QUESTION, len(ids)), needle_span=span,
        answer_ids=gold, haystack_repeats=0.0,
    )  # fmt: skip


def plain(bench: Bench, given: Prompt) -> None:
    """What a user of transformers writes: the prompt with a cache, no logits but the last."""
    ids = torch.tensor([given.input_ids], device=bench.device)
    cache = DynamicCache(config=bench.model.config)
    bench.model(input_ids=ids, **with_cache(bench.model, cache), use_cache=True, logits_to_keep=1)


def score(bench: Bench, prompts: list[Prompt]) -> list[Measured]:
    """All through the profiler; a trial that did not fit would spoil the comparison."""
    every_token = set(range(bench.shape.vocabulary))
    profiler = Profiler(bench.model, estimators("r2"), every_token, prefill_chunk=bench.shape.chunk)
    results = [result for _, result in profiler.measure(prompts)]
    measured = [result for result in results if isinstance(result, Measured)]
    if len(measured) < len(results):
        raise RuntimeError(f"{len(results) - len(measured)} of {len(results)} trials did not fit")
    return measured
