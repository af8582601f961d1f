"""The slow, plain procedure that the fast one must agree with: one step at a time, dense attention, Python loops."""

from __future__ import annotations

from typing import Any

import torch

from headprobe.probes.prompt import NullPrompt
from headprobe.probes.reading import Reading
from headprobe.profiling.estimators.estimator import Target
from headprobe.spans import Span

Table = list[list[float]]


def oracle_trial(
    model: Any, prompt_ids: tuple[int, ...], target: Target, max_steps: int, eos_token_ids: set[int], method: str
) -> tuple[list[int], list[list[float]]]:
    """Produced tokens and the scores `[L][H]` of one trial; the model must have been loaded with eager attention."""
    produced: list[int] = []
    rows_by_step, values_by_step = [], []
    while len(produced) < max_steps and not (produced and produced[-1] in eos_token_ids):
        ids = torch.tensor([[*prompt_ids, *produced]])
        with torch.no_grad(), spied_values(model) as values:
            out = model(ids, output_attentions=True, use_cache=False)
        rows_by_step.append([layer[0, :, -1].tolist() for layer in out.attentions])
        values_by_step.append([v[0] for v in values])
        produced.append(int(out.logits[0, -1].argmax()))
    layers, heads = len(rows_by_step[0]), len(rows_by_step[0][0])
    scores = [[0.0] * heads for _ in range(layers)]
    for step, token in enumerate(produced):
        for layer in range(layers):
            for head in range(heads):
                row = rows_by_step[step][layer][head]
                values = values_by_step[step][layer]
                own = values[head * len(values) // heads]
                if method == "logit":
                    scores[layer][head] += logit_score(row, own, target, written(model, layer, head, heads, token))
                else:
                    scores[layer][head] += step_score(row, own.abs().sum(-1).tolist(), target, token, method)
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
    if method == "mass":
        return sum(row[j] for j in inside)
    top = sorted(range(len(row)), key=lambda j: -row[j])[: len(inside)]
    mass = sum(row[j] for j in top if j in inside)
    if method == "contrast":
        assert target.distractor_span is not None
        other = range(target.distractor_span.start, target.distractor_span.end)
        mass -= sum(row[j] for j in top if j in other)
    return mass


def written(model: Any, layer: int, head: int, heads: int, token: int) -> torch.Tensor:
    """`u_y . W_O[h]`, `[d_v]`: how much a head's output adds to the logit of `token`, element by element."""
    projection = model.model.layers[layer].self_attn.o_proj.weight.detach()
    width = projection.shape[1] // heads
    own = projection[:, head * width : (head + 1) * width]
    return model.lm_head.weight.detach()[token] @ own


def logit_score(row: list[float], values: torch.Tensor, target: Target, direction: torch.Tensor) -> float:
    """What the answer's positions add to the logit, less what all others add for as many positions."""
    inside = range(target.answer_span.start, target.answer_span.end)
    adds = [weight * float(direction @ value) for weight, value in zip(row, values, strict=True)]
    others = [j for j in range(len(row)) if j not in inside]
    return sum(adds[j] for j in inside) - len(inside) / len(others) * sum(adds[j] for j in others)


def attention_of(model: Any, ids: tuple[int, ...]) -> list[list[list[list[float]]]]:
    """All attention of one plain pass, `[L][H][row][key]`; the model must use eager attention."""
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    return [layer[0].tolist() for layer in out.attentions]


def oracle_question(model: Any, asked: tuple[int, ...], question: Span, null: NullPrompt, answer: Span) -> Table:
    """Attention from the question's tokens to the answer, less that of the null question's: means over tokens."""
    real, nothing = attention_of(model, asked), attention_of(model, null.input_ids)

    def mean(rows: list[list[float]], span: Span) -> float:
        sums = [sum(rows[i][answer.start : answer.end]) for i in range(span.start, span.end)]
        return sum(sums) / len(sums)

    return [
        [mean(a, question) - mean(b, null.question_span) for a, b in zip(one, two, strict=True)]
        for one, two in zip(real, nothing, strict=True)
    ]


def oracle_reading(model: Any, reading: Reading, method: str) -> Table:
    """`induction`, `echo` or `reconstruction` of a text that is read twice."""
    first, again = reading.first_span, reading.again_span
    rows = range(again.start, again.end)

    def score(head: list[list[float]]) -> float:
        if method == "reconstruction":
            best = [max(head[p][j] for p in rows) for j in range(first.start, first.end)]
            return sum(best) / len(best)
        ids, total = reading.input_ids, 0.0
        for p in rows:
            copies = [j for j in range(first.start, p) if ids[j] == ids[p] and (p - j) % len(first) == 0]
            total += sum(head[p][j + (method == "induction")] for j in copies)
        return total / len(rows)

    return [[score(head) for head in layer] for layer in attention_of(model, reading.input_ids)]


class spied_values:  # noqa: N801
    """Collects the values `[B, G, K, d_v]` of every layer while the model runs, from what its cache is given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> list[torch.Tensor]:
        self.found: list[torch.Tensor] = []
        self.module = __import__(type(self.model).__module__, fromlist=["eager_attention_forward"])
        self.original = self.module.eager_attention_forward

        def spying(module, query, key, value, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.found.append(value)
            return self.original(module, query, key, value, *args, **kwargs)

        self.module.eager_attention_forward = spying
        return self.found

    def __exit__(self, *error: object) -> None:
        self.module.eager_attention_forward = self.original
