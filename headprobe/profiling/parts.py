"""Parts of a run put together from their journals alone, where neither the model nor the needles are at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headprobe.errors import FileFormatError, OptionError, ResumeError
from headprobe.profiling.journal import Check, contents, plan_changes
from headprobe.profiling.journal_records import Record
from headprobe.profiling.shards import has_run

_NAMED = re.compile(r"\.shard-([0-9]+)-of-([0-9]+)\.")
MOST_NAMED = 5  # parts that a message lists


@dataclass(frozen=True, eq=False)
class JoinedParts:
    """The trials of journals that belong to one `plan`, by id, in the order of their writing; a finished one rather
    than one that found no memory. `frame`: what their headers state besides; `dropped`: how many damaged lines were
    left out at the end of which journal."""

    paths: tuple[Path, ...]
    plan: Record
    frame: Record
    records: dict[str, Record]
    dropped: Mapping[Path, int]

    def refuse_incomplete(self, ids: Sequence[str], check: Check) -> None:
        """Raise `ResumeError` unless there is a record for each of `ids`, and `FileFormatError` for one that `check`
        refuses."""
        for trial, record in self.records.items():
            try:
                check(record)
            except ValueError as error:
                raise FileFormatError(f"damaged trial {trial!r:.80}: {error}", self._holder(trial)) from None
        lacking = [trial for trial in ids if trial not in self.records]
        if lacking:
            absent = absent_parts(self.paths)
            told = f"there is nothing of part {', '.join(absent[:MOST_NAMED])}" if absent else "a part is not finished"
            more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
            raise ResumeError(
                f"{len(lacking):,} of {len(ids):,} trials are missing, the first is {lacking[0]!r:.80}: {told}{more}; "
                "run it, with --resume where it was begun, then merge again"
            )

    def _holder(self, trial: str) -> Path:
        return next(path for path in self.paths if any(r["trial"] == trial for r in contents(path).records))


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
    assert first.frame is not None
    dropped = {part.path: part.dropped for part in found if part.dropped}
    return JoinedParts(tuple(paths), first.plan, first.frame, records, dropped)


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
