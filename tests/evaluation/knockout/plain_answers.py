"""Answers without some heads the plain way: one set and one prompt at a time, each read from its first token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from headprobe.evaluation.knockout.switched_off import hidden_span
from headprobe.models.finite import watched_generate
from headprobe.models.loading import LoadedModel
from headprobe.probes.prompt import Prompt
from headprobe.scores.head_scores import Head


def answers_without(
    loaded: LoadedModel, prompts: Iterable[Prompt], heads: Iterable[Head], times: int = 1
) -> dict[str, str]:
    """Greedy answers by trial id, `times` as long as the gold answers, with each answer's span hidden from `heads`."""
    hidden_from = list(heads)
    said = {}
    for prompt in prompts:
        ids = torch.tensor([prompt.input_ids], device=loaded.device)
        with hidden_span(loaded.model, hidden_from, prompt.answer_span):
            out: Any = watched_generate(
                loaded.model,
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=times * len(prompt.answer_ids),
                do_sample=False,
            )
        said[prompt.trial_id] = str(loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return said
