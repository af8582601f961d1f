"""Files of questions: JSON lines and arrow tables, found in a folder or on the hub, and read with file and line."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, OptionError, shown
from headprobe.evaluation.extras import needed
from headprobe.evaluation.metrics import metric_named
from headprobe.evaluation.task import TaskQuestion, TaskRequest, TaskSet, parts_of
from headprobe.scores.strict_json import parse

LONGEST_LINE = 2**28  # bytes; InfiniteBench's books have millions


@dataclass(frozen=True, eq=False)
class DataRow:
    """One row of a file (or of a hub's set): `line` counts from 1. Every getter raises `FileFormatError`."""

    fields: Mapping[str, Any]
    path: Path | str
    line: int

    def fault(self, reason: str) -> FileFormatError:
        """The error that names file and line."""
        return FileFormatError(reason, self.path, self.line)

    def get(self, *names: str) -> Any:
        """The first of the fields that is there."""
        for name in names:
            if name in self.fields:
                return self.fields[name]
        raise self.fault(f"the field {' or '.join(map(repr, names))} is missing")

    def text(self, *names: str, blank: bool = True) -> str:
        """A text; `blank` says whether it may be empty."""
        value = self.get(*names)
        if not isinstance(value, str):
            raise self.fault(f"{names[0]!r} is {shown(value)}, need a text")
        if not blank and not value.strip():
            raise self.fault(f"{names[0]!r} is empty")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fault(f"{names[0]!r} holds half of a surrogate pair at character {error.start}") from None
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """Texts of a list, or a single one; numbers are taken as they are written."""
        value = self.get(*names)
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
            raise self.fault(f"{names[0]!r} is {shown(value)}, need a text or a list of texts")
        return tuple(str(each) for each in values)

    def literal(self, *names: str) -> Any:
        """A value that is there as it is, or written out as a Python literal: read, never run."""
        value = self.get(*names)
        if not isinstance(value, str):
            return value
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise self.fault(f"{names[0]!r} is no Python literal: {type(error).__name__}") from None


# Rows of a file, or of a set on the hub.


def read_rows(path: Path) -> Iterator[DataRow]:
    """The rows of a `.jsonl` or `.arrow` file, one after another. Raises `FileFormatError`."""
    yield from _arrow_rows(path) if path.suffix == ".arrow" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[DataRow]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise FileFormatError(f"longer than the limit of {LONGEST_LINE} bytes", path, number)
                if line.strip():
                    yield DataRow(_object(line.lstrip(b"\xef\xbb\xbf"), path, number), path, number)
    except OSError as error:
        raise FileFormatError(error.strerror or str(error), path) from None


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = parse(line)
    except FileFormatError as error:
        raise FileFormatError(str(error), path, number) from None
    if not isinstance(value, dict):
        raise FileFormatError(f"need a JSON object, got {shown(value)}", path, number)
    return value


def _arrow_rows(path: Path) -> Iterator[DataRow]:
    arrow = needed("pyarrow", f"reading {path.name}")
    ipc = needed("pyarrow.ipc", f"reading {path.name}")
    try:
        with arrow.memory_map(str(path)) as source:
            try:
                table = ipc.open_stream(source).read_all()
            except arrow.ArrowInvalid:
                source.seek(0)
                table = ipc.open_file(source).read_all()
            rows = table.to_pylist()
    except (arrow.ArrowInvalid, OSError) as error:
        raise FileFormatError(f"no arrow table: {' '.join(str(error).split())[:200]}", path) from None
    for number, fields in enumerate(rows, 1):
        yield DataRow(fields, path, number)


def hub_rows(repo: str, config: str | None, split: str) -> Iterator[DataRow]:
    """The rows of a data set on the Hugging Face hub, by way of `datasets`. Raises `OptionError`."""
    what = f"{repo}{'' if config is None else f' ({config})'}"
    datasets = needed("datasets", f"{what} without --data-dir")
    try:
        table = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # of the network, the hub, the set's own files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OptionError(f"{what} cannot be fetched from the hub: {reason}; --data-dir names files instead") from None
    for number, fields in enumerate(table, 1):
        yield DataRow(fields, what, number)


def find_file(data_dir: Path, task: str, names: Sequence[str]) -> Path:
    """The first file that is there of `names`, in `data_dir` or in its folder `task`. Raises `OptionError`."""
    places = [folder / name for name in names for folder in (data_dir / task, data_dir)]
    if not data_dir.is_dir():
        raise OptionError(f"--data-dir {data_dir} is no folder")
    for place in places:
        if place.is_file():
            return place
    raise OptionError(f"no file {' or '.join(names)} of {task} in {data_dir} or {data_dir / task}")


# A task whose questions stand in files.


@dataclass(frozen=True)
class SetFacts:
    """How a set is asked and measured. `template`: our wording, with `{context}` and `{input}`."""

    template: str
    metric: str
    max_new_tokens: int
    chat: bool = True
    first_line: bool = False


@dataclass(frozen=True)
class Asked:
    """What a row asks: `question` goes in the place of `{input}`, `lead` opens the answer."""

    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class HubPlace:
    """Where a set lies on the hub."""

    repo: str
    config: str | None
    split: str


@dataclass(frozen=True, eq=False)
class FileTask:
    """A task of files: `facts` of each set, `names(set)`: what its file may be called, `hub(set)`: where it is else.

    `read(row, set)` gives what a row asks; `settle` sees all questions of a set before any is left out by a limit.
    """

    name: str
    about: str
    source: str
    facts: Mapping[str, SetFacts]
    names: Callable[[str], Sequence[str]]
    hub: Callable[[str], HubPlace | None]
    read: Callable[[DataRow, str], Iterable[Asked]]
    settle: Callable[[list[Asked]], list[Asked]] | None = None
    default: tuple[str, ...] | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of its sets."""
        return tuple(self.facts)

    def load(self, asked: TaskRequest) -> list[TaskSet]:
        """Its sets, read. Raises as `Task.load`."""
        wanted = asked.sets(self.sets, self.name, self.default)
        for name in wanted:
            metric_named(self.facts[name].metric)
        return [self._set(name, asked) for name in wanted]

    def _set(self, name: str, asked: TaskRequest) -> TaskSet:
        facts = self.facts[name]
        template = asked.template(self.name, name, facts.template)
        questions = tuple(self._questions(name, template, asked))
        if not questions:
            raise OptionError(f"{self.name}:{name} has no question")
        return file_set(f"{self.name}:{name}", facts, questions)

    def _questions(self, name: str, template: str, asked: TaskRequest) -> Iterator[TaskQuestion]:
        rows = self._rows(name, asked)
        if self.settle is not None:
            found: Iterable[Asked] = self.settle([each for row in rows for each in self.read(row, name)])
        else:
            found = (each for row in rows for each in self.read(row, name))
        for number, each in enumerate(islice(found, asked.limit), 1):
            yield question_of(f"{self.name}:{name}/{number}", template, each)

    def _rows(self, name: str, asked: TaskRequest) -> Iterator[DataRow]:
        if asked.data_dir is not None:
            return read_rows(find_file(asked.data_dir, self.name, self.names(name)))
        place = self.hub(name)
        if place is None:
            raise OptionError(f"{self.name}:{name} is read from files: --data-dir names their folder")
        return hub_rows(place.repo, place.config, place.split)


def file_set(name: str, facts: SetFacts, questions: Sequence[TaskQuestion]) -> TaskSet:
    """A set whose questions are given."""
    return TaskSet(name, facts.metric, facts.max_new_tokens, lambda loaded: questions, facts.chat, facts.first_line)


def question_of(name: str, template: str, asked: Asked) -> TaskQuestion:
    """What a row asks, in the words of `template`; questions on one text are of one cluster."""
    head, tail = parts_of(template, asked.question)
    text = asked.context or f"{head}{tail}"
    return TaskQuestion(
        id=name,
        context=asked.context,
        answers=asked.answers,
        head=head,
        tail=tail,
        lead=asked.lead,
        classes=asked.classes,
        cluster=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def answers_in(row: DataRow, *names: str) -> tuple[str, ...]:
    """The answers of a row, empty ones left out. Raises `FileFormatError` where none of them says anything."""
    given = row.texts(*names)
    found = tuple(each for each in given if each.strip())
    if not found:
        raise row.fault(f"{names[0]!r} is {shown(list(given))}: there is no answer")
    return found
