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

from headprobe.errors import OptionError, OutputExistsError, shown
from headprobe.profiling.journal import Check, Journal, written_so_far
from headprobe.profiling.journal_file import HeldError, is_journal, is_unwritten, open_locked
from headprobe.profiling.journal_records import Record
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
