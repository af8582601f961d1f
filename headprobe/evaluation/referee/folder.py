"""Where a referee writes: its parts as they come, what is made of them, and the detectors' score files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.evaluation.knockout.bench import KnockoutBench
from headprobe.evaluation.knockout.checks import RecordCheck
from headprobe.evaluation.knockout.switched_off import HeadSet
from headprobe.models.catalog import short_name
from headprobe.profiling.journal import Check, Journal, check_journal
from headprobe.scores.files import check_place, refuse_one_place

PARTS, KNOCKOUT, RESULT, TABLE, PICTURE = "parts.jsonl", "knockout.jsonl", "referee.json", "referee.md", "referee.png"
SCORES = "scores"


@dataclass(frozen=True)
class RefereeFolder:
    """`parts.jsonl` and `knockout.jsonl` are the run itself, beside the score files in `scores/`; all else is made from
    them."""

    path: Path

    @classmethod
    def default(cls, model: str) -> RefereeFolder:
        """`evals/referee--<model>`."""
        return cls(Path("evals") / f"referee--{short_name(model).replace('/', '--')}")

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.path / name

    def scores(self, method: str) -> Path:
        """The score file of a detector that is scored here."""
        return self.path / SCORES / f"{method}.json"

    def check(
        self,
        scored: Sequence[str],
        *,
        resume: bool,
        overwrite: bool,
        inputs: Mapping[str, Path | str | None],
    ) -> None:
        """Refuse what would fail, or lose a file, before the long work begins; `scored`: detectors that get a file.

        Raises as `GridFolder.check`.
        """
        journals, derived = (PARTS, KNOCKOUT), (RESULT, TABLE, PICTURE)
        places = {name: self.file(name) for name in (*journals, *derived)}
        places |= {f"{SCORES}/{name}.json": self.scores(name) for name in scored}
        refuse_one_place({f"the output's {name}": place for name, place in places.items()}, inputs)
        held = [
            check_journal(self.file(name), resume=resume, overwrite=overwrite, holding="a run") for name in journals
        ]
        for name in derived:
            check_place(self.file(name), overwrite or (resume and any(held)))

    def journal(self, plan: Mapping[str, Any], check: Check, *, resume: bool, overwrite: bool) -> Journal:
        """The parts so far, to be added to; without `resume` those of an older run are forgotten.

        Raises as `Journal.open`.
        """
        journal = Journal.open(self.file(PARTS), plan, resume=resume, overwrite=overwrite, check=check)
        if not resume:
            self.file(KNOCKOUT).unlink(missing_ok=True)
        return journal

    def knockout(self, bench: KnockoutBench, sets: Sequence[HeadSet]) -> Journal:
        """What was measured of these sets of heads so far. Raises as `Journal.resume`."""
        return Journal.resume(self.file(KNOCKOUT), bench.describe(sets), RecordCheck(bench, sets))
