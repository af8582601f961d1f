"""Questions of tasks as tokens: in the model's own template, cut to its window, with the context's end kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from headprobe.errors import OptionError, PlanError
from headprobe.evaluation.metrics import METRICS, metric_named
from headprobe.evaluation.task import TaskQuestion, TaskSet
from headprobe.models.loading import LoadedModel
from headprobe.probes.encoding import encode, resolve_template, special_token_in, special_tokens

CUTS = ("middle", "left", "refuse")
_BOTH = "{context}{question}"


@dataclass(frozen=True, eq=False)
class TaskPrompt:
    """A question as the model reads it.

    `context_tokens`: its first tokens up to where the context ends, None where no context stands apart; `cut_tokens`:
    how many were left out for the window; `special`: a special token that its text holds, and is read as.
    """

    trial_id: str
    set: str
    input_ids: tuple[int, ...]
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str
    max_new_tokens: int
    first_line: bool
    cluster: str
    context_tokens: int | None = None
    cut_tokens: int = 0
    special: str | None = None

    def score(self, response: str) -> float:
        """What `response` is worth, 0 to 1; of a set that wants one line only the first counts."""
        said = response.lstrip("\n").split("\n")[0] if self.first_line else response
        return METRICS[self.metric].score(said, self.answers, self.classes)


class Encoder:
    """Questions of one set as token ids: with the tokenizer's chat template around them where `chat` and it has one."""

    def __init__(self, loaded: LoadedModel, chat: bool) -> None:
        self._tokenizer: Any = loaded.tokenizer
        self._chat = chat and bool(self._tokenizer.chat_template)
        self._template = resolve_template(self._tokenizer, _BOTH, chat=self._chat, advice="use --no-chat-template")
        self._around = "" if self._chat else self._template.tail

    def ids(self, text: str, lead: str) -> list[int]:
        """The prompt of a message `text`."""
        return encode(self._tokenizer, self._whole(text, lead), special=not self._chat).ids

    def tokens_to(self, text: str, lead: str, end: int) -> int:
        """How many tokens of the prompt end at or before the character `end` of `text`."""
        encoded = encode(self._tokenizer, self._whole(text, lead), special=not self._chat)
        return encoded.tokens_within(len(self._template.head if self._chat else "") + end)

    def pieces(self, text: str) -> list[tuple[int, int]]:
        """The characters of each token of `text` alone."""
        return encode(self._tokenizer, text, special=False).offsets

    def _whole(self, text: str, lead: str) -> str:
        if not self._chat:
            return f"{text}{_joined(text, lead)}"
        return f"{self._template.head}{text}{self._template.tail}{lead}"


def _joined(text: str, lead: str) -> str:
    """`lead` behind `text` with a space between them, where no template stands there."""
    return f" {lead}" if lead and not text[-1:].isspace() else lead


def prompts_of(
    loaded: LoadedModel, sets: Sequence[TaskSet], *, limit: int | None = None, cut: str | None = None,
    chat: bool = True, max_new_tokens: int | None = None,
) -> tuple[TaskPrompt, ...]:  # fmt: skip
    """The prompts of all `sets`, which take turns: the first of each, the second of each.

    `limit`: at most N of each set; `cut`: overrules the sets' own; `refuse` leaves nothing out. Raises
    `OptionError` for an answer longer than the window, `PlanError` for a prompt that does not fit where none may be
    cut, or whose template alone is too long.
    """
    if cut is not None and cut not in CUTS:
        raise OptionError(f"--cut is {cut!r}, need one of {', '.join(CUTS)}")
    found = []
    for each in sets:
        maker = _Maker(loaded, each, each.cut if cut is None else cut, chat, max_new_tokens)
        found.append([maker.prompt(question) for question in islice(each.questions(loaded), limit)])
    most = max(map(len, found), default=0)
    return tuple(own[place] for place in range(most) for own in found if place < len(own))


class _Maker:
    """Makes the prompts of one set."""

    def __init__(self, loaded: LoadedModel, own: TaskSet, cut: str, chat: bool, new_tokens: int | None) -> None:
        self._set, self._cut, self._window, self._new_tokens = own, cut, loaded.window, new_tokens
        self._encoder = Encoder(loaded, chat and own.chat)
        self._special = special_tokens(loaded.tokenizer)

    def prompt(self, question: TaskQuestion) -> TaskPrompt:
        new_tokens = self._new_tokens or question.max_new_tokens or self._set.max_new_tokens
        if new_tokens >= self._window:
            raise OptionError(
                f"{question.id} wants {new_tokens} new tokens, the model's window has {self._window}: "
                "--max-new-tokens sets another number"
            )
        ids, context, left_out = self._tokens(question, self._window - new_tokens)
        return TaskPrompt(
            trial_id=question.id,
            set=self._set.name,
            input_ids=tuple(ids),
            answers=question.answers,
            classes=question.classes,
            metric=metric_named(question.metric or self._set.metric).name,
            max_new_tokens=new_tokens,
            first_line=self._set.first_line,
            cluster=question.cluster or question.id,
            context_tokens=context,
            cut_tokens=left_out,
            special=special_token_in(question.text, self._special) if not question.input_ids else None,
        )

    def _tokens(self, question: TaskQuestion, room: int) -> tuple[Sequence[int], int | None, int]:
        """The ids, tokens up to the end of the context, and how many were left out."""
        if question.input_ids:
            if len(question.input_ids) > room:
                raise PlanError(f"{question.id} has {len(question.input_ids)} tokens, {room} fit beside its answer")
            return question.input_ids, question.context_tokens, 0
        text, end = question.text, len(question.head) + len(question.context)
        ids = self._encoder.ids(text, question.lead)
        tokens = len(ids)
        if tokens > room:
            text, end, ids = self._shortened(question, tokens, room)
        has_context = bool(question.context)
        context = self._encoder.tokens_to(text, question.lead, end) if has_context else None
        return ids, context or None, tokens - len(ids)

    def _shortened(self, question: TaskQuestion, tokens: int, room: int) -> tuple[str, int, list[int]]:
        """The text that fits into `room` tokens, where its context ends then, and its ids."""
        if self._cut == "refuse":
            raise PlanError(f"{question.id} has {tokens} tokens, {room} fit beside its answer; --cut middle cuts it")
        pieces, end = self._encoder.pieces(question.text), len(question.head) + len(question.context)
        keep = len(pieces) - (tokens - room)
        while keep >= 2:
            start, stop = _gap(pieces, keep, self._cut)
            text = question.text[:start] + question.text[stop:]
            ids = self._encoder.ids(text, question.lead)
            if len(ids) <= room:
                return text, min(end, start) if end <= stop else end - (stop - start), ids
            keep -= max(1, len(ids) - room)
        raise PlanError(f"{question.id}: what stands around the context leaves no room in {room} tokens")


def _gap(pieces: Sequence[tuple[int, int]], keep: int, cut: str) -> tuple[int, int]:
    """The characters that are left out so that about `keep` tokens stay: both halves of them, or the last ones.

    >>> _gap([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], 4, "middle")
    (2, 3)
    """
    if cut == "left":
        return 0, pieces[len(pieces) - keep][0]
    half = keep // 2
    return pieces[half - 1][1], pieces[len(pieces) - half][0]


def prompts_sha256(prompts: Sequence[TaskPrompt]) -> str:
    """Hash of all that decides what the prompts ask and how they are measured."""
    parts = [
        (p.trial_id, p.input_ids, p.answers, p.classes, p.metric, p.max_new_tokens, p.first_line, p.context_tokens)
        for p in prompts
    ]
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()
