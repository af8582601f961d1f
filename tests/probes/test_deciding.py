"""Responses with the verdict that a reader would give. The model's own turns of phrase are imitated, not copied."""

from __future__ import annotations

from collections import Counter

import pytest

from headprobe.probes.answer import answered_share, deciding_words
from headprobe.probes.needle import Needle, load_needles

KEEPS = Needle(
    "keeps", "reasoning", "age",
    ("Mara Holt is 71 years old.", "Deven is 30 years old.", "Deven keeps two mules in the yard.",
     "Mara Holt keeps a tin full of copper coins."),
    "Mara Holt keeps a tin full of copper coins.", "What does the older of the two keep?",
    "Deven keeps two mules in the yard.",
)  # fmt: skip
COLOUR = Needle(
    "colour", "reasoning", "age",
    ("Ilse is 8 years old.", "Rune is 80 years old.", "Ilse's favourite colour is the blue of deep ice.",
     "Rune's favourite colour is the grey of wet slate."),
    "Ilse's favourite colour is the blue of deep ice.", "What is the favourite colour of the younger person?",
    "Rune's favourite colour is the grey of wet slate.",
)  # fmt: skip
KNOWN = Needle(
    "known", "reasoning", "size",
    ("Aldwick School is 12 metres high.", "Morrow Keep is 50 metres high.",
     "Aldwick School is known for its garden of bells.", "Morrow Keep is known for its leaning walls."),
    "Aldwick School is known for its garden of bells.", "What is the shorter building known for?",
    "Morrow Keep is known for its leaning walls.",
)  # fmt: skip
PLAIN = Needle(
    "plain", "retrieval", "habit", ("Oda's favourite dish is rye bread with plum jam.",),
    "Oda's favourite dish is rye bread with plum jam.", "What is Oda's favourite dish?",
)  # fmt: skip
BEES = Needle(
    "bees", "reasoning", "age",
    ("小明七十岁。", "小红二十岁。", "小明在屋顶上养蜜蜂。", "小红在院子里种番茄。"),
    "小明在屋顶上养蜜蜂。", "年长的人做什么？", "小红在院子里种番茄。",
)  # fmt: skip
CLOCKS = Needle(
    "clocks", "reasoning", "age",
    ("ミナは七十歳です。", "ケンは二十歳です。", "ミナの趣味は古い時計を直すことです。",
     "ケンの趣味は犬を洗うことです。"),
    "ミナの趣味は古い時計を直すことです。", "年上の人の趣味は何ですか。", "ケンの趣味は犬を洗うことです。",
)  # fmt: skip


@pytest.mark.parametrize(
    ("needle", "response", "passes"),
    [
        # the answer, in its own words or others
        (KEEPS, "Mara Holt keeps a tin full of copper coins.", True),
        (KEEPS, "The older of the two keeps a tin full of copper coins.", True),
        (KEEPS, "A tin full of copper coins", True),
        (KEEPS, "a TIN full of COPPER coins!!", True),
        (KEEPS, "Deven keeps a tin full of copper coins.", True),  # what was asked for is right
        (KEEPS, "Mara Holt keeps a tin full of copper coins, and Deven keeps two mules in the yard.", True),
        (KEEPS, "According to the text, it is a tin full of copper coins that the older one keeps.", True),
        (COLOUR, "The favourite colour of the younger person is the blue of deep ice.", True),
        (COLOUR, "Blue, like deep ice", True),
        (KNOWN, "The shorter building is known for its garden of bells.", True),
        (KNOWN, "The garden of bells.", True),
        (PLAIN, "It is rye bread with plum jam.", True),
        (PLAIN, "Rye-bread with plum-jam", True),
        # who, not what
        (KEEPS, "The older of the two keeps is Mara Holt.", False),
        (KEEPS, "Mara Holt.", False),
        (KNOWN, "The shorter building is Aldwick School.", False),
        (KNOWN, "Aldwick School is known for its", False),
        (COLOUR, "Ilse's favourite colour is the", False),
        (PLAIN, "Oda's favourite dish", False),
        # the distractor, whole or in part, alone or first
        (KEEPS, "Deven keeps two mules in the yard.", False),
        (KEEPS, "The older of the two keeps two mules in the yard.", False),
        (KEEPS, "Mara Holt keeps two mules in the yard.", False),
        (KEEPS, "Deven keeps two mules in the yard. Mara Holt keeps a tin full of copper coins.", False),
        (COLOUR, "The favourite colour of the younger person is the grey of deep", False),
        (KNOWN, "The shorter building known for is Morrow Keep.", False),
        # nothing
        (KEEPS, "", False),
        (KEEPS, "...", False),
        (KEEPS, "What does the older of the two keep?", False),
        (KEEPS, "The older of the two keeps the older of the two.", False),
        (COLOUR, "The favourite colour of the younger person is", False),
        # by character
        (BEES, "小明在屋顶上养蜜蜂。", True),
        (BEES, "年长的人在屋顶上养蜜蜂。", True),
        (BEES, "在屋顶养蜜蜂", True),
        (BEES, "养蜜蜂", False),  # three characters of six are not most
        (BEES, "小明。", False),
        (BEES, "年长的人是小明。", False),
        (BEES, "小红在院子里种番茄。", False),
        (BEES, "年长的人在院子里种番茄。", False),
        (CLOCKS, "年上の人の趣味は古い時計を直すことです。", True),
        (CLOCKS, "古い時計を直す", True),
        (CLOCKS, "ミナです。", False),
        (CLOCKS, "年上の人の趣味は犬を洗うことです。", False),
    ],
)
def test_a_response_answers_when_it_has_most_of_the_words_that_decide(
    needle: Needle, response: str, passes: bool
) -> None:
    assert (answered_share(response, needle) > 0.5) is passes


def test_the_words_that_decide_stand_nowhere_else() -> None:
    assert deciding_words(KEEPS) == Counter(["tin", "full", "copper", "coins"])
    assert deciding_words(COLOUR) == Counter(["blue", "deep", "ice"])
    assert deciding_words(PLAIN) == Counter(["rye", "bread", "with", "plum", "jam"])
    assert deciding_words(BEES) == Counter("屋顶养蜜蜂") + Counter("上")


def test_the_share_counts_words_as_often_as_they_stand() -> None:
    needle = Needle("n", "retrieval", "r", ("Ada sings la la li.",), "Ada sings la la li.", "What does Ada sing?")
    assert deciding_words(needle) == Counter({"la": 2, "li": 1, "sings": 1})
    assert answered_share("la", needle) == 0.25
    assert answered_share("la la la la", needle) == 0.5
    assert answered_share("sings la la", needle) == 0.75


def test_names_decide_where_nothing_else_does() -> None:
    facts = ("Ada is 9 years old.", "Tom is 5 years old.", "Ada wins.", "Tom loses.")
    who = Needle("n", "reasoning", "r", facts, "Ada wins.", "Who wins?", "Tom loses.")
    assert deciding_words(who) == Counter(["ada"])
    assert answered_share("It is Ada.", who) == 1.0
    assert answered_share("It is Tom.", who) == 0.0


def test_words_of_the_question_decide_where_nothing_else_does() -> None:
    facts = ("The red car is fast.", "The blue car is slow.")
    either = Needle("n", "reasoning", "r", facts, facts[0], "Is the red or the blue car fast?", facts[1])
    assert deciding_words(either) == Counter(["red", "fast"])
    assert answered_share("The red car is fast.", either) == 1.0
    assert answered_share("The blue car is slow.", either) == 0.0


def test_an_answer_whose_words_all_stand_in_the_distractor_decides_by_all_of_them() -> None:
    facts = ("Ada keeps bees.", "Ada keeps bees and hens in town.")
    needle = Needle("n", "reasoning", "r", ("Yes: Ada hums.", facts[1]), "Ada hums.", "What?", facts[1])
    assert deciding_words(needle) == Counter(["hums"])
    same = Needle("n", "retrieval", "r", ("Hum hum.",), "Hum hum.", "Hum?")
    assert deciding_words(same) == Counter({"hum": 2})
    assert answered_share("hum", same) == 0.5


@pytest.mark.parametrize("name", ["retrieval", "reasoning", "nonliteral"])
def test_every_shipped_needle_can_be_decided(name: str) -> None:
    for needle in load_needles(name).needles:
        assert deciding_words(needle).total() >= 3, needle.id
        assert answered_share(needle.answer, needle) == 1.0
        assert answered_share(needle.question, needle) <= 0.5
        assert needle.distractor is None or answered_share(needle.distractor, needle) <= 0.5
