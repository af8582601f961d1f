from __future__ import annotations

import random

import pytest

from headprobe.probes.haystack import load_haystack
from headprobe.probes.sentences import sentence_ends


def sentences(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three! Four", ["One.", "Two?", "Three!", "Four"]),
        ('"Stop." He did.', ['"Stop."', "He did."]),
        ("“Stop!” she cried. “Why?” He left.", ["“Stop!” she cried.", "“Why?”", "He left."]),
        ("(It rained.) We stayed.", ["(It rained.)", "We stayed."]),
        ("It cost 3.50 at 9.15. Cheap.", ["It cost 3.50 at 9.15.", "Cheap."]),
        ("Mr. Hay met Dr. Low and J. P. Moon. They sat.", ["Mr. Hay met Dr. Low and J. P. Moon.", "They sat."]),
        ("So did I. Then we left.", ["So did I.", "Then we left."]),
        ("Fruit, e.g. Plums, is dear. See Fig. 3 and no. 4. No. I won't.",
         ["Fruit, e.g. Plums, is dear.", "See Fig. 3 and no. 4.", "No.", "I won't."]),
        ("He waited... and waited. Gone... She slept.", ["He waited... and waited.", "Gone...", "She slept."]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("A heading\n\nOne. Two\n\nEnd", ["A heading", "One.", "Two", "End"]),
        ("One.\nTwo.", ["One.", "Two."]),
        ("她来了。他走了！好", ["她来了。", "他走了！", "好"]),
        ("See www.example.org for more. Or not.", ["See www.example.org for more.", "Or not."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_sees_it(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_spaces_at_the_end_belong_to_no_sentence() -> None:
    assert sentence_ends("One.  \n") == [4]


def test_ends_ascend_and_stand_before_a_space_or_the_end() -> None:
    random.seed(1)
    for _ in range(300):
        text = "".join(random.choices("aB .?!…\"'\n1", k=random.randint(0, 40)))
        ends = sentence_ends(text)
        assert ends == sorted(set(ends))
        assert all(0 < end <= len(text) for end in ends)
        assert all(end == len(text) or text[end].isspace() for end in ends)


def test_the_shipped_text_has_sentences_of_reasonable_length() -> None:
    text = load_haystack("all").text
    ends = sentence_ends(text)
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert len(text.split()) / len(ends) < 25
    assert max(lengths) < 400
    assert all(text[end - 1] in ".?!\"'”’:" for end in ends)
