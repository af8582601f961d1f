"""Text as token ids: one way for all prompts, and what a template puts around context and question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headprobe.errors import ModelError, OptionError
from headprobe.probes.chat_template import render_message

# Text as token ids: one way for needle prompts, prompts of one's own, and what is measured on either.

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Encoded:
    """Token ids, and the characters `[start, end)` of each; special tokens that were added have `(0, 0)`.

    `offsets` is empty for a tokenizer that gives none.
    """

    ids: list[int]
    offsets: Offsets

    def tokens_within(self, end: int) -> int:
        """How many tokens end at or before the character `end`, those that were added in front included."""
        return sum(1 for _, stop in self.offsets if stop <= end)


def encode(tokenizer: Any, text: str, *, special: bool = True) -> Encoded:
    """`text` as a model is to continue it: after the special tokens that open a text, without any that close it.

    What `text` begins with itself is not added again: a prompt that a chat template rendered brings its begin token.
    Without `special` nothing is added. Raises `OptionError` for halves of surrogate pairs, which are not text.
    """
    _check_unicode(text)
    has_offsets = bool(getattr(tokenizer, "is_fast", True))
    encoded = tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=has_offsets,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids, mask = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    offsets: Offsets = list(encoded["offset_mapping"]) if has_offsets else []
    if not special:
        return Encoded(ids, offsets)
    end = len(ids)
    while end and mask[end - 1] and offsets[end - 1 : end] in ([(0, 0)], []):
        end -= 1
    opening = next((i for i in range(end) if not mask[i]), end)
    begin = opening - _overlap(ids[:opening], ids[opening:end])
    kept = [*range(begin), *range(opening, end)]
    return Encoded([ids[i] for i in kept], [offsets[i] for i in kept] if has_offsets else [])


def _overlap(opening: Sequence[int], content: Sequence[int]) -> int:
    """How many of the last ids of `opening` are the first ones of `content`."""
    lengths = range(min(len(opening), len(content)), 0, -1)
    return next((n for n in lengths if list(opening[-n:]) == list(content[:n])), 0)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"half of a surrogate pair at character {error.start}: this is not text") from None


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """How the tokenizer writes its special tokens."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def special_token_in(text: str, tokens: Sequence[str]) -> str | None:
    """The first of `tokens` that `text` contains: there it would be read as that token, not as text."""
    beginnings = {token[:2]: token[:2] in text for token in tokens}  # hundreds begin alike, and the text may be long
    return next((token for token in tokens if beginnings[token[:2]] and token in text), None)


# What stands around context and question: plain text, or a tokenizer's chat template.

PLAIN_TEXT = "Text: {context}\n\nQuestion: {question}\nAnswer:"
CHAT_TEXT = "{context}\n\nQuestion: {question}\nAnswer with the full sentence from the text."

_SLOTS = ("{context}", "{question}")
_MARKS = ("@@context@@", "@@question@@")
_SAMPLE = ('She said: "No, it isn\'t." <3 & co.\n\nThen, at 7, they left.', "What's {left}?")


@dataclass(frozen=True)
class Template:
    """The prompt is `head` + context + `middle` + question + `tail`; the answer follows with `lead` before it.

    With `chat` the head holds the special tokens already, so that the tokenizer must not add its own.
    """

    head: str
    middle: str
    tail: str
    lead: str
    chat: bool = False

    @property
    def text(self) -> str:
        """The template with its two slots, as a score file quotes it."""
        return f"{self.head}{{context}}{self.middle}{{question}}{self.tail}"

    def render(self, context: str, question: str) -> str:
        """The prompt's text."""
        return f"{self.head}{context}{self.middle}{question}{self.tail}"


def resolve_template(
    tokenizer: Any, template: str = "default", chat: bool = True, advice: str = "use --no-chat-template"
) -> Template:
    """The template that `tokenizer` will see: wrapped as one user message when it has a chat template and `chat`.

    `template` is `default` or a text with {context} before {question}; `advice` is what to do about a chat template
    that cannot be used. Raises `OptionError` when the slots are missing, `ModelError` when the chat template fails,
    alters the text, or passes the limits of `headprobe.probes.chat_template`.
    """
    chat = chat and bool(getattr(tokenizer, "chat_template", None))
    if template == "default":
        template = CHAT_TEXT if chat else PLAIN_TEXT
    found = _parts(template, _SLOTS)
    if found is None:
        raise OptionError(f"the template {template!r} must hold {_SLOTS[0]} and then {_SLOTS[1]}, each once")
    head, middle, tail = found
    if not chat:
        return Template(head, middle, tail, "" if tail[-1:].isspace() else " ")
    message = Template(head, middle, tail, "")
    parts = _parts(render_message(tokenizer, message.render(*_MARKS), advice), _MARKS)
    rendered = Template(*parts, lead="", chat=True) if parts else None
    if rendered is None or rendered.render(*_SAMPLE) != render_message(tokenizer, message.render(*_SAMPLE), advice):
        raise ModelError(f"the chat template alters the text of a message; {advice}")
    return rendered


def _parts(text: str, slots: tuple[str, str]) -> tuple[str, str, str] | None:
    """What stands before, between and behind the slots; None unless each is there once and in this order."""
    head, found, rest = text.partition(slots[0])
    middle, found_too, tail = rest.partition(slots[1])
    repeated = any(slot in part for slot in slots for part in (head, middle, tail))
    return (head, middle, tail) if found and found_too and not repeated else None
