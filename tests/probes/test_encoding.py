from __future__ import annotations

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from headprobe.errors import OptionError
from headprobe.probes.encoding import encode, special_token_in, special_tokens
from tests.toy_tokenizers import BOS, EOS, toy_tokenizer, with_chat_template


def framed(frame: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts a text into `frame`, such as `<|begin|> $A <|end|>`."""
    tokenizer = with_chat_template("")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(BOS, 0), (EOS, 1)]
    )
    return tokenizer


def bare(text: str) -> list[int]:
    return list(toy_tokenizer("chat")(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("frame", "opening"),
    [
        ("$A", []),
        (f"{BOS} $A", [0]),
        (f"{BOS} $A {EOS}", [0]),
        (f"{BOS} $A {EOS} {BOS} {EOS}", [0]),
        (f"$A {EOS} {EOS}", []),
        (f"{BOS} {EOS} $A {EOS}", [0, 1]),
    ],
)
def test_what_opens_a_text_is_added_and_what_closes_it_is_not(frame: str, opening: list[int]) -> None:
    tokenizer = framed(frame)
    found = encode(tokenizer, "Ada keeps bees.")
    assert found.ids == opening + bare("Ada keeps bees.")
    assert found.offsets[: len(opening)] == [(0, 0)] * len(opening)
    assert found.offsets[-1][1] == len("Ada keeps bees.")
    assert encode(tokenizer, "Ada keeps bees.", special=False).ids == bare("Ada keeps bees.")


@pytest.mark.parametrize(
    ("frame", "text", "expected"),
    [
        (f"{BOS} $A", f"{BOS}User: Hi", [0]),
        (f"{BOS} $A {EOS}", f"{BOS}User: Hi", [0]),
        (f"{BOS} {EOS} $A", f"{BOS}{EOS}User: Hi", [0, 1]),
        (f"{BOS} {EOS} $A", f"{EOS}User: Hi", [0, 1]),
        ("$A", f"{BOS}User: Hi", [0]),
        (f"{EOS} $A", f"{BOS}User: Hi", [1, 0]),
    ],
)
def test_a_text_that_brings_its_begin_token_gets_no_second_one(frame: str, text: str, expected: list[int]) -> None:
    found = encode(framed(frame), text)
    assert found.ids == expected + bare("User: Hi")
    assert len(found.offsets) == len(found.ids)


def test_a_text_that_ends_with_an_end_token_of_its_own_keeps_it() -> None:
    assert encode(framed(f"{BOS} $A {EOS}"), f"Hi{EOS}").ids == [0, *bare("Hi"), 1]


def test_every_toy_tokenizer_gives_what_it_gives_less_what_closes(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Ada is 41 years old."
    whole = list(tokenizer(text)["input_ids"])
    closing = {tokenizer.convert_tokens_to_ids(name) for name in ("[SEP]", "</s>")}
    assert encode(tokenizer, text).ids == (whole[:-1] if whole[-1] in closing else whole)


def test_tokens_within_counts_what_ends_before_a_character() -> None:
    found = encode(toy_tokenizer("words"), "Ada is old")
    assert [found.tokens_within(end) for end in (0, 2, 3, 6, 9, 10)] == [0, 0, 1, 2, 2, 3]


def test_a_tokenizer_without_offsets_is_read_all_the_same() -> None:
    class Slow:
        is_fast = False

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            assert options == {
                "add_special_tokens": True, "return_offsets_mapping": False, "return_special_tokens_mask": True,
                "return_attention_mask": False, "verbose": False,
            }  # fmt: skip
            return {"input_ids": [0, 7, 8, 1], "special_tokens_mask": [1, 0, 0, 1]}

    assert encode(Slow(), "Hi").ids == [0, 7, 8]
    assert encode(Slow(), "Hi").offsets == []


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(OptionError, match="half of a surrogate pair at character 2"):
        encode(toy_tokenizer("byte-bpe"), "ab\udce9")


def test_special_tokens_are_found_in_a_text() -> None:
    tokens = special_tokens(toy_tokenizer("chat"))
    assert {BOS, EOS, "<|user|>"} <= set(tokens)
    assert special_token_in(f"a{EOS}b", tokens) == EOS
    assert special_token_in("a <| b", tokens) is None
