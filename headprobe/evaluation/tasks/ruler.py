"""RULER (arXiv 2404.06654), made on this machine to a length in the model's own tokens; or read from its files.

The thirteen sets with RULER's settings (numbers of keys, values, hops, word frequencies), answer lengths and metrics.
Words, sentences and background are ours: prose comes from a haystack, keys and words from that haystack's vocabulary.
Departures: `cwe` lowers its frequencies where 300 words do not fit, and sizes are searched once per set and length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headprobe.errors import OptionError, PlanError
from headprobe.evaluation.task import TaskQuestion, TaskRequest, TaskSet
from headprobe.evaluation.task_prompts import Encoder
from headprobe.evaluation.tasks.files import (
    Asked,
    DataRow,
    SetFacts,
    answers_in,
    file_set,
    find_file,
    question_of,
    read_rows,
)
from headprobe.evaluation.tasks.ruler_kinds import KINDS, Kind, Material, read_documents
from headprobe.models.loading import LoadedModel
from headprobe.probes.haystack import load_haystack
from headprobe.probes.plan import check_length

QUESTIONS = 20  # of a set and length, where no limit says otherwise
_SAVED = re.compile(r"(\d+)/(\w+)")


@dataclass(frozen=True)
class RulerTask:
    """`ruler:niah_single_1+vt` is made, to each of `--lengths`; `ruler:4096/vt` is read from `--data-dir`."""

    name: str = "ruler"
    about: str = "made to any length: needles of eight kinds, variables, word counts, questions among documents"
    source: str = "RULER, arXiv 2404.06654, github.com/NVIDIA/RULER (Apache-2.0); its words and texts are ours"
    sets: tuple[str, ...] = tuple(KINDS)

    def load(self, asked: TaskRequest) -> list[TaskSet]:
        """The sets that are asked for; all that need no file by default. Raises as `Task.load`."""
        saved = [part.strip() for part in asked.wanted.split("+") if "/" in part]
        made = [part for part in asked.wanted.split("+") if "/" not in part]
        found = [set_ for name in saved for set_ in [_saved_set(name, asked)]]
        if made or not saved:
            found += _made_sets(TaskRequest(**{**vars(asked), "wanted": "+".join(made)}))
        return found


# Sets that are made.


def _made_sets(asked: TaskRequest) -> list[TaskSet]:
    default = [name for name, kind in KINDS.items() if kind.files is None]
    names = asked.sets(list(KINDS), "ruler", default)
    haystack = load_haystack(asked.haystack)
    sets = []
    for name in names:
        kind = KINDS[name]
        documents = None
        if kind.files is not None:
            if asked.data_dir is None:
                raise OptionError(f"ruler:{name} is made from {' or '.join(kind.files)}: --data-dir names its folder")
            documents = read_documents(find_file(asked.data_dir, "ruler", kind.files))
        material = Material(haystack, documents)
        for length in asked.lengths or (None,):
            title = f"ruler:{name}" if length is None else f"ruler:{name}@{length}"
            made = partial(_questions, title, kind, material, length, asked)
            sets.append(TaskSet(title, kind.metric, kind.max_new_tokens, made))
    return sets


def _questions(
    title: str, kind: Kind, material: Material, length: int | None, asked: TaskRequest, loaded: LoadedModel
) -> Sequence[TaskQuestion]:
    longest = loaded.window if length is None else length
    check_length(longest, loaded.window)
    encoder = Encoder(loaded, asked.chat)
    fit = _Fit(title, kind, material, longest - kind.max_new_tokens, encoder, asked.seed)
    number = QUESTIONS if asked.limit is None else asked.limit
    return [fit.question(place) for place in range(1, number + 1)]


class _Fit:
    """Makes questions as large as fit into `room` tokens. The size is searched for the first one."""

    def __init__(self, title: str, kind: Kind, material: Material, room: int, encoder: Encoder, seed: int) -> None:
        self._title, self._kind, self._material = title, kind, material
        self._room, self._encoder, self._seed = room, encoder, seed
        self._size = self._largest()

    def question(self, place: int) -> TaskQuestion:
        size = self._size
        while not self._fits(made := self._made(place, size)):
            size -= max(1, size // 100)
            if size < self._kind.least:
                raise self._too_short()
        return made

    def _made(self, place: int, size: int) -> TaskQuestion:
        return self._kind.make(f"{self._title}/{place}", self._material, f"{self._seed}/{self._title}/{place}", size)

    def _fits(self, question: TaskQuestion) -> bool:
        return len(self._encoder.ids(question.text, question.lead)) <= self._room

    def _largest(self) -> int:
        most = self._kind.most(self._material)
        low = self._kind.least
        if low > most or not self._fits(self._made(1, low)):
            raise self._too_short()
        high = low
        while high < most and self._fits(self._made(1, min(2 * high, most))):
            low = high = min(2 * high, most)
        high = min(2 * high, most)
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(self._made(1, middle)):
                low = middle
            else:
                high = middle - 1
        return low

    def _too_short(self) -> PlanError:
        return PlanError(f"{self._title}: {self._room} tokens beside the answer are too few for its smallest prompt")


# Sets that are read.


def _saved_set(name: str, asked: TaskRequest) -> TaskSet:
    found = _SAVED.fullmatch(name)
    if found is None or found.group(2) not in KINDS:
        raise OptionError(f"ruler has no set {name!r:.60}: sets of files are LENGTH/SET, such as 4096/vt")
    if asked.data_dir is None:
        raise OptionError(f"ruler:{name} is read from files: --data-dir names their folder")
    kind = KINDS[found.group(2)]
    facts = SetFacts("{context}{input}", kind.metric, kind.max_new_tokens)
    path = find_file(asked.data_dir, "ruler", (f"{name}.jsonl", f"{name}/validation.jsonl"))
    questions = tuple(_read(path, f"ruler:{name}", asked.limit))
    if not questions:
        raise OptionError(f"{path} holds no question")
    return file_set(f"ruler:{name}", facts, questions)


def _read(path: Path, title: str, limit: int | None) -> Iterator[TaskQuestion]:
    for place, row in enumerate(read_rows(path), 1):
        if limit is not None and place > limit:
            return
        yield question_of(f"{title}/{place}", "{context}{input}", _asked(row))


def _asked(row: DataRow) -> Asked:
    """One row: `input` (the whole prompt), `outputs`, and `answer_prefix` where it stands apart."""
    lead = row.text("answer_prefix") if "answer_prefix" in row.fields else ""
    return Asked("", row.text("input", blank=False), answers_in(row, "outputs"), lead=lead.strip())


RULER = RulerTask()
