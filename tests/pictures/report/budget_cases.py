"""Scores and settings whose budgets the page and Python must give alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from headprobe.compression.budgets import head_score_budgets

Case = tuple[Any, int, int, float, int]


def budget_cases() -> Iterator[Case]:
    """Scores `[L, G]`, budget, floor, beta and tokens of the prompt; some scores tie, some are 0 everywhere."""
    rng = np.random.default_rng(7)
    for index in range(150):
        shape = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
        scores = rng.gamma(0.3, 1.0, shape)
        if index % 5 == 0:
            scores = np.round(scores, 1)  # ties and zeros
        if index % 11 == 0:
            scores[:] = 0.0
        floor = int(rng.integers(0, 9))
        budget = int(rng.integers(max(floor, 1), 600))
        prompt = int(rng.integers(max(floor, 1), 2000))
        yield scores, budget, floor, float(rng.choice([1.005, 1.01, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0])), prompt


def wanted_budgets(cases: Iterable[Case]) -> list[list[int]]:
    """What Python gives, flat."""
    return [
        head_score_budgets(scores, budget, floor=floor, beta=beta, prompt_tokens=prompt).ravel().tolist()
        for scores, budget, floor, beta, prompt in cases
    ]
