"""An evaluation that several processes share: parts of it by number, ranks of torchrun's, and the run that collects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from headprobe.evaluation.needle_folder import GridFolder
from headprobe.evaluation.shares import Share
from headprobe.evaluation.summaries import EvaluationFrame
from headprobe.evaluation.trials import Row
from headprobe.profiling.journal import Check, Journal
from headprobe.profiling.ranks import Ranks
from headprobe.profiling.shards import (
    Shard,
    clear_journals,
    drop_collected,
    finished_beside,
    finished_elsewhere,
    has_run,
    shard_journals,
)

Work = Callable[[Journal, Share], list[Row]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class SharedRun:
    """Where an evaluation of `plan` is written, and whether it goes on or begins anew.

    `check`: of rows that are read back; `shard`: the part that this process runs, None for all of it; `on_cut`: called
    with a file of rows and how many lines at its end were damaged; `frame`: what the summary states besides results.
    """

    folder: GridFolder
    plan: dict[str, Any]
    check: Check
    resume: bool = False
    overwrite: bool = False
    shard: Shard | None = None
    on_cut: Callable[[Path, int], None] | None = None
    frame: EvaluationFrame | None = None

    def made(self, work: Work, finish: Callable[[list[Row]], Made]) -> Made | None:
        """What `finish` makes of all rows while no other process can add any; `work` gives them, those of parts beside
        it taken over where the run goes on. In a part, which leaves rows of its own prompts in a file of its own: None.

        Raises `ResumeError` where a part is still being written or belongs to another plan, and as `work`.
        """
        if self.shard is None:
            return self._whole(work, finish)
        self._part(work)
        return None

    def made_by_ranks(self, ranks: Ranks, work: Work, finish: Callable[[list[Row]], Made]) -> Made | None:
        """As `made`, on rank 0; None on the others. Rows travel over the network: no folder need be shared.

        Raises as `made`, `LostRankError`, and `ResumeError` where the ranks have different plans.
        """
        with ranks.together():
            ranks.agree(self.plan)
            if ranks.rank == 0 and self.overwrite and not self.resume:
                whole = self.folder.place()
                clear_journals([whole, *shard_journals(whole)])
            ranks.wait()
            rows = ranks.gathered(replace(self, shard=ranks.shard)._part(work))
        if rows is None:
            return None
        sent = {row["trial"]: row for row in rows if has_run(row)}
        return replace(self, shard=None, resume=True)._whole(work, finish, sent)

    def _part(self, work: Work) -> list[Row]:
        whole, place = self.folder.place(), self.folder.place(self.shard)
        found = finished_beside(whole, place, self.plan, self.check) if self.resume else {}
        with self._journal() as journal:
            self._tell_cut(journal)
            return work(journal, Share(self.shard, found))

    def _whole(self, work: Work, finish: Callable[[list[Row]], Made], sent: Mapping[str, Row] | None = None) -> Made:
        parts = shard_journals(self.folder.place())
        if not self.resume and self.overwrite:
            clear_journals(parts)
        found = finished_elsewhere(parts if self.resume else [], self.plan, self.check, on_cut=self.on_cut)
        with self._journal() as journal:
            self._tell_cut(journal)
            made = finish(work(journal, Share(None, found | dict(sent or {}))))
            if self.resume:
                drop_collected(parts)
        return made

    def _tell_cut(self, journal: Journal) -> None:
        if journal.was_cut and self.on_cut is not None:
            self.on_cut(journal.path, journal.dropped)

    def _journal(self) -> Journal:
        return self.folder.journal(
            self.plan, resume=self.resume, overwrite=self.overwrite, check=self.check, shard=self.shard,
            frame=self.frame,
        )  # fmt: skip
