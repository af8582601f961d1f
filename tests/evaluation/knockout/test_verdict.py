from __future__ import annotations

from collections.abc import Sequence
from math import log

import pytest

from headprobe.evaluation.knockout.bench import Outcome
from headprobe.evaluation.knockout.verdict import (
    KnockoutCurve,
    Sides,
    Step,
    Verdict,
    make_step,
    verdict_interval,
    verdict_of,
    whole_estimates,
)

PROMPTS = 40
CLUSTERS = [f"n{i}" for i in range(PROMPTS)]


def outcome(answered: int, text: float = 2.0, shift: int = 0) -> Outcome:
    """So many of 40 prompts answered, from place `shift` on; plain text at `text` nats per token."""
    flags = tuple(float((i - shift) % PROMPTS < answered) for i in range(PROMPTS))
    return Outcome(flags, flags, flags, tuple(1.0 - flag for flag in flags), tuple(text + 0.02 * i for i in range(8)))


def step(top: Outcome, *random: Outcome, k: int = 5, steps: int = 1, clusters: Sequence[str] = CLUSTERS) -> Step:
    return make_step(k, k, Sides(outcome(PROMPTS), top, random), clusters, steps)


def verdict(*steps: Step, num_needles: int = PROMPTS, guessing: float = log(1000)) -> Verdict:
    return verdict_of(whole_estimates(outcome(PROMPTS), CLUSTERS), steps, num_needles, guessing)


def test_the_figures_of_a_step() -> None:
    found = step(outcome(10), outcome(40, 2.5), outcome(30, 2.7))
    assert found.random is not None
    assert found.difference is not None
    assert found.top["answered"].mean == 0.25
    assert found.random["answered"].mean == 0.875
    assert found.difference["answered"].mean == 0.625
    assert found.draws is not None
    assert found.draws["answered"] == [1.0, 0.75]
    assert found.difference["text_loss"].mean == pytest.approx(0.6)
    assert found.changes["random"]["text_loss"].mean == pytest.approx(0.6)
    assert found.changes["random"]["text_loss"].low == pytest.approx(0.6)  # the same on every text
    assert found.changes["top"]["answered"].mean == -0.75
    assert found.verdict is not None
    assert found.verdict[0] > 0


def test_more_steps_widen_the_interval_that_decides() -> None:
    alone, among = (step(outcome(20), outcome(30, shift=3), steps=n).verdict for n in (1, 6))
    assert alone is not None
    assert among is not None
    assert among[0] < alone[0] < alone[1] < among[1]


def test_an_interval_that_ends_at_0_leaves_nothing_certain() -> None:
    """A resample without any of the four that differ comes up with 0.6 ** 10, so among a thousand steps it counts."""
    ends = verdict_interval([0.5] * 4 + [0.0] * 6, CLUSTERS[:10], 1000)
    assert ends is not None
    assert ends[0] == 0.0


def test_heads_that_matter() -> None:
    found = verdict(step(outcome(38), outcome(39), k=1), step(outcome(8), outcome(39), outcome(40)))
    assert found.effect == "causal"
    assert found.text.startswith("The heads matter: removing the top 5 costs 80 points, random ones 1 (difference ")
    assert found.text.endswith(
        "The loss on plain text (2.07 nats per token) changes by +0.00, with random ones off by +0.00."
    )


def test_one_head_is_told_of_in_the_singular() -> None:
    assert "removing the top head costs 100 points, a random one 0" in verdict(step(outcome(0), outcome(40), k=1)).text


def test_heads_without_which_plain_text_suffers_too_do_more_than_retrieve() -> None:
    found = verdict(step(outcome(0, 4.0), outcome(40, 2.1)))
    assert found.effect == "unspecific"
    assert found.text.endswith("changes by +2.00, with random ones off by +0.10. So they do more than retrieve.")


def test_a_model_that_knows_no_plain_text_has_no_control() -> None:
    found = verdict(step(outcome(0, 4.0), outcome(40, 2.1)), guessing=1.9)
    assert found.effect == "causal"
    assert found.text.endswith("Plain text is no control here: the model does not know it (2.1 nats per token).")


def test_no_effect_is_a_verdict() -> None:
    found = verdict(step(outcome(40), outcome(40), k=1), step(outcome(40), outcome(40)))
    assert found.effect == "none"
    assert found.text.startswith(
        "No causal effect: removing the top 5 costs 0 points, random ones 0; a difference above 8 "
    )  # of 40 needles none changed: up to 3 in 40 may


def test_an_order_that_is_worse_than_chance() -> None:
    found = verdict(step(outcome(40), outcome(10), outcome(12)))
    assert found.effect == "reversed"
    assert "removing the top 5 costs 0 points, random ones 72" in found.text


@pytest.mark.parametrize(("top", "random"), [(30, (34,)), (0, ())])
def test_what_cannot_be_said_is_said(top: int, random: tuple[int, ...]) -> None:
    drawn = [outcome(each, shift=20) for each in random]
    found = verdict(step(outcome(top), *drawn))
    assert found.effect == "unclear"
    assert found.text.startswith("Cannot be said with 40 answered needles: ")


def test_a_single_draw_as_low_as_the_best_heads_leaves_it_open() -> None:
    assert verdict(step(outcome(8), outcome(40), outcome(40))).effect == "causal"
    assert verdict(step(outcome(8), outcome(40), outcome(8))).effect == "unclear"


def test_few_needles_say_nothing() -> None:
    found = verdict(step(outcome(0), outcome(40), clusters=["a", "b"] * 20), num_needles=2)
    assert (found.effect, found.text) == (
        "unclear", "Cannot be said with 2 answered needles: needs at least 5 different ones.",
    )  # fmt: skip
    alone = step(outcome(0), outcome(40), clusters=["a"] * PROMPTS)
    assert alone.verdict is None
    assert verdict(alone).effect == "unclear"


def test_the_area_under_a_curve() -> None:
    curve = KnockoutCurve(outcome(40), (1, 4), (outcome(20), outcome(0)))
    assert curve.means() == [1.0, 0.5, 0.0]
    assert curve.area() == pytest.approx((0.75 * 1 + 0.25 * 3) / 4)
    assert curve.areas() == pytest.approx([(1 + 1.5) / 4] * 20 + [0.5 / 4] * 20)
    assert curve.area("answer_loss") == pytest.approx((0.25 * 1 + 0.75 * 3) / 4)
