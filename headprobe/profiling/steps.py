"""How many tokens of a response are scored, and how many the gate reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headprobe.errors import OptionError, shown

READ_ON = 2  # times the answer's tokens, for a longer way of saying the right thing
PUBLISHED_TOKENS = 50


@dataclass(frozen=True)
class StepRule:
    """`name` as `--steps` takes it, `words` as score files state it.

    `fixed`: N tokens are scored and read whatever the model says; None for as many as the answer has, where an
    end-of-sequence token ends them and the gate may read on.
    """

    name: str
    words: str
    fixed: int | None = None

    def scored(self, answer_tokens: int, room: int) -> int:
        """The most steps that are scored, where the model's window has `room` tokens left behind the prompt."""
        return answer_tokens if self.fixed is None else max(1, min(self.fixed, room))

    def read(self, answer_tokens: int, room: int) -> int:
        """The most tokens that the gate reads, those that are scored among them."""
        if self.fixed is not None:
            return self.scored(answer_tokens, room)
        return max(answer_tokens, min(READ_ON * answer_tokens, room))

    @property
    def ends(self) -> bool:
        """Whether an end-of-sequence token ends the response."""
        return self.fixed is None


ANSWER_STEPS = StepRule(
    "answer",
    "at most as many as the gold answer has tokens; an end-of-sequence token ends them and counts; a response that has "
    "not answered by then is read on, unscored, up to twice as many",
)
PUBLISHED_STEPS = StepRule(
    "published", f"{PUBLISHED_TOKENS}, past the answer's length and past end-of-sequence tokens", PUBLISHED_TOKENS
)
STEP_RULES = {rule.name: rule for rule in (ANSWER_STEPS, PUBLISHED_STEPS)}


def check_steps(name: str, methods: Sequence[str]) -> None:
    """Raise `OptionError` for a rule that does not exist, or that no published code of these methods has."""
    if name not in STEP_RULES:
        raise OptionError(f"steps is {shown(name)}, need one of {', '.join(STEP_RULES)}")
    others = [method for method in methods if method != "retrieval"]
    if name == PUBLISHED_STEPS.name and others:
        raise OptionError(f"steps {name!r} are those of the published code of retrieval, not of {', '.join(others)}")


def step_rule(estimators: Sequence[Any]) -> StepRule:
    """The rule that all of these go by: one run has one response. Most state none, which is `ANSWER_STEPS`."""
    rules = {getattr(estimator, "steps", ANSWER_STEPS) for estimator in estimators}
    if len(rules) > 1:
        raise OptionError(
            f"methods with different steps cannot share a run: {', '.join(sorted(r.name for r in rules))}"
        )
    return rules.pop() if rules else ANSWER_STEPS
