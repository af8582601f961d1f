"""How well a response agrees with a needle's answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from headprobe.probes.needle import Needle

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces (the rule of SQuAD).

    >>> normalize("The  cat's whiskers, a wonder!")
    'cats whiskers wonder'
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", kept).split())


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

    Words are runs of letters and digits in lower case; articles count, nothing is stemmed. An answer without words
    gives 0.0.
    """
    said, wanted = (re.findall(r"[^\W_]+", text.lower()) for text in (response, answer))
    return _common(said, wanted) / len(wanted) if wanted else 0.0


def exact_match(response: str, answer: str) -> bool:
    """Whether the first line of `response` that is not empty begins with `answer` as a whole sentence.

    Runs of whitespace count as one space; what the model writes after the sentence does not matter.

    >>> exact_match(" Ada keeps  bees. She is old.", "Ada keeps bees.")
    True
    """
    line = " ".join(response.strip().partition("\n")[0].split())
    wanted = " ".join(answer.split())
    if wanted.endswith((".", "!", "?", '"', "'", "”", "’", "。", "！", "？")):
        return line == wanted or line.startswith(wanted + " ")
    return bool(wanted) and line.startswith(wanted) and line[len(wanted) :].strip()[:1] in ("", ".", "!", "?")


def chosen_sentence(response: str, needle: Needle) -> str:
    """Which sentence the response took: `answer` or `distractor` by the higher `token_f1`, `other` on a tie."""
    answer = token_f1(response, needle.answer)
    distractor = token_f1(response, needle.distractor) if needle.distractor is not None else 0.0
    if answer == distractor:
        return "other"
    return "answer" if answer > distractor else "distractor"


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    return (Counter(first) & Counter(second)).total()
