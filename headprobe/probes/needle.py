"""A needle: facts to hide in a text, the question about them, and the sentence that answers it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, OptionError, refuse_empty
from headprobe.home import shipped_needle_sets
from headprobe.spans import Span

KINDS = ("retrieval", "reasoning", "nonliteral")


@dataclass(frozen=True)
class Needle:
    """Sentences that are planted together, in the order of `facts`.

    `answer` (and `distractor`, the sentence that would be right for the other subject) stands exactly once in the
    facts joined by spaces, and is normally one whole sentence of them. Raises `ValueError` when that does not hold.

    >>> needle = Needle("n1", "retrieval", "habit", ("Ada is 9.", "Ada sings."), "Ada sings.", "What does Ada do?")
    >>> needle.text, needle.answer_characters
    ('Ada is 9. Ada sings.', Span(start=10, end=20))
    """

    id: str
    kind: str
    relation: str
    facts: tuple[str, ...]
    answer: str
    question: str
    distractor: str | None = None
    language: str = "en"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not self.facts:
            raise ValueError("facts must hold at least one sentence")
        texts = {name: getattr(self, name) for name in ("id", "relation", "answer", "question", "language")}
        texts |= {f"facts[{i}]": fact for i, fact in enumerate(self.facts)}
        if self.distractor is not None:
            texts["distractor"] = self.distractor
        for name, text in texts.items():
            _check_text(name, text)
        answer, distractor = self.answer_characters, self.distractor_characters
        if distractor and answer.start < distractor.end and distractor.start < answer.end:
            raise ValueError("answer and distractor overlap in the facts")

    @property
    def text(self) -> str:
        """The facts as one text."""
        return " ".join(self.facts)

    @property
    def answer_characters(self) -> Span:
        """Where the answer stands in `text`, in characters."""
        return self._find("answer", self.answer)

    @property
    def distractor_characters(self) -> Span | None:
        """Where the distractor stands in `text`, in characters; `None` without one."""
        return None if self.distractor is None else self._find("distractor", self.distractor)

    def _find(self, name: str, part: str) -> Span:
        text = self.text
        start = text.find(part)
        if start < 0:
            raise ValueError(f"{name} {part!r} does not occur in the facts")
        if text.find(part, start + 1) >= 0:
            raise ValueError(f"{name} {part!r} occurs more than once in the facts")
        return Span(start, start + len(part))


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{name} is empty")
    if text != " ".join(text.split()):
        raise ValueError(f"{name} holds a line break or needless spaces: {text!r}")
    if not text.isprintable():
        raise ValueError(f"{name} holds a character that cannot be printed: {text!r}")


@dataclass(frozen=True)
class NeedleSet:
    """Needles under a name; `sha256` is that of the file's bytes."""

    name: str
    sha256: str
    needles: tuple[Needle, ...]

    def __len__(self) -> int:
        return len(self.needles)

    def __post_init__(self) -> None:
        twice = sorted(i for i, count in Counter(needle.id for needle in self.needles).items() if count > 1)
        if twice:
            raise ValueError(f"the needle id {twice[0]!r} is used more than once")


def load_needles(name_or_path: str | Path) -> NeedleSet:
    """A shipped set by its name (retrieval, reasoning, nonliteral), else the JSONL file of that path.

    A shipped name takes precedence over a file of the same name (write `./retrieval` for the file). Runs of whitespace
    inside a text count as one space, empty lines are skipped. Raises `OptionError` for an unknown name,
    `FileFormatError` with path and line for a broken line, a repeated id or a file without needles.
    """
    refuse_empty({"needles": name_or_path})
    shipped = shipped_needle_sets()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise OptionError(f"no needle set and no file {str(name_or_path)!r}; there are {', '.join(shipped)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror}", path) from error
    return NeedleSet(path.stem, hashlib.sha256(data).hexdigest(), _parse(data, path))


def _parse(data: bytes, path: Path) -> tuple[Needle, ...]:
    needles: dict[str, Needle] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            needle = _needle(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise FileFormatError(f"not UTF-8: {error.reason} at byte {error.start}", path, number) from error
        except RecursionError as error:
            raise FileFormatError("nested too deep", path, number) from error
        except ValueError as error:
            raise FileFormatError(_reason(error), path, number) from error
        if needle.id in needles:
            raise FileFormatError(f"id {needle.id!r} was used in line {lines[needle.id]} already", path, number)
        needles[needle.id], lines[needle.id] = needle, number
    if not needles:
        raise FileFormatError("holds no needle", path)
    return tuple(needles.values())


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return str(error)


def _needle(line: str) -> Needle:
    """One line as a needle. Raises `ValueError` naming the field that is wrong."""
    record = json.loads(line, object_pairs_hook=_unique)
    if not isinstance(record, dict):
        raise ValueError(f"a needle is a JSON object, not {type(record).__name__}")
    known = [field.name for field in fields(Needle)]
    for name in record:
        if name not in known:
            raise ValueError(f"unknown field {name!r}; the fields are {', '.join(known)}")
    facts = record.get("facts")
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise ValueError("facts must be a list of strings")
    return Needle(
        id=_text(record, "id"),
        kind=_text(record, "kind"),
        relation=_text(record, "relation"),
        facts=tuple(" ".join(fact.split()) for fact in facts),
        answer=_text(record, "answer"),
        question=_text(record, "question"),
        distractor=None if record.get("distractor") is None else _text(record, "distractor"),
        language=_text(record, "language") if "language" in record else "en",
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    if not isinstance(record[name], str):
        raise ValueError(f"{name} must be a string, got {json.dumps(record[name])[:40]}")
    return " ".join(record[name].split())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a field is given twice")
    return record
