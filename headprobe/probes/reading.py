"""Prompts without needles: texts that the model reads twice, random tokens repeated or a passage written out again.

Some methods ask nothing. They look at how heads treat what stood there before, so a trial is one text, and its rows are
those of all tokens behind the first copy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from headprobe.errors import ModelError, PlanError
from headprobe.probes.encoding import Encoded, encode, resolve_template, special_token_in, special_tokens
from headprobe.probes.haystack import Haystack
from headprobe.probes.plan import MOST_PLACES, MOST_TRIALS, TrialSpec, check_length, check_number, spread
from headprobe.probes.prompt import Background, Prompt, prompt_record
from headprobe.spans import Span, token_span

RANDOM, PASSAGE = "random", "passage"
COPIES = 4  # of a random sequence, as in RazorAttention
LEAST_TOKENS = 4  # in one copy
REQUEST = "Repeat the previous context:"  # KVzip's words
TEMPLATE = "{context}\n\n{question}"
WIDEST_GAP = 0.05  # of a copy; a wider one is filled with the beginning of a sentence


@dataclass(frozen=True)
class Reading:
    """One text that is read twice: in `input_ids` the tokens of `first_span` are repeated in `again_span`.

    Of `RANDOM` tokens `again_span` holds `COPIES - 1` exact copies of `first_span`; of a `PASSAGE` it holds one, which
    the tokenizer may cut a little differently. `haystack_repeats` as in `Prompt`.
    """

    trial_id: str
    kind: str
    text: str
    input_ids: tuple[int, ...]
    first_span: Span
    again_span: Span
    haystack_repeats: float = 0.0

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """None: nothing is asked."""
        return ()

    @property
    def depth_reached(self) -> None:
        """None: nothing is hidden."""
        return None


@dataclass(frozen=True)
class ReadingSpec:
    """The trial of one text in `length` tokens; texts of one `number` begin alike in all lengths."""

    id: str
    number: int
    length: int
    group: str
    depth: float = 0.0


@dataclass(frozen=True)
class ReadingPlan:
    """`per_length` texts of one `kind` at each length (tokens of the whole prompt).

    `seed` decides the random tokens, or where in the haystack passages begin. A plan of random tokens has no haystack
    and no template. Lengths are sorted; repeated ones are dropped and named in `removed`. Raises `OptionError` and
    `PlanError` as `ProbePlan`.
    """

    kind: str
    lengths: tuple[int, ...]
    per_length: int
    seed: int = 0
    haystack_name: str | None = None
    haystack_sha256: str | None = None
    chat: bool = False
    window: int | None = field(default=None, compare=False)
    removed: tuple[str, ...] = field(default=(), init=False, compare=False)
    depths: tuple[float, ...] = field(default=(0.0,), init=False)

    def __post_init__(self) -> None:
        check_number(len(self.lengths), "lengths", MOST_PLACES)
        for length in self.lengths:
            check_length(length, self.window)
        once = tuple(sorted(set(self.lengths)))
        twice = [length for length in once if self.lengths.count(length) > 1]
        object.__setattr__(self, "removed", tuple(f"length {length}" for length in twice))
        object.__setattr__(self, "lengths", once)
        check_number(self.num_trials, "trials (lengths x texts)", MOST_TRIALS)

    def describe(self) -> dict[str, Any]:
        """All that decides the prompts, as `ProbePlan.describe`."""
        told: dict[str, Any] = {"prompts": self.kind, "lengths": list(self.lengths), "seed": self.seed}
        told |= {"depths": list(self.depths), "texts_per_length": self.per_length, "chat": self.chat}
        if self.kind == RANDOM:
            return told | {"copies": COPIES}
        haystack = {"name": self.haystack_name, "sha256": self.haystack_sha256}
        return told | {"haystack": haystack, "template": TEMPLATE, "request": REQUEST}

    @property
    def digest(self) -> str:
        """As `ProbePlan.digest`."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_trials(self) -> int:
        """How many trials `trials()` gives."""
        return len(self.lengths) * self.per_length

    def trials(self) -> tuple[ReadingSpec, ...]:
        """All trials in the order of length and number."""
        return tuple(
            ReadingSpec(f"{self.kind}-{number:02}@{length}", number, length, f"{self.kind}-{number:02}")
            for length in self.lengths
            for number in range(1, self.per_length + 1)
        )

    def limited(self, limit: int | None) -> tuple[ReadingSpec, ...]:
        """As `ProbePlan.limited`."""
        return spread(self.trials(), limit)


class ReadingBuilder:
    """Builds the prompts of a reading plan for one tokenizer. Raises `ModelError` for one without offsets."""

    def __init__(
        self, tokenizer: Any, plan: ReadingPlan, haystack: Haystack | None = None, vocabulary: int = 0
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{type(tokenizer).__name__} is not a fast tokenizer: it gives no character offsets")
        if plan.kind == PASSAGE and (haystack is None or haystack.sha256 != plan.haystack_sha256):
            raise PlanError(f"the plan is for haystack {plan.haystack_name!r}")
        self.tokenizer, self.plan, self.haystack = tokenizer, plan, haystack
        self._tokens = _plain_tokens(tokenizer, vocabulary) if plan.kind == RANDOM else []
        self._backgrounds: dict[int, Background] = {}
        if haystack is not None and (token := special_token_in(haystack.text, special_tokens(tokenizer))) is not None:
            raise PlanError(f"haystack {haystack.name!r} contains {token!r}, which is a special token of the tokenizer")

    def build(self, spec: ReadingSpec) -> Reading:
        """The prompt of a trial, at most `spec.length` tokens. Raises `PlanError` where the length is too small."""
        return self._random(spec) if self.plan.kind == RANDOM else self._passage(spec)

    def _random(self, spec: ReadingSpec) -> Reading:
        opening = [token for token, offset in _pairs(encode(self.tokenizer, "a")) if offset == (0, 0)]
        period = (spec.length - len(opening)) // COPIES
        if period < LEAST_TOKENS:
            raise PlanError(
                f"length {spec.length} is too small for {COPIES} copies: "
                f"need at least {len(opening) + COPIES * LEAST_TOKENS} tokens"
            )
        drawn = _drawn(self._tokens, period, f"{self.plan.seed}/{spec.number}")
        ids = (*opening, *(drawn * COPIES))
        first = Span(len(opening), len(opening) + period)
        text = str(self.tokenizer.decode(list(ids)))
        return Reading(spec.id, RANDOM, text, ids, first, Span(first.end, len(ids)))

    def _passage(self, spec: ReadingSpec) -> Reading:
        template = resolve_template(self.tokenizer, TEMPLATE, self.plan.chat)
        background = self._background(spec.number)
        room = (spec.length - len(encode(self.tokenizer, template.render("", REQUEST)).ids)) // 2
        for end in _ends(background, room):
            context = background.text[:end]
            prompt = template.render(context, REQUEST) + template.lead
            encoded = encode(self.tokenizer, prompt + context, special=not template.chat)
            if len(encoded.ids) <= spec.length:
                first = token_span(encoded.offsets, Span(0, end).shift(len(template.head)))
                again = token_span(encoded.offsets, Span(0, end).shift(len(prompt)))
                repeats = background.repeats(end)
                return Reading(spec.id, PASSAGE, prompt + context, tuple(encoded.ids), first, again, repeats)
        raise PlanError(f"length {spec.length} is too small for a text that is read twice")

    def _background(self, number: int) -> Background:
        """Where in the haystack passages of this number begin; tokenized once for all lengths."""
        assert self.haystack is not None
        if number not in self._backgrounds:
            turned = self.haystack.rotated(self.plan.seed * MOST_PLACES + number - 1)
            self._backgrounds[number] = Background(self.tokenizer, turned, max(self.plan.lengths) // 2)
        return self._backgrounds[number]


def _ends(background: Background, room: int) -> Iterator[int]:
    """Where the passage may end: the last sentence end that leaves no wide gap, else word ends behind it, and so on."""
    end = background.fitting_end(room)
    if room - background.tokens_before(end) > WIDEST_GAP * room:
        yield from background.words_until(end, room)
    while end > 0:
        yield end
        end = background.fitting_end(background.tokens_before(end) - 1)


def _pairs(encoded: Encoded) -> list[tuple[int, tuple[int, int]]]:
    return list(zip(encoded.ids, encoded.offsets, strict=True))


def _plain_tokens(tokenizer: Any, vocabulary: int) -> list[int]:
    """All tokens that stand for text and that the model knows, rising."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    most = len(tokenizer) if vocabulary < 1 else min(len(tokenizer), vocabulary)
    found = [token for token in range(most) if token not in special]
    if not found:
        raise ModelError("the tokenizer has no token that is not special")
    return found


def _drawn(tokens: list[int], count: int, name: str) -> list[int]:
    """`count` of the tokens at random, none again before all have come; the same for a name on any machine."""
    drawn: list[int] = []
    left: set[int] = set()
    number = 0
    while len(drawn) < count:
        left = left or set(tokens)
        digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
        number += 1
        token = tokens[int.from_bytes(digest[:8], "big") % len(tokens)]
        if token in left:
            left.discard(token)
            drawn.append(token)
    return drawn


def any_prompt_record(prompt: AnyPrompt) -> dict[str, Any]:
    """A prompt of any kind as a line of `--dump-prompts`."""
    if isinstance(prompt, Prompt):
        return prompt_record(prompt)
    return {
        "trial": prompt.trial_id,
        "input_ids": list(prompt.input_ids),
        "first_span": [prompt.first_span.start, prompt.first_span.end],
        "again_span": [prompt.again_span.start, prompt.again_span.end],
        "text": prompt.text,
    }


AnyPrompt = Prompt | Reading
AnySpec = TrialSpec | ReadingSpec
