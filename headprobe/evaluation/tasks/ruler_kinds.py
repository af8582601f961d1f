"""The kinds of RULER's sets: how a question of a given size is made from prose, words and drawn numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from math import pi
from pathlib import Path
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from uuid import UUID

from headprobe.errors import FileFormatError, PlanError
from headprobe.evaluation.task import TaskQuestion
from headprobe.probes.haystack import Haystack
from headprobe.probes.scripts import sentence_ends
from headprobe.scores.files import file_bytes
from headprobe.scores.strict_json import parse

NOISE = ("The tide comes in.", "The tide goes out.", "A bell rings far away.", "Nobody is at the door.",
         "The lamp is still lit.")  # fmt: skip
MOST_SIZE = 2**22
_MOST_BYTES = 2**28


@dataclass(frozen=True)
class Document:
    """A question with its answers and the texts that answer it."""

    question: str
    answers: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Material:
    """What prompts are made from: background prose, and documents for questions among documents."""

    haystack: Haystack
    documents: tuple[Document, ...] | None = None

    @cached_property
    def sentences(self) -> list[str]:
        """The sentences of the haystack, in order."""
        text = " ".join(self.haystack.paragraphs)
        ends = [0, *sentence_ends(text)]
        return [text[start:end].strip() for start, end in pairwise(ends)]

    @cached_property
    def words(self) -> list[str]:
        """Its different words of 4 to 9 letters, in order of the alphabet."""
        return sorted(set(re.findall(r"\b[a-z]{4,9}\b", self.haystack.text)))

    @cached_property
    def texts(self) -> list[str]:
        """The different texts of all documents."""
        return list(dict.fromkeys(text for each in self.documents or () for text in each.texts))


@dataclass(frozen=True)
class Kind:
    """A set: its metric, the length of its answers, and `make(id, material, seed, size)`.

    `least` and `most(material)`: the sizes that can be made; `files`: what documents are read from.
    """

    metric: str
    max_new_tokens: int
    make: Callable[[str, Material, str, int], TaskQuestion]
    least: int = 1
    most: Callable[[Material], int] = lambda material: MOST_SIZE
    files: tuple[str, ...] | None = None


# Needles: `size` sentences of background, or other needles.


@dataclass(frozen=True)
class NeedleKind:
    """`background`: noise, prose, or needles; keys and values are `words`, `numbers` or `uuids`; how many of each."""

    background: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def make_needles(about: NeedleKind, name: str, material: Material, seed: str, size: int) -> TaskQuestion:
    """One question about hidden values."""
    random = Random(seed)
    values = _Drawn(random, material)
    noun = {"numbers": "number", "uuids": "code"}[about.value]
    keys = [values.new(about.key) for _ in range(max(about.keys, about.queries))]
    hidden = {key: [values.new(about.value) for _ in range(about.values)] for key in keys}
    needles = [_sentence(noun, key, value) for key, each in hidden.items() for value in each]
    random.shuffle(needles)
    if about.background == "needles":
        around = [_sentence(noun, values.new(about.key), values.new(about.value)) for _ in range(size)]
    else:
        around = _background(about.background, material, size, random)
    asked = keys[: about.queries]
    several = about.queries * about.values > 1
    listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
    what = f"all secret {noun}s" if several else f"the secret {noun}"
    return TaskQuestion(
        id=name,
        context=_scattered(around, needles, random, "\n" if about.background == "needles" else " "),
        answers=tuple(value for key in asked for value in hidden[key]),
        head=f"A few secret {noun}s are hidden in the text below. Keep them in mind: you will be asked for them.\n\n",
        tail=f"\n\nThe text ends here. {'What are' if several else 'What is'} {what} of {listed} in this text?",
        lead=f"In this text {what} of {listed} {'are' if several else 'is'}",
    )


def _sentence(noun: str, key: str, value: str) -> str:
    return f"One secret {noun} of {key} is: {value}."


class _Drawn:
    """Keys and values, none of which comes twice in a prompt."""

    def __init__(self, random: Random, material: Material) -> None:
        self._random, self._words, self._seen = random, material.words, set[str]()
        if len(self._words) < 20:
            raise PlanError(f"the haystack {material.haystack.name} has too few words (a to z) to make keys of")

    def new(self, kind: str) -> str:
        while (made := self._one(kind)) in self._seen:
            continue
        self._seen.add(made)
        return made

    def _one(self, kind: str) -> str:
        if kind == "numbers":
            return str(self._random.randint(1_000_000, 9_999_999))
        if kind == "uuids":
            return str(UUID(int=self._random.getrandbits(128), version=4))
        return f"{self._random.choice(self._words)}-{self._random.choice(self._words)}"


def _background(kind: str, material: Material, size: int, random: Random) -> list[str]:
    """`size` sentences: the same few over and over, or prose from a place that is drawn."""
    source = list(NOISE) if kind == "noise" else material.sentences
    start = 0 if kind == "noise" else random.randrange(len(source))
    return [source[(start + place) % len(source)] for place in range(size)]


def _scattered(around: Sequence[str], hidden: Sequence[str], random: Random, space: str) -> str:
    """The sentences `hidden`, in their order, at places that are drawn between those `around` them."""
    places = sorted(random.randint(0, len(around)) for _ in hidden)
    mixed: list[str] = []
    before = 0
    for place, sentence in zip(places, hidden, strict=True):
        mixed += [*around[before:place], sentence]
        before = place
    return space.join([*mixed, *around[before:]])


# Variables: a chain of names that take over one value.

HOPS = 4


def make_variables(name: str, material: Material, seed: str, size: int) -> TaskQuestion:
    """One question about a chain of variables, with a small example before it."""
    random = Random(seed)
    names: list[str] = []
    while len(names) <= HOPS:
        made = "".join(random.choices(ascii_uppercase, k=5))
        names += [] if made in names else [made]
    value = str(random.randint(10000, 99999))
    chain = [
        f"VAR {names[0]} = {value}.",
        *(f"VAR {new} = VAR {old}." for old, new in pairwise(names)),
    ]
    return TaskQuestion(
        id=name,
        context=_scattered(_background("noise", material, size, random), chain, random, " "),
        answers=tuple(names),
        head="Variables get values in the text below. Keep track of who has which.\n\n"
        "An example: VAR QAAAA = 11111. The tide comes in. VAR QBBBB = VAR QAAAA.\n"
        "Which variables have the value 11111? These 2 variables have it: QAAAA QBBBB\n\n",
        tail=f"\n\nThe text ends here. Which variables have the value {value}?",
        lead=f"These {len(names)} variables have it:",
    )


# Words: common ones among rare ones, and coded ones by frequency.

COMMON = 10
FREQUENCIES = ((30, 3), (10, 1), (4, 1))  # of common and of rare words: RULER's, and those of shorter texts


def make_common_words(name: str, material: Material, seed: str, size: int) -> TaskQuestion:
    """One list of words, `size` of which are rare, and ten that come often."""
    random = Random(seed)
    words = random.sample(material.words, COMMON + size)
    often, rarely = FREQUENCIES[0] if size >= 100 else FREQUENCIES[1] if size >= 20 else FREQUENCIES[2]
    listed = words[:COMMON] * often + words[COMMON:] * rarely
    random.shuffle(listed)
    return TaskQuestion(
        id=name,
        context=" ".join(f"{place}. {word}" for place, word in enumerate(listed, 1)),
        answers=tuple(words[:COMMON]),
        head="Some words of the numbered list below come often, the others rarely.\n\n"
        "An example: 1. moss 2. kettle 3. moss 4. plank 5. kettle 6. moss 7. kettle\n"
        "Which are the 2 most common words? They are: 1. moss 2. kettle\n\n",
        tail=f"\n\nThe list ends here. Which are the {COMMON} most common words?",
        lead="They are:",
    )


FREQUENT, ALPHA = 3, 2.0


def make_frequent_words(name: str, material: Material, seed: str, size: int) -> TaskQuestion:
    """A text of `size` coded words, the k-th of which takes a share k^-2 of it; the first one is noise."""
    random = Random(seed)
    counts = [int(size * rank**-ALPHA * 6 / pi**2) for rank in range(1, max(FREQUENT + 2, size // 50) + 1)]
    words = ["..."]
    while len(words) < len(counts):
        made = "".join(random.choices(ascii_lowercase, k=6))
        words += [] if made in words else [made]
    text = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    random.shuffle(text)
    return TaskQuestion(
        id=name,
        context=" ".join(text),
        answers=tuple(words[1 : FREQUENT + 1]),
        head="The text below is in code. Find out which of its words come most often; the dots are no word.\n\n",
        tail=f"\n\nThe text ends here. Which {FREQUENT} words come most often in it?",
        lead=f"The {FREQUENT} words that come most often are:",
    )


# Questions among documents.


def make_question(name: str, material: Material, seed: str, size: int) -> TaskQuestion:
    """A question, the documents that answer it, and others up to `size` in all."""
    assert material.documents is not None
    place = int(name.rsplit("/", 1)[1]) - 1
    one = material.documents[place % len(material.documents)]
    random = Random(seed)
    others = [text for text in random.sample(material.texts, min(size, len(material.texts))) if text not in one.texts]
    texts = [*one.texts, *others][: max(size, len(one.texts))]
    random.shuffle(texts)
    return TaskQuestion(
        id=name,
        context="\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(texts, 1)),
        answers=one.answers,
        head="Answer the question from the documents below, with the answer alone.\n\n",
        tail=f"\n\nThe documents end here. Answer with the answer alone.\n\nQuestion: {one.question}",
        lead="Answer:",
    )


def read_documents(path: Path) -> tuple[Document, ...]:
    """The questions of a file in SQuAD's or HotpotQA's own layout. Raises `FileFormatError`."""
    data: Any = parse(file_bytes(path, _MOST_BYTES), path)
    try:
        found = _squad(data) if isinstance(data, dict) else _hotpot(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"neither SQuAD's nor HotpotQA's layout: {type(error).__name__} {error}", path) from None
    sound = tuple(
        each for each in found if all(isinstance(a, str) for a in (each.question, *each.answers, *each.texts))
    )
    usable = tuple(each for each in sound if any(answer.strip() for answer in each.answers))
    if not usable:
        raise FileFormatError("holds no question with an answer", path)
    return usable


def _squad(data: Any) -> list[Document]:
    return [
        Document(asked["question"], tuple(dict.fromkeys(a["text"] for a in asked["answers"])), (text["context"],))
        for article in data["data"] for text in article["paragraphs"] for asked in text["qas"]
        if not asked.get("is_impossible", False)
    ]  # fmt: skip


def _hotpot(data: Any) -> list[Document]:
    texts = [tuple(f"{title}\n{''.join(sentences)}" for title, sentences in each["context"]) for each in data]
    return [Document(each["question"], (each["answer"],), own) for each, own in zip(data, texts, strict=True)]


def _needles(*given: Any) -> Kind:
    return Kind("string_match_all", 128, partial(make_needles, NeedleKind(*given)))


def _most_texts(material: Material) -> int:
    return len(material.texts)


KINDS: Mapping[str, Kind] = {
    "niah_single_1": _needles("noise"),
    "niah_single_2": _needles("prose"),
    "niah_single_3": _needles("prose", "words", "uuids"),
    "niah_multikey_1": _needles("prose", "words", "numbers", 4),
    "niah_multikey_2": _needles("needles"),
    "niah_multikey_3": _needles("needles", "uuids", "uuids"),
    "niah_multivalue": _needles("prose", "words", "numbers", 1, 4),
    "niah_multiquery": _needles("prose", "words", "numbers", 4, 1, 4),
    "vt": Kind("string_match_all", 30, make_variables),
    "cwe": Kind("string_match_all", 120, make_common_words, most=lambda material: len(material.words) - COMMON),
    "fwe": Kind("string_match_all", 50, make_frequent_words, least=60),
    "qa_1": Kind("string_match_part", 32, make_question, most=_most_texts, files=("squad.json", "dev-v2.0.json")),
    "qa_2": Kind(
        "string_match_part", 32, make_question, most=_most_texts,
        files=("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
    ),
}  # fmt: skip
