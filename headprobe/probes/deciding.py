"""Whether a response answers: by the words that decide, those which nothing but the answer gives away."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from headprobe.probes.answer import normalize
from headprobe.probes.needle import Needle

RULE = (
    "share of the answer's deciding words that the response has before it has as many of the distractor's; they decide "
    "that stand neither in the question, nor in the distractor, nor in the other facts of the needle"
)
_POSSESSIVE = re.compile(r"['’]s\b")
_JOINTS = re.compile(r"[-‐-―/_]")  # between words, which the rule of SQuAD would run together


def deciding_words(needle: Needle) -> Counter[str]:
    """The words of the answer that decide, counted; characters in scripts without spaces.

    Words of the question, of the distractor and of the other facts (who the answer is about) are said by responses that
    do not answer. Where no word is left, those of the other facts count after all, then those of the question, then
    all words of the answer. Case, punctuation, English articles and possessives do not count.

    >>> facts = ("Ada is 9.", "Tom is 5.", "Ada keeps bees in town.", "Tom keeps hens.")
    >>> needle = Needle("n", "reasoning", "age", facts, facts[2], "What does the older one keep?", facts[3])
    >>> sorted(deciding_words(needle))
    ['bees', 'in', 'town']
    """
    said, elsewhere = _words(needle.answer), _elsewhere(needle)
    asked, other = _words(needle.question), _words(needle.distractor or "")
    return _first([other + asked + elsewhere, other + asked, other, []], said)


def answered_share(response: str, needle: Needle, threshold: float = 0.5) -> float:
    """How much of the answer's deciding words a response has, in [0, 1].

    What it says first counts: once it has more than `threshold` of the distractor's deciding words, while it has no
    more than that of the answer's, the rest is not looked at.

    >>> facts = ("Ada is 9.", "Tom is 5.", "Ada keeps bees in town.", "Tom keeps hens.")
    >>> needle = Needle("n", "reasoning", "age", facts, facts[2], "What does the older one keep?", facts[3])
    >>> [answered_share(text, needle) for text in ("Bees in town.", "The older one is Ada.", "Hens. No, bees in town.")]
    [1.0, 0.0, 0.0]
    """
    answer, distractor = _Heard(deciding_words(needle)), _Heard(_distracting_words(needle))
    for word in _words(response):
        answer.hear(word)
        distractor.hear(word)
        if answer.share <= threshold < distractor.share:
            break
    return answer.share


class _Heard:
    """How many of some words have been said."""

    def __init__(self, words: Counter[str]) -> None:
        self._left, self._total = Counter(words), words.total()

    def hear(self, word: str) -> None:
        if self._left[word] > 0:
            self._left[word] -= 1

    @property
    def share(self) -> float:
        return 1.0 - self._left.total() / self._total if self._total else 0.0


def _distracting_words(needle: Needle) -> Counter[str]:
    """The words that decide for the distractor; none where it has none of its own."""
    if needle.distractor is None:
        return Counter()
    common = _words(needle.answer) + _words(needle.question)
    return _first([common + _elsewhere(needle), common], _words(needle.distractor))


def _elsewhere(needle: Needle) -> list[str]:
    """Words of the facts besides answer and distractor."""
    rest = needle.text.replace(needle.answer, " ")
    return _words(rest if needle.distractor is None else rest.replace(needle.distractor, " "))


def _first(given: Iterable[list[str]], said: list[str]) -> Counter[str]:
    """What is left of `said` without the first of `given` that leaves anything."""
    left = (Counter(word for word in said if word not in set(known)) for known in given)
    return next((words for words in left if words), Counter())


def _words(text: str) -> list[str]:
    return normalize(_JOINTS.sub(" ", _POSSESSIVE.sub("", text))).split()
