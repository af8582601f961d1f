"""The parts of an evaluation as one run, without the model: rows in one file, and what the summary states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from headprobe.compression.kv_cache_dtypes import KV_CACHE_DTYPES
from headprobe.errors import FileFormatError, OptionError, OutputExistsError
from headprobe.evaluation.needle_folder import GridFolder, check_needle_head, check_needle_row
from headprobe.evaluation.summaries import EvaluationFrame, key_of
from headprobe.evaluation.task_folder import TaskFolder, check_task_head, check_task_row
from headprobe.evaluation.trials import Row
from headprobe.evaluation.variants import BASELINES, REAL
from headprobe.profiling.record_check import field, one_of, text, whole
from headprobe.profiling.shards import JoinedParts, clear_journals, drop_collected, joined, shard_journals

Made = TypeVar("Made")
RowCheck = Callable[[Mapping[str, Any]], None]
Checks = tuple[RowCheck, ...]
KINDS: tuple[tuple[type[GridFolder], Checks], ...] = (
    (GridFolder, (check_needle_head, check_needle_row)), (TaskFolder, (check_task_head, check_task_row)),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class MergedRun:
    """Rows of all parts that belong to one run: where it is written, and what its summary states besides them.

    `collects`: whether parts lie in that folder themselves, which they leave once their rows are in one file.
    """

    folder: GridFolder
    parts: JoinedParts
    frame: EvaluationFrame
    check: RowCheck
    collects: bool
    overwrite: bool

    @property
    def rows(self) -> list[Row]:
        """The rows as one process would have them, prompt by prompt, in the order in which each prompt's were
        written."""
        found: dict[str, list[Row]] = {prompt: [] for prompt in self.frame.prompts}
        for row in self.parts.records.values():
            found[row["prompt"]].append(row)
        return [row for rows in found.values() for row in rows]

    def made(self, finish: Callable[[list[Row]], Made]) -> Made:
        """Write the rows, and give what `finish` makes of them, in the order of the plan.

        Raises `ResumeError` where another process writes there, and `OutputExistsError`.
        """
        if not self.collects and self.overwrite:
            clear_journals(shard_journals(self.folder.place()))
        with self.folder.journal(
            self.parts.plan, resume=self.collects, overwrite=self.overwrite, check=self.check, frame=self.frame
        ) as journal:
            journal.add_all([row for row in self.rows if journal.records.get(row["trial"]) != row])
            made = finish([self.parts.records[trial] for trial in self.frame.trials])
        if self.collects:
            drop_collected(shard_journals(self.folder.place()))
        return made


def merged_run(folders: Sequence[Path], output: Path | None = None, *, overwrite: bool = False) -> MergedRun:
    """The run whose parts lie in `folders`, complete and checked; it is to be written to `output`, by default into the
    only folder. Nothing is written yet.

    Raises `OptionError` for folders without rows, for several without an output and for rows of needles among rows of
    tasks, `ResumeError` where a trial is missing or a part belongs to another plan, `FileFormatError`,
    `OutputExistsError` and `FileAccessError`.
    """
    if output is None and len(folders) > 1:
        raise OptionError(f"{len(folders)} folders are given: name the one to write with -o")
    kind, checks = _kind(folders)
    target = kind(folders[0] if output is None else output)
    paths = [path for folder in folders for path in _journals(kind(folder))]
    parts = joined(paths)
    try:
        frame = EvaluationFrame.of_record(parts.frame)
    except ValueError as error:
        raise FileFormatError(str(error), paths[0], 1) from None
    check = _MergedRowCheck(frame, checks)
    parts.refuse_incomplete(frame.trials, check)
    collects = any(_is_same(folder, target.path) for folder in folders)
    if not collects and not overwrite and (held := _journals(target)):
        raise OutputExistsError(f"{held[0]} holds rows already: name another folder, or add --overwrite")
    target.check(resume=collects, overwrite=overwrite)
    return MergedRun(target, parts, frame, check, collects, overwrite)


class _MergedRowCheck:
    """The check of a row by its own id, where prompts and policies are not at hand."""

    def __init__(self, frame: EvaluationFrame, checks: Checks) -> None:
        self._prompts = {trial: prompt for prompt in frame.prompts for trial in frame.trials_of(prompt)}
        self._frame, self._checks = frame, checks

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a row that is wrong."""
        prompt = self._prompts.get(row["trial"])
        if prompt is None:
            raise ValueError("the run has no such trial")
        if row.get("prompt") != prompt:
            raise ValueError(f"its prompt is {row.get('prompt')!r:.60}, the run has {prompt!r:.60}")
        self._check_answer(row)
        for check in self._checks:
            check(row)

    def _check_answer(self, row: Mapping[str, Any]) -> None:
        """The cell that a row goes into must be that of its trial, and its set one of the run, with its metric."""
        text(row, "policy")
        one_of(row, "scores", (None, REAL, *BASELINES))
        one_of(row, "query_agnostic", (self._frame.stated["query_agnostic"],))
        if field(row, "budget") is not None:
            whole(row, "budget", 1)
        if "kv_cache_dtype" in row:
            one_of(row, "kv_cache_dtype", KV_CACHE_DTYPES)
        key = key_of(dict(row))
        answer = f"{key.name}|{'-' if key.budget is None else key.budget}"
        if row["trial"] != f"{row['prompt']}|{answer}":
            raise ValueError(f"its policy and budget are {answer!r:.60}")
        if (key.scores is None) != (self._frame.stated["policies"][key.name]["scores"] is None):
            raise ValueError(f"its scores are {key.scores!r}, which is not what {key.name!r:.60} goes by")
        if "metrics" in self._frame.stated:
            one_of(row, "set", self._frame.stated["metrics"])
            one_of(row, "metric", (self._frame.stated["metrics"][row["set"]],))


def _kind(folders: Sequence[Path]) -> tuple[type[GridFolder], Checks]:
    """Whether needles or tasks lie there."""
    found = [(kind, check) for kind, check in KINDS if any(_journals(kind(folder)) for folder in folders)]
    names = " or ".join(kind.rows for kind, _ in KINDS)
    if not found:
        raise OptionError(f"{', '.join(map(str, folders))}: no {names} of an evaluation there, nor a part of one")
    if len(found) > 1:
        raise OptionError(f"{', '.join(map(str, folders))}: both {names.replace(' or ', ' and ')}, which never are one")
    return found[0]


def _journals(folder: GridFolder) -> list[Path]:
    whole = folder.place()
    return [*([whole] if whole.exists() else []), *shard_journals(whole)]


def _is_same(folder: Path, other: Path) -> bool:
    return folder.exists() and other.exists() and folder.samefile(other)
