"""How well a response agrees with a needle's answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from headprobe.probes.needle import Needle
from headprobe.probes.scripts import ends_sentence, fold, is_mark, is_unspaced, set_apart

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CLOSERS = "\"'”’»」』】〉》〕"
_PLAIN_STOPS = ".!?;"  # which stand inside numbers and names as well, so that a space must follow


def normalize(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces (the rule of SQuAD).

    Characters of scripts that put no spaces between words (Chinese, Japanese, Thai, ...) are set apart, so that each
    counts as a word. Letters count in one form (`headprobe.probes.scripts.fold`).

    >>> normalize("The  cat's whiskers, a wonder!"), normalize("小明养蜂。")
    ('cats whiskers wonder', '小 明 养 蜂')
    """
    folded = fold(text).lower()
    kept = "".join(c for c in folded if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", set_apart(kept)).split())


def token_f1(response: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalised words; in [0, 1].

    Two texts without words agree (1.0), one without words never does (0.0).

    >>> token_f1("Ada keeps bees", "Ada keeps the bees in town.")
    0.75
    """
    said, wanted = normalize(response).split(), normalize(answer).split()
    if not said or not wanted:
        return float(said == wanted)
    return 2 * _common(said, wanted) / (len(said) + len(wanted))


def rouge1_recall(response: str, answer: str) -> float:
    """Share of the answer's words, counted as often as they stand, that the response has too; in [0, 1].

    Words are runs of letters with their marks and digits in lower case, and single characters in scripts without
    spaces; articles count, nothing is stemmed. An answer without words gives 0.0.
    """
    said, wanted = _words(response), _words(answer)
    return _common(said, wanted) / len(wanted) if wanted else 0.0


def _words(text: str) -> list[str]:
    kept = "".join(c if c.isalnum() or is_mark(c) else " " for c in fold(text).lower())
    return set_apart(kept).split()


def exact_match(response: str, answer: str) -> bool:
    """Whether the first line of `response` that is not empty begins with `answer` as a whole sentence.

    Runs of whitespace count as one space; letters count in one form (`headprobe.probes.scripts.fold`); what the model
    writes after the sentence does not matter.

    >>> exact_match(" Ada keeps  bees. She is old.", "Ada keeps bees."), exact_match("小明养蜂。他老了。", "小明养蜂。")
    (True, True)
    """
    first = next(iter(response.strip().splitlines()), "")
    line, wanted = (" ".join(fold(text).split()) for text in (first, answer))
    if not wanted or not line.startswith(wanted):
        return False
    rest = line[len(wanted) :]
    if _is_closed(wanted):
        return not rest or rest[0] == " " or _begins_sentence(wanted, rest)
    follows = rest.strip()
    stopped = bool(follows) and ends_sentence(wanted + follows, len(wanted))
    return not follows or stopped or (rest[0] == " " and is_unspaced(wanted[-1]))


def _is_closed(sentence: str) -> bool:
    """Whether it ends with its stop, or with a quotation mark."""
    bare = sentence.rstrip(_CLOSERS)
    return sentence[-1] in "\"'”’" or bool(bare and ends_sentence(bare, len(bare) - 1))


def _begins_sentence(closed: str, rest: str) -> bool:
    """Whether `rest`, right behind a closed sentence, begins another one without a space, as Chinese does."""
    bare = closed.rstrip(_CLOSERS)
    if not bare or unicodedata.category(rest[0]) in ("Po", "Pe", "Pf") or is_mark(rest[0]):
        return False
    joined = bare[-1] not in _PLAIN_STOPS or is_unspaced(bare[-2:-1] or " ")
    return ends_sentence(bare, len(bare) - 1) and (joined or is_unspaced(rest[0]))


def chosen_sentence(response: str, needle: Needle) -> str:
    """Which sentence the response took: `answer` or `distractor` by the higher `token_f1`, `other` on a tie."""
    answer = token_f1(response, needle.answer)
    distractor = token_f1(response, needle.distractor) if needle.distractor is not None else 0.0
    if answer == distractor:
        return "other"
    return "answer" if answer > distractor else "distractor"


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    return (Counter(first) & Counter(second)).total()


# Whether a response answers: by the words that decide, those which nothing but the answer gives away.

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
    said, elsewhere = _words_of(needle.answer), _elsewhere(needle)
    asked, other = _words_of(needle.question), _words_of(needle.distractor or "")
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
    for word in _words_of(response):
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
    common = _words_of(needle.answer) + _words_of(needle.question)
    return _first([common + _elsewhere(needle), common], _words_of(needle.distractor))


def _elsewhere(needle: Needle) -> list[str]:
    """Words of the facts besides answer and distractor."""
    rest = needle.text.replace(needle.answer, " ")
    return _words_of(rest if needle.distractor is None else rest.replace(needle.distractor, " "))


def _first(given: Iterable[list[str]], said: list[str]) -> Counter[str]:
    """What is left of `said` without the first of `given` that leaves anything."""
    left = (Counter(word for word in said if word not in set(known)) for known in given)
    return next((words for words in left if words), Counter())


def _words_of(text: str) -> list[str]:
    return normalize(_JOINTS.sub(" ", _POSSESSIVE.sub("", text))).split()
