"""Drawing tokens on the device."""

from __future__ import annotations

import math

import pytest
import torch

from headprobe.compression.decoding import Sampler
from headprobe.errors import OptionError

CPU = torch.device("cpu")
LOGITS = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])


def shares(sampler: Sampler, draws: int = 20_000) -> list[float]:
    """How often each token is drawn."""
    drawn = sampler.draw(LOGITS.expand(draws, -1), sampler.generator(CPU))
    return (torch.bincount(drawn, minlength=5) / draws).tolist()


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


@pytest.mark.parametrize(
    ("sampler", "wanted"),
    [
        (Sampler(), softmax([4.0, 3.0, 2.0, 1.0, 0.0])),
        (Sampler(temperature=2.0, seed=1), softmax([2.0, 1.5, 1.0, 0.5, 0.0])),
        (Sampler(top_k=2, seed=2), [*softmax([4.0, 3.0]), 0.0, 0.0, 0.0]),
        (Sampler(top_p=0.9, seed=3), [*softmax([4.0, 3.0, 2.0]), 0.0, 0.0]),  # 0.64 + 0.23 + 0.09
        (Sampler(temperature=1e-4), [1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(sampler: Sampler, wanted: list[float]) -> None:
    assert shares(sampler) == pytest.approx(wanted, abs=0.015)  # four standard errors of 20,000 draws


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    logits = torch.zeros(64, 100)
    draws = [Sampler(seed=seed).draw(logits, Sampler(seed=seed).generator(CPU)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_logits_stay_as_they_are() -> None:
    logits = LOGITS[None].clone()
    sampler = Sampler(temperature=0.5, top_k=2, top_p=0.5)
    sampler.draw(logits, sampler.generator(CPU))
    assert torch.equal(logits[0], LOGITS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "a temperature of 0.0 is out of range, need more than 0"),
        ({"temperature": math.inf}, "a temperature of inf is out of range"),
        ({"temperature": math.nan}, "a temperature of nan is out of range"),
        ({"top_k": -1}, "top-k is -1, need at least 1 token, or 0 for all"),
        ({"top_p": 0.0}, "a top-p of 0.0 is out of range, need more than 0 and at most 1"),
        ({"top_p": 1.5}, "a top-p of 1.5 is out of range"),
        ({"seed": -1}, "the seed is -1, need 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Sampler(**wrong)  # type: ignore[arg-type]
