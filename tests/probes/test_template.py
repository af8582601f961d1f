from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from headprobe.errors import ModelError, OptionError
from headprobe.probes.encoding import resolve_template
from tests.toy_tokenizers import CHAT_TEMPLATE, toy_tokenizer, with_chat_template

CONTEXT, QUESTION = 'He said "yes" & left.\n\nThen {braces}.', "What's {context} <7>?"


def test_without_a_chat_template_the_prompt_is_plain(byte_bpe: PreTrainedTokenizerFast) -> None:
    template = resolve_template(byte_bpe)
    assert template.render("C.", "Q?") == "Text: C.\n\nQuestion: Q?\nAnswer:"
    assert template.lead == " "
    assert template.text == "Text: {context}\n\nQuestion: {question}\nAnswer:"
    assert not template.chat


def test_a_chat_template_wraps_one_user_message() -> None:
    template = resolve_template(toy_tokenizer("chat"))
    assert template.render("C.", "Q?") == (
        "<|begin|><|user|>\nC.\n\nQuestion: Q?\nAnswer with the full sentence from the text.<|end|>\n<|assistant|>\n"
    )
    assert template.lead == ""
    assert template.chat


def test_rendering_equals_what_the_tokenizer_renders() -> None:
    tokenizer = toy_tokenizer("chat")
    content = f"{CONTEXT}\n\nQuestion: {QUESTION}\nAnswer with the full sentence from the text."
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert resolve_template(tokenizer).render(CONTEXT, QUESTION) == expected


def test_the_chat_template_can_be_left_out() -> None:
    assert resolve_template(toy_tokenizer("chat"), chat=False) == resolve_template(toy_tokenizer("byte-bpe"))


def test_an_own_template_is_used_in_both_ways(byte_bpe: PreTrainedTokenizerFast) -> None:
    own = "Read: {context} Say: {question}\n"
    assert resolve_template(byte_bpe, own).render("C.", "Q?") == "Read: C. Say: Q?\n"
    assert resolve_template(byte_bpe, own).lead == ""
    assert resolve_template(toy_tokenizer("chat"), own).render("C.", "Q?") == (
        "<|begin|><|user|>\nRead: C. Say: Q?<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{context}",
        "{question}",
        "{question} {context}",
        "{context} {context} {question}",
        "{context}{question}{question}",
    ],
)
def test_a_template_needs_each_slot_once_and_the_context_first(byte_bpe: PreTrainedTokenizerFast, text: str) -> None:
    with pytest.raises(OptionError, match=r"must hold \{context\} and then \{question\}, each once"):
        resolve_template(byte_bpe, text)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d %b %Y"])
def test_a_template_that_asks_for_the_date_gets_a_fixed_one(form: str) -> None:
    dated = "Today: {{ strftime_now('" + form + "') }}\n" + CHAT_TEMPLATE
    head = resolve_template(with_chat_template(dated)).head
    assert head.startswith({"%Y-%m-%d": "Today: 2024-07-26\n", "%d %b %Y": "Today: 26 Jul 2024\n"}[form])


def test_thinking_is_switched_off_where_the_template_knows_it() -> None:
    thinking = CHAT_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<nothink>{% endif %}"
    assert resolve_template(with_chat_template(thinking)).tail.endswith("<|assistant|>\n<nothink>")


@pytest.mark.parametrize("change", ["| upper", "| truncate(5)", "| tojson", "| replace('\\n', ' ')"])
def test_a_chat_template_that_alters_the_text_is_refused(change: str) -> None:
    tokenizer = with_chat_template(CHAT_TEMPLATE.replace("| trim", change))
    with pytest.raises(ModelError, match="alters the text of a message; use --no-chat-template"):
        resolve_template(tokenizer)


def test_a_chat_template_that_fails_is_refused() -> None:
    failing = "{{ raise_exception('a system message is needed') }}"
    with pytest.raises(ModelError, match=r"cannot be rendered \(.*a system message is needed.*--no-chat-template"):
        resolve_template(with_chat_template(failing))
