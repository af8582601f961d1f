"""The made-up language of the training needles: names, random phrases, facts, questions and filler sentences.

A sentence is a list of `Piece`s. A piece is a stretch of text that the tokenizer never merges with its neighbours (it
starts with a space or is punctuation), so pieces can be tokenized one by one and every role keeps its exact tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TEXT = Path(__file__).parent / "text"


@dataclass(frozen=True)
class Piece:
    """A stretch of text and the role it plays (`subject`, `attribute`, `descriptor` or none)."""

    text: str
    role: str | None = None


Sentence = list[Piece]


@dataclass(frozen=True)
class Relation:
    """How two subjects differ: the attribute sentence, and how a question points at one of them."""

    name: str
    before: str  # between subject and attribute
    after: str  # behind the attribute
    larger: tuple[str, ...] = ()  # descriptors ({} = none) of the subject with the larger number
    smaller: tuple[str, ...] = ()
    lookup: tuple[str, ...] = ()  # descriptors with the attribute in the place of {}
    attribute: str = "number"  # number | year | place | thing
    subject: str = "person"  # person | place | building


RELATIONS = (
    Relation(
        "age",
        " is",
        " years old.",
        (" the *older person", " the *older one", " the *older of the two"),
        (" the *younger person", " the *younger one", " the *younger of the two"),
        (" the person who is {} years old", " the one who is {} years old"),
    ),
    Relation(
        "age",
        " turned",
        " this year.",
        (" the *older person", " the *older one", " the *older of the two"),
        (" the *younger person", " the *younger one", " the *younger of the two"),
        (" the person who turned {} this year",),
    ),
    Relation(
        "time",
        " arrived in",
        ".",
        (" the person who arrived *later", " the one who arrived *last"),
        (" the person who arrived *earlier", " the one who arrived *first"),
        (" the person who arrived in {}",),
        "year",
    ),
    Relation(
        "time",
        " came to town in",
        ".",
        (" the person who came *later", " the one who came *last"),
        (" the person who came *earlier", " the one who came *first"),
        (" the person who came to town in {}",),
        "year",
    ),
    Relation(
        "time",
        " was built in",
        ".",
        (" the building that was built *later", " the one built *last"),
        (" the building that was built *earlier", " the one built *first"),
        (" the building from {}",),
        "year",
        "building",
    ),
    Relation(
        "time",
        " was founded in",
        ".",
        (" the town that was founded *later", " the one founded *last"),
        (" the town that was founded *earlier", " the one founded *first"),
        (" the town founded in {}",),
        "year",
        "place",
    ),
    Relation(
        "size",
        " is",
        " feet tall.",
        (" the *taller building", " the *taller one", " the *taller of the two"),
        (" the *shorter building", " the *shorter one", " the *shorter of the two"),
        (" the building that is {} feet tall",),
        "number",
        "building",
    ),
    Relation(
        "size",
        " has",
        " rooms.",
        (" the *larger building", " the *larger one", " the *bigger building"),
        (" the *smaller building", " the *smaller one", " the *smaller of the two"),
        (" the building with {} rooms",),
        "number",
        "building",
    ),
    Relation(
        "size",
        " has",
        " houses.",
        (" the *larger town", " the *larger one", " the *bigger town", " the *bigger of the two"),
        (" the *smaller town", " the *smaller one", " the *smaller of the two"),
        (" the town with {} houses",),
        "number",
        "place",
    ),
    Relation(
        "size",
        " weighs",
        " kilos.",
        (" the *heavier person", " the *heavier one", " the *heavier of the two"),
        (" the *lighter person", " the *lighter one", " the *lighter of the two"),
        (" the person who weighs {} kilos",),
    ),
    Relation(
        "place",
        " lives in",
        ".",
        lookup=(" the person who lives in {}", " the one who lives in {}"),
        attribute="place",
    ),
    Relation(
        "place", " comes from", ".", lookup=(" the person who comes from {}", " the one from {}"), attribute="place"
    ),
    Relation(
        "place", " works in", ".", lookup=(" the person who works in {}", " the one working in {}"), attribute="place"
    ),
    Relation(
        "possession",
        " owns the",
        ".",
        lookup=(" the person who owns the {}", " the owner of the {}"),
        attribute="thing",
    ),
    Relation(
        "possession",
        " carries the",
        ".",
        lookup=(" the person who carries the {}", " the one with the {}"),
        attribute="thing",
    ),
)

# What a fact says of its subject, and the question that asks for it ({} = subject or descriptor, R = a random phrase).
SHAPES: dict[str, tuple[tuple[str, str], ...]] = {
    "person": (
        ("{}'s R is", "What is{}'s R?"),
        ("{}'s R is", "What is the R of{}?"),
        ("{}'s favourite thing to do is to", "What is{}'s favourite thing to do?"),
        ("{}'s favourite thing to do is to", "What is the favourite thing to do of{}?"),
        ("{}'s favourite thing to do is to", "What does{} like best?"),
        ("{} likes to", "What does{} like to do?"),
        ("{} keeps", "What does{} keep?"),
        ("{} dreams of", "What does{} dream of?"),
        ("{} wants to", "What does{} want to do?"),
        ("{} once found", "What did{} once find?"),
        ("{} sells", "What does{} sell?"),
        ("{} plans to", "What does{} plan to do?"),
        ("{} is known for", "What is{} known for?"),
        ("{} Vs", "What does{} V?"),
        ("The R of{} is", "What is the R of{}?"),
    ),
    "place": (
        ("{}'s R is", "What is{}'s R?"),
        ("{}'s R is", "What is the R of{}?"),
        ("{} is known for", "What is{} known for?"),
        ("{} is famous for", "What is{} famous for?"),
        ("{} hides", "What does{} hide?"),
        ("{} sells", "What does{} sell?"),
        ("The best thing to do in{} is to", "What is the best thing to do in{}?"),
        ("The R of{} is", "What is the R of{}?"),
        ("The R in{} is", "What is the R in{}?"),
    ),
}
SHAPES["building"] = SHAPES["place"]
_BUILDINGS = ("Tower", "Hall", "Mill", "House", "Bridge", "Castle", "School", "Inn")
_ONSETS = (*"bcdfghjklmnprstvwy", *"bdlmnrst", "", "", "br", "cl", "dr", "fl", "gr", "st", "th", "tr", "sh", "wh", "qu")
_VOWELS = (*"aeiou", *"aeio", "ai", "ea", "ie", "oa", "y")
_CODAS = ("", "n", "r", "l", "s", "m", "d", "t", "k", "ne", "le", "ra", "th", "rn", "nd", "x", "ck", "sh")
_JOINTS = ("of", "with", "in", "and", "from", "under", "near", "on", "for", "the", "a", "behind", "by")


class Language:
    """Random sentences from a seeded generator; the same seed gives the same sentences."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words = TEXT.joinpath("words.txt").read_text().split()
        self.syllables = TEXT.joinpath("syllables.txt").read_text().split()
        prose = TEXT.joinpath("prose.txt").read_text()
        self.prose = [s for p in prose.split("\n\n") for s in re.split(r"(?<=[.?!])\s+", " ".join(p.split())) if s]
        tokens = [w for s in self.prose for w in s.split()]
        self._followers: dict[str, list[str]] = {}
        for first, second in pairwise(tokens):
            self._followers.setdefault(first, []).append(second)
        self._starts = [s.split()[0] for s in self.prose]
        self.word_starts: list[str] = []
        self.name_starts: list[str] = []
        self.continuations: list[str] = []
        self.is_hard = False  # facts of a pair may begin alike, and more names begin with a single letter

    def learn_vocabulary(self, tokens: Iterable[str]) -> None:
        """Take the tokenizer's entries (space: U+0120) as raw material: words and names then use all of them."""
        for token in tokens:
            bare = token.removeprefix("\u0120")
            if not (bare.isascii() and bare.isalpha()):
                continue
            if bare.islower():
                (self.continuations if bare == token else self.word_starts).append(bare)
            elif bare[0].isupper() and (len(bare) == 1 or bare[1:].islower()) and bare != token:
                self.name_starts.append(bare)

    def _of_entries(self, starts: list[str], low: int, high: int) -> str:
        """A word put together from vocabulary entries: one that begins a word, and `low` to `high` that go on."""
        r = self.random
        return r.choice(starts) + "".join(r.choices(self.continuations, k=r.randint(low, high)))

    def name(self) -> str:
        """A made-up name: of syllables from a list, spelt from scratch, or of vocabulary entries."""
        r = self.random
        if self.is_hard and r.random() < 0.2:
            return self._of_entries([start for start in self.name_starts if len(start) == 1], 1, 3)
        if self.name_starts and r.random() < 0.3:
            return self._of_entries(self.name_starts, 0, 2)
        if r.random() < 0.45:
            sounds = [r.choice(_ONSETS) + r.choice(_VOWELS) for _ in range(r.choice((1, 2, 2, 3)))]
            return ("".join(sounds) + r.choice(_CODAS)).capitalize()
        return "".join(r.choices(self.syllables, k=r.choice((1, 2, 2, 2, 3)))).capitalize()

    def subject(self, kind: str) -> str:
        """A made-up name of one or two words, with the space before it."""
        r = self.random
        if kind == "building":
            return f" {self.name()} {r.choice(_BUILDINGS)}"
        if kind == "person" and r.random() < 0.4:
            return f" {self.name()} {self.name() if r.random() < 0.6 else r.choice(self.words).capitalize()}"
        return f" {self.name()}"

    def word(self) -> str:
        r = self.random
        u = r.random()
        if u < 0.06:
            return self.name()
        if u < 0.09:
            return str(r.randrange(10, 100))
        if u < 0.3 and self.word_starts:
            return self._of_entries(self.word_starts, 0, 1)
        word = r.choice(self.words)
        return word + r.choice(("s", "ed", "ing", "er", "ly")) if u < 0.42 else word

    def phrase(self, low: int, high: int) -> str:
        """`low` to `high` random words, some of them joined by small words, with the space before."""
        r = self.random
        words: list[str] = []
        for _ in range(r.randint(low, high)):
            if words and r.random() < 0.35:
                words.append(r.choice(_JOINTS))
            words.append(self.word())
        if len(words) > 5 and r.random() < 0.15:
            words[len(words) // 2] += ","
        return " " + " ".join(words)

    def trait(self) -> str:
        """A random noun phrase of one or two words: what a fact is about."""
        r = self.random
        first = r.choice(("favourite ", "favourite ", "secret ", "best ", "", "")) or f"{r.choice(self.words)} "
        return first + r.choice(self.words)

    def filler(self) -> str:
        """A background sentence: prose, word salad that follows its bigrams, or plain random words."""
        r = self.random
        u = r.random()
        if u < 0.3:
            return r.choice(self.prose)
        if u < 0.7:
            words = [r.choice(self._starts)]
            for _ in range(r.randint(5, 22)):
                words.append(r.choice(self._followers.get(words[-1]) or self._starts))
            return " ".join(words).rstrip(",.;:!?\"'") + r.choice((".", ".", ".", "?", "!", '."'))
        salad = self.phrase(5, 16).strip()
        if r.random() < 0.3:
            salad = f"{self.name()}'s {salad}" if r.random() < 0.5 else f"{salad} {self.name()} {self.name()}"
        return salad[0].upper() + salad[1:] + "."


_SPLIT = re.compile(r"'\w+| ?[^\W\d_]+| ?\d+|[^\w\s]+| ?[^\w\s]+|\s")


def pieces(text: str, role: str | None = None) -> Sentence:
    """`text` as pieces of role `role` (words with the space before them, punctuation apart)."""
    return [Piece(part, role) for part in _SPLIT.findall(text)]


@dataclass
class Fact:
    """A sentence about a subject; `question` has its subject slot filled at asking."""

    subject: str
    sentence: Sentence
    ask: str


@dataclass
class Pair:
    """Two subjects with an attribute each and a fact of the same shape each: a reasoning needle."""

    relation: Relation
    subjects: tuple[str, str]
    attributes: tuple[str, str]
    sizes: tuple[int, int] | None
    introductions: tuple[Sentence, Sentence]
    facts: tuple[Fact, Fact]


class NeedleMaker:
    """Random needles; within one context all subjects begin with different tokens (`first_token`)."""

    def __init__(self, language: Language, first_token: Callable[[str], Hashable]) -> None:
        self.language = language
        self.random = language.random
        self._first_token = first_token
        self._taken: set[Hashable] = set()

    def new_context(self) -> None:
        self._taken.clear()

    def _subject(self, kind: str) -> str:
        while True:
            subject = self.language.subject(kind)
            token = self._first_token(subject)
            if token not in self._taken:
                self._taken.add(token)
                return subject

    def _fill(self, shape: str, subject: str) -> Sentence:
        left, right = shape.split("{}")
        return [*pieces(left), *pieces(subject, "subject"), *pieces(right)]

    def _shape(self, kind: str) -> tuple[str, str]:
        r = self.random
        said, ask = r.choice(SHAPES[kind])
        trait, verb = self.language.trait(), r.choice(self.language.words)
        said = re.sub(r"\bR\b", trait, said).replace(" Vs", f" {verb}s")
        return (said if said[0] == "{" else " " + said), re.sub(r"\bR\b", trait, ask).replace(" V?", f" {verb}?")

    def _object(self) -> str:
        return self.language.phrase(2, 6)

    def _objects(self) -> tuple[str, str]:
        """What the two facts of a pair end in; they may begin with the same words, so that only the subject helps."""
        r, alike = self.random, ""
        if self.language.is_hard and r.random() < 0.6:
            alike = r.choice(("", " its", " the", " a", " her")) + (
                self.language.phrase(1, 2) if r.random() < 0.6 else ""
            )
        return alike + self._object(), alike + self._object()

    def single(self, kind: str | None = None) -> Fact:
        kind = kind or self.random.choice(("person", "place", "place"))
        said, ask = self._shape(kind)
        subject = self._subject(kind)
        return Fact(subject, [*self._fill(said, subject), *pieces(self._object()), Piece(".")], ask)

    def pair(self, relations: tuple[Relation, ...] = RELATIONS, gap: int = 1) -> Pair:
        r = self.random
        relation = r.choice(relations)
        sizes: tuple[int, int] | None = None
        if relation.attribute in ("number", "year"):
            low, high = (11, 99)
            while True:
                sizes = (r.randint(low, high), r.randint(low, high))
                if abs(sizes[0] - sizes[1]) >= gap:
                    break
            century = r.choice(("18", "19", "19")) if relation.attribute == "year" else ""
            attributes = (f" {century}{sizes[0]}", f" {century}{sizes[1]}")
        elif relation.attribute == "place":
            attributes = (self._subject("place"), self._subject("place"))
        else:
            while True:
                attributes = tuple(f" {r.choice(self.language.words)} {r.choice(self.language.words)}" for _ in "ab")  # type: ignore[assignment]
                if attributes[0].split()[1] != attributes[1].split()[1]:
                    break
        subjects = (self._subject(relation.subject), self._subject(relation.subject))
        said, ask = self._shape(relation.subject)
        introductions = tuple(
            [*pieces(s, "subject"), *pieces(relation.before), *pieces(a, "attribute"), *pieces(relation.after)]
            for s, a in zip(subjects, attributes, strict=True)
        )
        facts = tuple(
            Fact(subject, [*self._fill(said, subject), *pieces(ending), Piece(".")], ask)
            for subject, ending in zip(subjects, self._objects(), strict=True)
        )
        return Pair(relation, subjects, attributes, sizes, introductions, facts)  # type: ignore[arg-type]

    def question(self, fact: Fact, pair: Pair | None = None, which: int = 0, how: str = "name") -> Sentence:
        """The question for `fact`: by name, by comparison (`how="compare"`) or by attribute (`how="lookup"`)."""
        left, right = fact.ask.split("{}")
        if how == "name" or pair is None:
            middle = pieces(fact.subject, "descriptor-name")
        elif how == "compare":
            assert pair.sizes is not None
            larger = pair.sizes[which] > pair.sizes[1 - which]
            descriptor = self.random.choice(pair.relation.larger if larger else pair.relation.smaller)
            before, rest = descriptor.split("*")
            word, _, after = rest.partition(" ")
            middle = [*pieces(before.rstrip()), Piece(" " + word, "descriptor"), *pieces(" " + after if after else "")]
        else:
            before, after = self.random.choice(pair.relation.lookup).split("{}")
            middle = [*pieces(before.rstrip()), *pieces(pair.attributes[which], "descriptor"), *pieces(after)]
        return [*pieces(" " + left), *middle, *pieces(right)]
