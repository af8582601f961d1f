"""The method that looks at what heads write, not where they look: `logit`, and the reading of outputs as logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.errors import ModelError
from headprobe.models.weights import plain
from headprobe.profiling.estimators.estimator import ANSWERED_GATE, Gate, Target
from headprobe.scores.provenance import METHODS, MethodFacts

_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")  # what families call the projection behind the heads


@dataclass(frozen=True)
class Logit:
    """LOCOS (arXiv 2607.01002): what a head adds to the logit of the token that is produced, out of the answer.

    With `c_tj = a_tj (u_y . W_O[h] v_j)`, `y` the token produced at step `t`: the sum over the answer less the sum over
    the other positions before the row, `E_t`, scaled to as many positions as the answer has. No norm is folded in, and
    norms behind a layer's attention (Gemma) are left out.
    """

    name: str = "logit"
    facts: MethodFacts = METHODS["logit"]
    formula: str = "(1/N) sum_t (sum_{j in A} c_tj - (N/|E_t|) sum_{j in E_t} c_tj), c_tj = a_tj (u_yt . W_O[h] v_j)"
    version: int = 1
    gate: Gate = ANSWERED_GATE
    default_needles: str = "retrieval"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """The contrast of the head's own output, `[H, R, d_v]`: which token it speaks for is not known yet."""
        heads, count, keys = rows.weights.shape
        span, groups = target.answer_span, rows.values.shape[0]
        weights = rows.weights.reshape(groups, heads // groups * count, keys)
        values = rows.values.float()
        inside = weights[..., span.start : span.end] @ values[:, span.start : span.end]
        outside = weights @ values - inside
        seen = torch.arange(keys - count + 1, keys + 1, device=weights.device)
        share = len(span) / (seen - len(span)).clamp(min=1)
        inside, outside = (part.reshape(heads, count, -1) for part in (inside, outside))
        return inside - share[:, None] * outside

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The sum over the steps, divided by N: `[L, H, steps, d_v] -> [L, H]`."""
        assert target.output is not None
        return target.output.logits(evidence, produced).double().sum(-1) / len(target.answer_span)


LOGIT = Logit()


class Unembedding:
    """Outputs of heads as logits, by the output projections and the output embedding of a model.

    Raises `ModelError` for a model whose projections are not found as plain matrices.
    """

    def __init__(self, model: Any) -> None:
        layers = {m.layer_idx: m for m in model.modules() if getattr(m, "layer_idx", None) is not None}
        found = [_projection(layers[number]) for number in sorted(layers)]
        embedding = getattr(model.get_output_embeddings(), "weight", None)
        if embedding is None or not embedding.is_floating_point() or not found or any(w is None for w in found):
            raise ModelError(
                f"the output projections of {type(model).__name__} are not plain matrices under a name that is known "
                f"({', '.join(_PROJECTIONS)}): the method 'logit' cannot be taken"
            )
        self.embedding, self.projections = embedding, [weight for weight in found if weight is not None]

    def logits(self, outputs: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """`u_y . W_O[h] z` of outputs `z` `[L, H, T, d_v]` for the tokens `y`, one per step: `[L, H, T]`."""
        heads, width = outputs.shape[1], outputs.shape[3]
        rows = plain(self.embedding)[torch.tensor(list(tokens), device=self.embedding.device)].float()  # [T, hidden]
        found = []
        for layer, weight in zip(outputs, self.projections, strict=True):
            read = (rows @ plain(weight).to(rows.device).float()).view(len(tokens), heads, width)  # u_y . W_O, by head
            found.append(torch.einsum("htd,thd->ht", layer, read.to(layer.device)))
        return torch.stack(found)


def _projection(module: Any) -> torch.Tensor | None:
    """The weight `[hidden, H * d_v]` of a layer's output projection; None where the module has none that is plain."""
    for name in _PROJECTIONS:
        part = getattr(module, name, None)
        if isinstance(part, torch.nn.Linear) and part.weight.is_floating_point():
            return part.weight
    return None
