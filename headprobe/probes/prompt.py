"""A prompt: a needle hidden in a haystack, as token ids with the exact spans of what matters in it."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from headprobe.errors import ModelError, PlanError
from headprobe.probes.encoding import Encoded, Template, encode, resolve_template, special_token_in, special_tokens
from headprobe.probes.haystack import Haystack
from headprobe.probes.needle import Needle
from headprobe.probes.plan import ProbePlan, TrialSpec
from headprobe.probes.scripts import is_mark, is_unspaced, may_cut, sentence_ends
from headprobe.spans import Span, token_span

# A haystack laid out in tokens: how many tokens stand before a character, and where one may cut or insert.

_WORD = re.compile(r"\S+")
_MOST_CHARACTERS = 1000  # a token: a tokenizer beyond this drops text
_SPARE_CHARACTERS = 10_000  # so much more than is needed may be tokenized, for whole paragraphs
_LONGEST_SENTENCE = (500, 200)  # characters with spaces between words, and without; a longer stretch is none
_LONGEST_LINE = (100, 40)  # the same for what no stop ends, such as a heading or the item of a list
_LONGEST_WORD = 100
_DEPTH_TOLERANCE = 0.02  # of the background; where words have no spaces, a break further away is given up for a nearer


class Background:
    """At least `num_tokens` tokens of `haystack`, tokenized once. Positions are characters of `text`.

    The counts are those of the background alone; in a prompt they may differ by a few tokens, because a tokenizer
    merges across the borders. Of a paragraph that is much longer than needed only the beginning is taken.
    """

    def __init__(self, tokenizer: Any, haystack: Haystack, num_tokens: int) -> None:
        self.haystack_characters = len(haystack.text)
        characters = 5 * num_tokens + 200
        while True:
            self.text, is_cut = _beginning(haystack.stretch(characters)[0], characters)
            self._starts = [start for start, _ in encode(tokenizer, self.text, special=False).offsets]
            if len(self._starts) >= num_tokens:
                break
            if characters > _MOST_CHARACTERS * (num_tokens + 1):
                raise PlanError(f"the tokenizer makes only {len(self._starts)} tokens of {len(self.text)} characters")
            characters *= 2
        self.ends = sentence_ends(self.text)[: -1 if is_cut else None]
        self._ends_in_tokens = [self.tokens_before(end) for end in self.ends]

    def tokens_before(self, position: int) -> int:
        """How many tokens begin before the character `position`."""
        return bisect_left(self._starts, position)

    def fitting_end(self, num_tokens: int) -> int:
        """The last sentence end with at most `num_tokens` tokens before it; 0 when not even one sentence fits."""
        index = bisect_right(self._ends_in_tokens, num_tokens)
        return self.ends[index - 1] if index else 0

    def words_until(self, start: int, num_tokens: int) -> Iterator[int]:
        """Word ends behind `start` with at most `num_tokens` tokens before them, the furthest first."""
        stop = self._character_of(num_tokens)
        ends = (match.end() for match in _WORD.finditer(self.text, start, max(start, stop) + 1))
        yield from reversed([end for end in ends if end > start and self.tokens_before(end) <= num_tokens])

    def characters_until(self, start: int, num_tokens: int) -> Iterator[int]:
        """As `words_until`, between any two characters of scripts without spaces where a text may be cut."""
        for end in range(min(self._character_of(num_tokens), len(self.text)), start, -1):
            if self.tokens_before(end) <= num_tokens and self._may_break(end):
                yield end

    def insertion_point(self, end: int, depth: float) -> int:
        """Of 0 and the sentence ends up to `end`, the one nearest to `depth` percent of the tokens before `end`.

        Where the text has no sentence ends over a stretch that is too long for a sentence (Thai, a transcript), a word
        end in it is a place too; and where it has no spaces near that depth either, any character that may be cut off.
        """
        target = depth / 100 * self.tokens_before(end)
        index = bisect_right(self.ends, end)
        found = bisect_left(self._ends_in_tokens, target, 0, index)
        places = [0, *self.ends[max(0, found - 2) : min(index, found + 2)]]
        wanted = min(self._character_of(int(target)), end)
        if self._is_endless(wanted):
            places += self._finer_places(wanted, end)
        return min(places, key=lambda place: (abs(self.tokens_before(place) - target), place))

    def depth_at(self, place: int, end: int) -> float | None:
        """Percent of the tokens before `end` that stand before `place`; None where there are none."""
        total = self.tokens_before(end)
        return round(100 * self.tokens_before(place) / total, 2) if total else None

    def repeats(self, end: int) -> float:
        """Characters up to `end` over those of the haystack: above 1.0 paragraphs are repeated."""
        return end / self.haystack_characters

    # -- texts without sentence ends --------------------------------------------------------------------------------

    def _character_of(self, token: int) -> int:
        return self._starts[token] if token < len(self._starts) else len(self.text)

    def _is_endless(self, place: int) -> bool:
        """Whether what stands around `place`, from one sentence end to the next, is longer than a sentence ever is."""
        index = bisect_right(self.ends, place)
        start = self.ends[index - 1] if index else 0
        end = self.ends[index] if index < len(self.ends) else len(self.text)
        is_line = index < len(self.ends) and (self.text[end - 1].isalnum() or is_mark(self.text[end - 1]))
        sample = self.text[start : min(end, start + 200)]
        without_spaces = 2 * sum(map(is_unspaced, sample)) > len(sample)
        return end - start > (_LONGEST_LINE if is_line else _LONGEST_SENTENCE)[without_spaces]

    def _finer_places(self, wanted: int, end: int) -> list[int]:
        """Places up to `end` near the character `wanted`: `end`, word ends, and between characters where need be."""
        near = range(max(1, wanted - _LONGEST_WORD), min(end, wanted + _LONGEST_WORD) + 1)
        places = [place for place in near if place == end or self._ends_word(place)]
        tolerance = max(2.0, _DEPTH_TOLERANCE * self.tokens_before(end))
        target = self.tokens_before(wanted)
        if not any(abs(self.tokens_before(place) - target) <= tolerance for place in places):
            places += [place for place in near if self._may_break(place)]
        return places

    def _ends_word(self, place: int) -> bool:
        return place < len(self.text) and self.text[place].isspace() and not self.text[place - 1].isspace()

    def _may_break(self, place: int) -> bool:
        """Whether two characters of a script without spaces meet here that belong to no common letter."""
        return (
            place < len(self.text)
            and may_cut(self.text, place)
            and is_unspaced(self.text[place - 1])
            and is_unspaced(self.text[place])
        )


def _beginning(text: str, characters: int) -> tuple[str, bool]:
    """What is needed of `text`, and whether the rest was cut off: only where that is much."""
    if len(text) <= 4 * characters + _SPARE_CHARACTERS:
        return text, False
    place = next(i for i in range(2 * characters, 0, -1) if may_cut(text, i))
    return text[:place], True


_SLACK = 4  # tokens by which a prompt may differ from the sum of its parts
_WIDEST_GAP = 0.05  # of the length; a wider one is filled with the beginning of a sentence


@dataclass(frozen=True)
class Prompt:
    """One trial's prompt. Spans are tokens of `input_ids`; `answer_ids` are what the model should write next.

    `haystack_repeats` = characters of background in this prompt / characters of the haystack: above 1.0 paragraphs
    are repeated. `depth_reached`: percent of the background's tokens that stand before the needle; None without any.
    `null`: the same prompt with a question that asks nothing, where one was wanted.
    """

    trial_id: str
    text: str
    input_ids: tuple[int, ...]
    answer_span: Span
    distractor_span: Span | None
    question_span: Span
    needle_span: Span
    answer_ids: tuple[int, ...]
    haystack_repeats: float
    depth_reached: float | None = None
    null: NullPrompt | None = None


@dataclass(frozen=True)
class NullPrompt:
    """A prompt whose question asks nothing, and where in `input_ids` that question stands."""

    input_ids: tuple[int, ...]
    question_span: Span


class PromptBuilder:
    """Builds the prompts of a plan for one tokenizer, all on the same haystack text from its start; with a
    `null_question` beside each prompt one that asks this instead.

    The background begins where the plan's seed rotates the haystack to, so pass the haystack as it was loaded. Raises
    `ModelError` for a tokenizer without offsets and `PlanError` when plan and haystack do not belong together.
    """

    def __init__(self, tokenizer: Any, haystack: Haystack, plan: ProbePlan, null_question: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{type(tokenizer).__name__} is not a fast tokenizer: it gives no character offsets")
        if haystack.sha256 != plan.haystack_sha256:
            raise PlanError(f"the plan is for haystack {plan.haystack_name!r}, not for this {haystack.name!r}")
        self.tokenizer = tokenizer
        self.plan = plan
        self.null_question = null_question
        self.template: Template = resolve_template(tokenizer, plan.template, plan.chat)
        self._special = special_tokens(tokenizer)
        self._refuse_special(haystack.text, f"haystack {haystack.name!r}")
        self._background = Background(tokenizer, haystack.rotated(plan.seed), max(plan.lengths))
        self._fixed: dict[Needle, tuple[int, tuple[int, ...]]] = {}

    def build(self, spec: TrialSpec) -> Prompt:
        """The longest prompt with `len(input_ids) + len(answer_ids) + 1 <= spec.length` that ends with a sentence.

        The needle stands behind the sentence end nearest to `spec.depth` percent of the background's tokens; see
        `Background.insertion_point` for texts without sentence ends. When the gap up to the length would exceed 5 %,
        the background ends within a sentence, at a word, or at a character in scripts without spaces. Raises
        `PlanError` when needle, question and answer alone are longer than the length, or the tokenizer cannot spell
        the needle.
        """
        fixed, answer_ids = self._fixed_tokens(spec.needle)
        room = spec.length - 1 - fixed
        if room < 0:
            raise PlanError(
                f"length {spec.length} is too small for needle {spec.needle.id!r}: "
                f"with question and answer it takes {fixed + 1} tokens"
            )
        wanted = spec.length - 1 - len(answer_ids)
        found = self._first_fitting(spec, self._sentence_ends(room), wanted)
        assert found is not None, "without background every prompt fits its room"
        for cuts_until in (self._background.words_until, self._background.characters_until):
            if wanted - len(found[1].ids) > _WIDEST_GAP * spec.length:
                found = self._first_fitting(spec, cuts_until(found[0], room + _SLACK), wanted) or found
        return self._prompt(spec, *found, answer_ids)

    def _sentence_ends(self, room: int) -> Iterator[int]:
        """Where the background may end, the furthest first; at last 0: no background."""
        end = self._background.fitting_end(room + _SLACK)
        while end > 0:
            yield end
            end = self._background.fitting_end(self._background.tokens_before(end) - 1)
        yield 0

    def _first_fitting(self, spec: TrialSpec, ends: Iterable[int], wanted: int) -> tuple[int, Encoded] | None:
        for end in ends:
            encoded = self._encode(self._text(spec, end))
            if len(encoded.ids) <= wanted:
                return end, encoded
        return None

    def _context(self, spec: TrialSpec, end: int) -> tuple[str, int]:
        """The background up to `end` with the needle in it, and where in it the needle begins."""
        place = self._background.insertion_point(end, spec.depth)
        before, after = self._background.text[:place], self._background.text[place:end]
        lead = " " if before else ""
        gap = " " if after and not after[0].isspace() else ""
        return f"{before}{lead}{spec.needle.text}{gap}{after}", len(before) + len(lead)

    def _text(self, spec: TrialSpec, end: int) -> str:
        return self.template.render(self._context(spec, end)[0], spec.needle.question)

    def _prompt(self, spec: TrialSpec, end: int, encoded: Encoded, answer_ids: tuple[int, ...]) -> Prompt:
        needle = spec.needle
        context, begin = self._context(spec, end)
        begin += len(self.template.head)
        question = len(self.template.head) + len(context) + len(self.template.middle)
        distractor = None
        if needle.distractor is not None and (characters := needle.distractor_characters):
            distractor = self._span(encoded, characters.shift(begin), needle.distractor)
        return Prompt(
            trial_id=spec.id,
            text=self.template.render(context, needle.question),
            input_ids=tuple(encoded.ids),
            answer_span=self._span(encoded, needle.answer_characters.shift(begin), needle.answer),
            distractor_span=distractor,
            question_span=self._span(encoded, Span(question, question + len(needle.question)), needle.question),
            needle_span=self._span(encoded, Span(begin, begin + len(needle.text)), needle.text),
            answer_ids=answer_ids,
            haystack_repeats=self._background.repeats(end),
            depth_reached=self._background.depth_at(self._background.insertion_point(end, spec.depth), end),
            null=None if self.null_question is None else self._null(context, question, self.null_question),
        )

    def _null(self, context: str, begin: int, question: str) -> NullPrompt:
        """The prompt with `question`, which begins at the character `begin`."""
        encoded = self._encode(self.template.render(context, question))
        return NullPrompt(tuple(encoded.ids), self._span(encoded, Span(begin, begin + len(question)), question))

    def _span(self, encoded: Encoded, characters: Span, text: str) -> Span:
        """The tokens of `characters`, proven by decoding them. Raises `PlanError` when `text` is not in them."""
        try:
            span = token_span(encoded.offsets, characters)
        except ValueError:
            raise PlanError(f"the tokenizer makes no token of {text!r}") from None
        decoded = str(self.tokenizer.decode(encoded.ids[span.start : span.end]))
        if _letters(text) not in _letters(decoded):
            raise PlanError(f"the tokenizer cannot spell {text!r}: its tokens decode to {decoded!r}")
        return span

    def _fixed_tokens(self, needle: Needle) -> tuple[int, tuple[int, ...]]:
        """Tokens of a prompt without background, answer included; and the answer's ids."""
        if needle not in self._fixed:
            self._refuse_special(f"{needle.text} {needle.question}", f"needle {needle.id!r}")
            text = self.template.render(needle.text, needle.question)
            prompt = self._encode(text).ids
            answer = self._answer_ids(text, prompt, self.template.lead + needle.answer)
            self._fixed[needle] = len(prompt) + len(answer), tuple(answer)
        return self._fixed[needle]

    def _answer_ids(self, text: str, prompt: list[int], answer: str) -> list[int]:
        """The ids behind the prompt when both are tokenized together; of `answer` alone when they merge."""
        together = self._encode(text + answer).ids
        if len(together) > len(prompt) and together[: len(prompt)] == prompt:
            return together[len(prompt) :]
        alone = encode(self.tokenizer, answer, special=False).ids
        if not alone:
            raise PlanError(f"the tokenizer makes no token of {answer!r}")
        return alone

    def _encode(self, text: str) -> Encoded:
        return encode(self.tokenizer, text, special=not self.template.chat)

    def _refuse_special(self, text: str, owner: str) -> None:
        token = special_token_in(text, self._special)
        if token is not None:
            raise PlanError(f"{owner} contains {token!r}, which is a special token of the tokenizer")


class HasTokens(Protocol):
    """A prompt of any kind."""

    @property
    def trial_id(self) -> str:
        """The trial that it belongs to."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Its tokens."""


def duplicate_prompts(prompts: Iterable[HasTokens]) -> list[tuple[str, ...]]:
    """Groups of trials with the very same `input_ids`: two or more trial ids each, in the order of the prompts."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.input_ids, []).append(prompt.trial_id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]


def prompt_record(prompt: Prompt) -> dict[str, Any]:
    """The prompt as a line of `--dump-prompts`; spans are `[start, end]`, half-open, in tokens of `input_ids`."""
    distractor, null = prompt.distractor_span, prompt.null
    asked = (
        {}
        if null is None
        else {
            "question_span": [prompt.question_span.start, prompt.question_span.end],
            "null_input_ids": list(null.input_ids),
            "null_question_span": [null.question_span.start, null.question_span.end],
        }
    )
    return {
        "trial": prompt.trial_id,
        "input_ids": list(prompt.input_ids),
        "answer_span": [prompt.answer_span.start, prompt.answer_span.end],
        "distractor_span": [distractor.start, distractor.end] if distractor else None,
        "answer_ids": list(prompt.answer_ids),
        "depth_reached": prompt.depth_reached,
        **asked,
        "text": prompt.text,
    }


def _letters(text: str) -> str:
    """What must survive a tokenizer: everything but case, spaces and the form in which accents are written."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
