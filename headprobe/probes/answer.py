"""How well a response agrees with a needle's answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

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
