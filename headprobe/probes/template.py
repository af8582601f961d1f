"""What stands around context and question: plain text, or a tokenizer's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headprobe.errors import ModelError, OptionError
from headprobe.probes.chat_template import render_message

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
