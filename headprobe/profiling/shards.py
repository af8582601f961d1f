"""One plan on several machines: who runs which trials, and how their journals become one run again.

A shard runs its part of a plan and leaves a journal, no score file: what the file says follows from all trials. The
same command with `--resume` and without the shard takes the journals beside it over, runs what is missing, and writes
what one process would have written. Under `torchrun` every rank is a shard, and rank 0 collects.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, OptionError, OutputExistsError, ResumeError, shown
from headprobe.profiling.journal import Check, Journal, contents, plan_changes, written_so_far
from headprobe.profiling.journal_file import HeldError, Record, is_journal, is_unwritten, open_locked
from headprobe.scores.files import LONGEST_NAME

MOST_SHARDS = 100_000
QUADRATIC_FROM = 8192  # tokens from which on attention is taken to cost more than the rest
_WRITTEN = re.compile(r"([0-9]{1,6})/([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of a plan."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise OptionError(f"shard {self} is none: need K/N with K from 1 to N, and N at most {MOST_SHARDS}")

    @classmethod
    def parse(cls, written: str) -> Shard:
        """A shard from `K/N`. Raises `OptionError`.

        >>> Shard.parse("3/16")
        Shard(index=3, count=16)
        """
        found = _WRITTEN.fullmatch(written)
        if found is None:
            raise OptionError(f"the shard is {shown(written)}, need K/N such as 3/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def dealt(self, costs: Sequence[float]) -> list[int]:
        """Which of the trials with these `costs` are this shard's, in rising order: the dearest first, each to whoever
        has least by then. All shards of one count deal alike.

        >>> [Shard(k, 2).dealt([1.0, 5.0, 3.0, 3.0]) for k in (1, 2)]
        [[0, 1], [2, 3]]
        """
        loads = [(0.0, shard) for shard in range(self.count)]
        mine = []
        for trial in sorted(range(len(costs)), key=lambda trial: (-costs[trial], trial)):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + costs[trial], shard))
            if shard == self.index - 1:
                mine.append(trial)
        return sorted(mine)

    def journal(self, whole: Path) -> Path:
        """The shard's journal, beside that of the `whole` run."""
        ending = f".shard-{self.index}-of-{self.count}{whole.suffix}"
        return whole.with_name(whole.stem[: LONGEST_NAME - len(ending)] + ending)


def shard_journals(whole: Path) -> list[Path]:
    """The journals of shards beside that of the `whole` run, by name."""
    pattern = re.compile(re.escape(whole.stem) + r"\.shard-[0-9]+-of-[0-9]+" + re.escape(whole.suffix))
    if not whole.parent.is_dir():
        return []
    return sorted(path for path in whole.parent.iterdir() if pattern.fullmatch(path.name))


def trial_costs(tokens: Sequence[int]) -> list[float]:
    """What trials of N tokens cost, in tokens: attention grows with their square.

    >>> trial_costs([100, 8192])
    [101.220703125, 16384.0]
    """
    return [count + count * count / QUADRATIC_FROM for count in tokens]


def has_run(record: Record) -> bool:
    """Whether a trial has given something, in a record of a scoring run (`skipped`) or an evaluation (`error`)."""
    return "skipped" not in record and record.get("error") is None


def finished_elsewhere(
    paths: Sequence[Path],
    plan: Mapping[str, Any],
    check: Check,
    *,
    on_cut: Callable[[Path, int], None] | None = None,
) -> dict[str, Record]:
    """The finished trials in the journals at `paths`, by id; `on_cut` is called with each whose end was damaged, and
    with how many lines of it.

    Raises `ResumeError` for a journal of another plan and for one that is being written, `FileFormatError` for a
    damaged one.
    """
    found: dict[str, Record] = {}
    for path in paths:
        with Journal.resume(path, plan, check) as journal:
            if journal.was_cut and on_cut is not None:
                on_cut(path, journal.dropped)
            found |= {trial: record for trial, record in journal.records.items() if has_run(record)}
    return found


def finished_beside(whole: Path, own: Path | None, plan: Mapping[str, Any], check: Check) -> dict[str, Record]:
    """The trials that have been finished so far by others, by id: in the journals of the `whole` run and of its parts,
    but for one's `own`. They may be written meanwhile.

    Raises `ResumeError` for a journal of another plan, `FileFormatError` for a damaged one.
    """
    others = [path for path in (whole, *shard_journals(whole)) if path != own]
    records = (record for path in others for record in written_so_far(path, plan, check))
    return {record["trial"]: record for record in records if has_run(record)}


def clear_journals(paths: Sequence[Path]) -> None:
    """Remove journals, for a run that starts over. Raises `ResumeError` where another process writes one of them, and
    `OutputExistsError` for what is none; nothing is removed then."""
    held: list[tuple[Path, int]] = []
    try:
        for path in paths:
            if path.exists():
                descriptor, raw = open_locked(path)
                held.append((path, descriptor))
                if not is_unwritten(raw) and not is_journal(raw):
                    raise OutputExistsError(f"{path} exists but is not a journal of a run: move it away")
        for path, _ in held:
            path.unlink(missing_ok=True)
    finally:
        for _, descriptor in held:
            os.close(descriptor)


def drop_collected(paths: Sequence[Path]) -> None:
    """Remove the journals of parts whose trials are safely elsewhere; one that is being written again is left."""
    for path in paths:
        try:
            clear_journals([path])
        except HeldError:
            continue


# Parts of a run put together from their journals alone, where neither the model nor the needles are at hand.

_NAMED = re.compile(r"\.shard-([0-9]+)-of-([0-9]+)\.")
MOST_NAMED = 5  # parts that a message lists


@dataclass(frozen=True, eq=False)
class JoinedParts:
    """The trials of journals that belong to one `plan`, by id, in the order of their writing; a finished one rather
    than one that found no memory. `frame`: what their headers state besides; `holders`: where each trial was read."""

    paths: tuple[Path, ...]
    plan: Record
    frame: Record
    records: dict[str, Record]
    holders: dict[str, Path]

    def refuse_incomplete(self, ids: Sequence[str], check: Check) -> None:
        """Raise `ResumeError` unless there is a record for each of `ids`, and `FileFormatError` for one that `check`
        refuses."""
        for trial, record in self.records.items():
            try:
                check(record)
            except ValueError as error:
                raise FileFormatError(f"damaged trial {trial!r:.80}: {error}", self.holders[trial]) from None
        lacking = [trial for trial in ids if trial not in self.records]
        if lacking:
            absent = absent_parts(self.paths)
            named = f"by the names of the files there is nothing of part {', '.join(absent[:MOST_NAMED])}"
            told = named if absent else "a part is not finished"
            more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
            raise ResumeError(
                f"{len(lacking):,} of {len(ids):,} trials are missing, the first is {lacking[0]!r:.80}: {told}{more}; "
                "run it, with --resume where it was begun, then merge again"
            )


def joined(paths: Sequence[Path]) -> JoinedParts:
    """The trials of the journals at `paths`. They may be written meanwhile, and are left as they are.

    Raises `OptionError` for none, `FileFormatError` for what is no journal, for a damaged one and for one of a run that
    cannot be put together without its model, `ResumeError` for journals of different plans.
    """
    if not paths:
        raise OptionError("no journal of a part is given")
    found = [contents(path) for path in paths]
    first = found[0]
    records: dict[str, Record] = {}
    holders: dict[str, Path] = {}
    for part in found:
        if part.frame is None:
            raise FileFormatError(
                "this journal does not state what a merge needs: it is not of a part of `score` or `eval`, or an older "
                "headprobe wrote it; the run's own command with --resume collects such parts",
                part.path,
            )
        changed = plan_changes(first.plan, part.plan)
        if changed:
            raise ResumeError(f"{part.path} is of another plan than {first.path}, which differs in {changed[0]}")
        for record in part.records:
            if record["trial"] not in records or has_run(record):
                records[record["trial"]] = record
                holders[record["trial"]] = part.path
    assert first.frame is not None
    return JoinedParts(tuple(paths), first.plan, first.frame, records, holders)


def absent_parts(paths: Sequence[Path]) -> list[str]:
    """Which parts, as K/N, have no journal among `paths`, by the names of those; none where they do not agree in N.

    >>> absent_parts([Path("a.shard-1-of-3.journal"), Path("a.shard-3-of-3.journal")])
    ['2/3']
    """
    named = [match for path in paths for match in _NAMED.finditer(path.name)]
    counts = {int(match[2]) for match in named}
    if len(counts) != 1:
        return []
    count, there = counts.pop(), {int(match[1]) for match in named}
    return [f"{part}/{count}" for part in range(1, count + 1) if part not in there]
