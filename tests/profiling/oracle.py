"""The slow, plain procedure that the fast one must agree with: one step at a time, dense attention, Python loops."""

from __future__ import annotations

from typing import Any

import torch

from headprobe.profiling.estimators.estimator import Target


def oracle_trial(
    model: Any, prompt_ids: tuple[int, ...], target: Target, max_steps: int, eos_token_ids: set[int], method: str
) -> tuple[list[int], list[list[float]]]:
    """Produced tokens and the scores `[L][H]` of one trial; the model must have been loaded with eager attention."""
    produced: list[int] = []
    rows_by_step, norms_by_step = [], []
    while len(produced) < max_steps and not (produced and produced[-1] in eos_token_ids):
        ids = torch.tensor([[*prompt_ids, *produced]])
        with torch.no_grad(), value_norms(model) as norms:
            out = model(ids, output_attentions=True, use_cache=False)
        rows_by_step.append([layer[0, :, -1].tolist() for layer in out.attentions])
        norms_by_step.append([n[0].tolist() for n in norms])
        produced.append(int(out.logits[0, -1].argmax()))
    layers, heads = len(rows_by_step[0]), len(rows_by_step[0][0])
    scores = [[0.0] * heads for _ in range(layers)]
    for step, token in enumerate(produced):
        for layer in range(layers):
            for head in range(heads):
                row = rows_by_step[step][layer][head]
                norm = norms_by_step[step][layer]
                scores[layer][head] += step_score(row, norm[head * len(norm) // heads], target, token, method)
    size = target.answer_span.end - target.answer_span.start
    return produced, [[value / size for value in row] for row in scores]


def step_score(row: list[float], norms: list[float], target: Target, token: int, method: str) -> float:
    """What one row adds to its head's score, before the division by N."""
    inside = range(target.answer_span.start, target.answer_span.end)
    if method == "retrieval":
        best = max(range(len(row)), key=lambda j: row[j])
        return float(best in inside and target.input_ids[best] == token)
    if method == "value":
        weighted = [a * n for a, n in zip(row, norms, strict=True)]
        row = [w / sum(weighted) for w in weighted]
    top = sorted(range(len(row)), key=lambda j: -row[j])[: len(inside)]
    mass = sum(row[j] for j in top if j in inside)
    if method == "contrast":
        assert target.distractor_span is not None
        other = range(target.distractor_span.start, target.distractor_span.end)
        mass -= sum(row[j] for j in top if j in other)
    return mass


class value_norms:  # noqa: N801
    """Collects `|v_j|_1` `[B, G, K]` of every layer while the model runs, from what its cache is given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> list[torch.Tensor]:
        self.found: list[torch.Tensor] = []
        self.module = __import__(type(self.model).__module__, fromlist=["eager_attention_forward"])
        self.original = self.module.eager_attention_forward

        def spying(module, query, key, value, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.found.append(value.abs().sum(-1))
            return self.original(module, query, key, value, *args, **kwargs)

        self.module.eager_attention_forward = spying
        return self.found

    def __exit__(self, *error: object) -> None:
        self.module.eager_attention_forward = self.original
