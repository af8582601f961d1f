"""Prompts: slices of the prose in haystacks/, and needles in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Needle:
    """A prompt as tokens, the sentence that answers it, and that sentence's length in tokens."""

    prompt: list[int]
    answer: str
    answer_tokens: int


HAYSTACKS = Path(__file__).parents[2] / "haystacks"


def prose(folder: str | Path, lengths: Sequence[int]) -> list[list[int]]:
    """A stretch of prose of each length in tokens, each from another place."""
    from transformers import AutoTokenizer

    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(HAYSTACKS.rglob("*.txt")))
    tokens = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, verbose=False)["input_ids"]
    while len(tokens) < sum(lengths):
        tokens += tokens
    prompts, start = [], 0
    for length in lengths:
        prompts.append(list(tokens[start : start + length]))
        start += length
    return prompts


def needles(
    model: str, length: int, depths: int, per_cell: int, kind: str, *, inner: bool = False
) -> tuple[list[Needle], Any]:
    """Needle prompts of headprobe, and its model.

    `inner`: none at the first and the last depth, where sinks and window hold the needle whatever the heads.
    """
    from headprobe.models.loading import load_model
    from headprobe.profiling.job import ScoreOptions, prepare

    loaded = load_model(model, device="cpu", dtype="float32")
    options = ScoreOptions(needles=kind, lengths=(length,), depths=depths, needles_per_cell=per_cell, seed=1)
    prepared = prepare(loaded, options)
    trials = {spec.id: spec for spec in prepared.plan.trials()}
    made = [
        Needle(list(p.input_ids), trials[p.trial_id].needle.answer, len(p.answer_ids))
        for p in prepared.prompts
        if not inner or 0.0 < trials[p.trial_id].depth < 100.0
    ]
    return made, loaded
