"""Text as token ids: one way for needle prompts, prompts of one's own, and what is measured on either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headprobe.errors import OptionError

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
    """`text` as a model is to go on from it: behind the special tokens that open a text, without any that close it.

    What `text` begins with itself is not added again: a prompt that a chat template rendered brings its begin token.
    Without `special` nothing is added. Raises `OptionError` for halves of surrogate pairs, which are no text.
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
        raise OptionError(f"half of a surrogate pair at character {error.start}: this is no text") from None


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """How the tokenizer writes its special tokens."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def special_token_in(text: str, tokens: Sequence[str]) -> str | None:
    """The first of `tokens` that `text` contains: there it would be read as that token, not as text."""
    beginnings = {token[:2]: token[:2] in text for token in tokens}  # hundreds begin alike, and the text may be long
    return next((token for token in tokens if beginnings[token[:2]] and token in text), None)
