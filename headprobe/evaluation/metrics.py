"""How an answer is measured against the known ones: each metric is a name, a rule, and a number from 0 to 1.

The rules are those of the benchmarks (LongBench, arXiv 2308.14508; RULER, 2404.06654; BABILong, 2406.10149;
InfiniteBench, 2402.13718; LooGLE, 2311.04939), written here anew. The LongBench ones are held against the functions of
lm-evaluation-harness in tests/evaluation/test_metrics_against_harness.py.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from headprobe.errors import OptionError
from headprobe.evaluation.extras import check_installed, needed
from headprobe.probes.answer import exact_match, token_f1
from headprobe.registry import LatePart, Registry

_CHINESE_STOPS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖"
    "〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_PUNCTUATION = set(string.punctuation)
_CHINESE_PUNCTUATION = _PUNCTUATION | set(_CHINESE_STOPS)
_SPACED = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))

Rule = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Metric:
    """`score(response, answers, classes)` is in [0, 1].

    `answers`: what is right, at least one; `classes`: all that could be answered, for metrics that go by it. `about` in
    words; `needs`: the package that it takes beyond headprobe's own, from the extra `eval`.
    """

    name: str
    about: str
    score: Rule
    needs: str | None = None

    def check(self) -> None:
        """Raise `OptionError` where a package that it needs is not installed."""
        if self.needs is not None:
            check_installed(self.needs, f"the metric {self.name}")


def best_of(rule: Callable[[str, str], float]) -> Rule:
    """The metric of several answers that is as good as the best of them."""

    def best(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
        return max(rule(response, answer) for answer in answers)

    return best


# Words in common.


def normal_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles, as SQuAD's F1 counts them.

    >>> normal_words("The cat's  hat.")
    ['cats', 'hat']
    """
    bare = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def bag_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two bags of words; 0 where they share none.

    >>> bag_f1(["a", "b"], ["b", "c", "c"])
    0.4
    """
    shared = (Counter(found) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def qa_f1(response: str, answer: str) -> float:
    """F1 of the words of `normal_words`.

    >>> qa_f1("The old town hall", "town hall.")
    0.8
    """
    return bag_f1(normal_words(response), normal_words(answer))


def qa_f1_zh(response: str, answer: str) -> float:
    """F1 of the words that jieba cuts, without punctuation."""
    return bag_f1(*([word for each in cut_words(text) if (word := _bare(each))] for text in (response, answer)))


def characters_f1(response: str, answer: str) -> float:
    """F1 of the characters, without punctuation and spaces.

    >>> characters_f1("是小明。", "小明")
    0.8
    """
    return bag_f1(_bare(response), _bare(answer))


def _bare(text: str) -> str:
    return "".join(c for c in text.lower() if c not in _CHINESE_PUNCTUATION and not c.isspace())


def cut_words(text: str) -> list[str]:
    """Chinese text in words."""
    jieba = needed("jieba", "the words of Chinese text")
    jieba.setLogLevel(logging.WARNING)  # it says on stderr that it reads its dictionary
    return list(jieba.cut(text, cut_all=False))


# ROUGE-L.


def rouge_l(response: str, answer: str) -> float:
    """ROUGE-L F1 between texts of several sentences, as the package `rouge`, which LongBench takes, computes it.

    Sentences end at `.`; for each sentence of the answer the words of its longest common subsequences with all
    sentences of the response are united, and words count once. A sentence of blanks is one empty word there, so it is
    here. No word in either text gives 0.

    >>> round(rouge_l("the cat sat. it slept", "the cat slept."), 3)
    0.75
    """
    said, wanted = _sentences(response), _sentences(answer)
    words_said, words_wanted = ({word for sentence in part for word in sentence} for part in (said, wanted))
    if not any(words_said) or not any(words_wanted):
        return 0.0
    common = {word for ours in wanted for theirs in said for word in _longest_common(ours, theirs)}
    precision, recall = len(common) / len(words_said), len(common) / len(words_wanted)
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_zh(response: str, answer: str) -> float:
    """`rouge_l` of the words that jieba cuts."""
    return rouge_l(" ".join(cut_words(response)), " ".join(cut_words(answer)))


def _sentences(text: str) -> list[list[str]]:
    return [part.split() or [""] for part in text.split(".") if part]


def _longest_common(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """The words of one longest common subsequence.

    Of several that are as long, the one that the package finds, because its words decide over the union: walked from
    the ends, a tie is a step back in `second`.
    """
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row = table[-1], [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        table.append(row)
    words, i, j = set(), len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


# LongBench's other rules.


def classification(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """1 over the number of classes that the response names, where the right one is among them.

    A named class that is only a part of the right one's name does not count. Of neighbours in the list of such parts
    every second one is left in, as in the published code, which takes them out while it goes through the list.
    """
    return max(_named_share(response, answer, classes) for answer in answers)


def _named_share(response: str, answer: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in response]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1.0 / len(named) if answer in named else 0.0


def number_share(response: str, number: str) -> float:
    """Of the numbers in the response the share that is `number`.

    >>> number_share("3 or 30, I say 3", "3")
    0.6666666666666666
    """
    numbers = re.findall(r"\d+", response)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def numbered_share(word: str) -> Callable[[str, str], float]:
    """`number_share` of the number that follows `word` in the answer (`Paragraph 3`)."""

    def share(response: str, answer: str) -> float:
        found = re.findall(rf"{word}(\d+)", answer)
        return number_share(response, found[0]) if found else 0.0

    return share


def code_similarity(response: str, answer: str) -> float:
    """How alike the answer and the first line of the response that is code are, in whole percent.

    Blank lines, and lines with a backquote, `#` or `//`, are no code. Likeness is that of
    difflib, as in fuzzywuzzy's own version.

    >>> code_similarity("# why\\nreturn x", "return y")
    0.88
    """
    lines = [line for line in response.split("\n") if line.strip()]
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if not code or not answer:
        return float(code == answer)
    return round(100 * SequenceMatcher(None, code, answer).ratio()) / 100


# RULER, BABILong, InfiniteBench, LooGLE.


def all_named(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """RULER's string_match_all: the share of the answers that the response holds, upper and lower case alike.

    >>> all_named("It is 12 and 7.", ["12", "34"], ())
    0.5
    """
    return sum(answer.lower() in response.lower() for answer in answers) / len(answers)


def one_named(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """RULER's string_match_part: whether the response holds one of the answers."""
    return float(any(answer.lower() in response.lower() for answer in answers))


def only_named(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """BABILong's rule: of `classes` the first sentence names the right ones and no other.

    An answer such as `milk,apple` wants each of its parts.

    >>> only_named("In the garden. Or office.", ["garden"], ["garden", "office"])
    1.0
    """
    said = response.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    known = {name.lower() for name in classes} | {part for answer in answers for part in _parts(answer)}
    named = {name for name in known if name in said}
    return float(any(named == set(_parts(answer)) for answer in answers))


def _parts(answer: str) -> list[str]:
    text = answer.lower()
    return [part.strip() for part in text.split(",")] if "," in text and len(text) > 3 else [text]


def first_number(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Whether the first number of the response is an answer: `7`, `7.0` and `07` are one.

    >>> first_number("about 7 or 8", ["7.0"], ())
    1.0
    """
    found = re.search(r"\d+(?:\.\d+)?", response)
    return float(found is not None and any(_same_number(found.group(), answer) for answer in answers))


def last_number(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Whether the final word of the response is an answer, a whole number, which may be negative."""
    words = re.sub(r"[\n.`'\":]", " ", response).split()
    return float(bool(words) and any(_same_number(words[-1], answer) for answer in answers))


def _same_number(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return first == second


def first_digits(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Whether the first run of digits is an answer, digit by digit (`007` is not `7`)."""
    found = re.search(r"[0-9]+", response)
    return float(found is not None and found.group() in answers)


def numbers_in_order(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """How many of the answers, in their order, the numbers of the response begin with; as a share.

    >>> numbers_in_order("[4, 5, 9]", ["4", "5", "6", "7"], ())
    0.5
    """
    right = 0
    for found, answer in zip(re.findall(r"[0-9]+", response), answers, strict=False):
        if not _same_number(found, answer):
            break
        right += 1
    return right / len(answers)


def one_word(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Whether one of the answers is a word of the response, upper and lower case alike."""
    words = {word.upper() for word in response.translate(_SPACED).split()}
    return float(any(answer.upper() in words for answer in answers))


def choice(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """Whether the letter that the response chooses is an answer, or the choice is written out behind `answer is`.

    >>> choice("The answer is: C", ["C"], ()), choice("B. The dog", ["C", "The cat"], ())
    (1.0, 0.0)
    """
    text = response.strip()
    first = re.match(r"([A-D])(?:\W|$)", text)
    if first is not None:
        return float(first.group(1) in answers)
    said = re.search(r"(?:answer is|answer|option is|is)\s*:?\s*[\"'(]*(.*)", text, re.IGNORECASE | re.DOTALL)
    if said is not None and any(said.group(1).startswith(answer) for answer in answers):
        return 1.0
    letters = re.findall(r"\b[A-D]\b", text)
    return float(bool(letters) and letters[0] in answers)


def cloze(response: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """LooGLE's exact match: the share of the masks (`<mask-0>: Ada`) to which the response gives the right name.

    The response is an object, as JSON or as Python writes it; anything else gives 0.

    >>> cloze('{"<mask-0>": "Ada", "<mask-1>": "Bo"}', ["<mask-0>: Ada", "<mask-1>: Cy"], ())
    0.5
    """
    given = _object(response)
    wanted = {mask: name for mask, _, name in (answer.partition(": ") for answer in answers)}
    return sum(given.get(mask) == name for mask, name in wanted.items()) / len(wanted)


def _object(response: str) -> dict[Any, Any]:
    """The object that stands in the response, read as JSON or as a Python literal: never run."""
    found = re.search(r"\{.*?\}", response, re.DOTALL)
    for read in (json.loads, ast.literal_eval):
        try:
            given = read(found.group() if found else "")
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return given if isinstance(given, dict) else {}
    return {}


_ALL = [
    Metric("exact_match", "the first line begins with the answer, as a whole sentence", best_of(
        lambda response, answer: float(exact_match(response, answer)))),
    Metric("token_f1", "F1 of the words, as needles are scored", best_of(token_f1)),
    Metric("qa_f1", "F1 of the words, without articles and punctuation", best_of(qa_f1)),
    Metric("qa_f1_zh", "F1 of the words that jieba cuts", best_of(qa_f1_zh), "jieba"),
    Metric("characters_f1", "F1 of the characters, for Chinese", best_of(characters_f1)),
    Metric("rouge_l", "ROUGE-L F1", best_of(rouge_l)),
    Metric("rouge_zh", "ROUGE-L F1 of the words that jieba cuts", best_of(rouge_zh), "jieba"),
    Metric("classification", "the right class is named; shared among all that are named", classification),
    Metric("count", "share of the numbers that are right", best_of(number_share)),
    Metric("retrieval", "share of the numbers that are the right paragraph's", best_of(numbered_share("Paragraph "))),
    Metric("retrieval_zh", "the same in Chinese", best_of(numbered_share("段落"))),
    Metric("code_sim", "likeness of the next line of code", best_of(code_similarity)),
    Metric("string_match_all", "share of the answers that are named", all_named),
    Metric("string_match_part", "one of the answers is named", one_named),
    Metric("only_label", "the first sentence names the right label and no other", only_named),
    Metric("first_number", "the first number is right", first_number),
    Metric("last_number", "the final word is the right number", last_number),
    Metric("first_digits", "the first run of digits is right", first_digits),
    Metric("numbers_in_order", "how far the numbers go right from the first on", numbers_in_order),
    Metric("one_word", "an answer is one of the words", one_word),
    Metric("choice", "the right letter is chosen", choice),
    Metric("cloze", "share of the masks with the right name", cloze),
]  # fmt: skip
METRICS: Registry[Metric] = Registry(
    "headprobe.metrics",
    "metric",
    {metric.name: metric for metric in _ALL},
    LatePart("headprobe.evaluation.metrics:Metric"),
)


def metric_named(name: object) -> Metric:
    """The metric called `name`. Raises `OptionError` for one that is not there, or lacks its package."""
    found = METRICS[name] if isinstance(name, str) else None
    if found is None:
        raise OptionError(f"a metric is a name such as qa_f1, not {name!r:.60}")
    found.check()
    return found
