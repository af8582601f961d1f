"""What stands around context and question: plain text, or a tokenizer's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headprobe.errors import ModelError, OptionError

PLAIN_TEXT = "Text: {context}\n\nQuestion: {question}\nAnswer:"
CHAT_TEXT = "{context}\n\nQuestion: {question}\nAnswer with the full sentence from the text."

_SLOTS = ("{context}", "{question}")
_MARKS = ("@@context@@", "@@question@@")
_SAMPLE = ('She said: "No, it isn\'t." <3 & co.\n\nThen, at 7, they left.', "What's {left}?")
_FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{- form|replace('%Y', '2024')|replace('%m', '07')|replace('%d', '26')"
    "|replace('%B', 'July')|replace('%b', 'Jul')|replace('%A', 'Friday')|replace('%H', '12')|replace('%M', '00')"
    "|replace('%S', '00') -}}{%- endmacro -%}"
)


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


def resolve_template(tokenizer: Any, template: str = "default", chat: bool = True) -> Template:
    """The template that `tokenizer` will see: wrapped as one user message when it has a chat template and `chat`.

    `template` is `default` or a text with {context} before {question}. Raises `OptionError` when the slots are
    missing, `ModelError` when the chat template fails or alters the text.
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
    parts = _parts(_chat(tokenizer, message.render(*_MARKS)), _MARKS)
    rendered = Template(*parts, lead="", chat=True) if parts else None
    if rendered is None or rendered.render(*_SAMPLE) != _chat(tokenizer, message.render(*_SAMPLE)):
        raise ModelError("the chat template alters the text of a message; use --no-chat-template")
    return rendered


def _parts(text: str, slots: tuple[str, str]) -> tuple[str, str, str] | None:
    """What stands before, between and behind the slots; None unless each is there once and in this order."""
    head, found, rest = text.partition(slots[0])
    middle, found_too, tail = rest.partition(slots[1])
    repeated = any(slot in part for slot in slots for part in (head, middle, tail))
    return (head, middle, tail) if found and found_too and not repeated else None


def _chat(tokenizer: Any, content: str) -> str:
    """One user message as the chat template renders it, up to where the answer begins.

    Thinking is switched off where the template knows `enable_thinking`, and a template that asks for today's date
    gets a fixed one, so that the same plan gives the same prompts on every day.
    """
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )
    except Exception as error:  # a template is a program of its own and may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the chat template cannot be rendered ({reason}); use --no-chat-template") from error
