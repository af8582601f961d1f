"""How an evaluation runs: alone, as one of N parts, or as a rank of torchrun's; what a part prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from headprobe.commands.evaluate.needles_output import GridProgress
from headprobe.commands.interrupts import Orderly
from headprobe.commands.output import RESUME_HINT, stdout_console, tell, tell_cut, write_json
from headprobe.evaluation.needle_folder import GridFolder
from headprobe.evaluation.needle_grid import NeedleGrid
from headprobe.evaluation.shared_run import SharedRun
from headprobe.evaluation.shares import Share, own_trials, unfinished
from headprobe.evaluation.summaries import EvaluationFrame
from headprobe.evaluation.task_grid import TaskGrid
from headprobe.evaluation.trials import Row
from headprobe.profiling.journal import Check, Journal
from headprobe.profiling.ranks import Ranks, asked_shard
from headprobe.profiling.shards import Shard

Inputs = Mapping[str, Path | str | None]
Made = TypeVar("Made")
Runner = Callable[[Journal, Share, GridProgress], list[Row]]


@dataclass(frozen=True)
class Spread:
    """How a run goes on or begins, how long it may take, what of it this process does, and how it is printed.

    `shard`: one of N parts; `ranks`: the processes of torchrun's, this one's rank among them; both None: all of it.
    """

    resume: bool
    overwrite: bool
    minutes: float | None
    as_json: bool
    shard: Shard | None = None
    ranks: Ranks | None = None

    @classmethod
    def of(cls, written: str | None, resume: bool, overwrite: bool, minutes: float | None, as_json: bool) -> Spread:
        """As the options say, `written` being that of `--shard`, and torchrun. Raises `OptionError`."""
        ranks = Ranks.of_environment()
        shard = asked_shard(written, ranks)
        return cls(resume, overwrite, minutes, as_json, None if ranks is not None else shard, ranks)

    @property
    def is_first(self) -> bool:
        """Whether it is this process that prints."""
        return self.ranks is None or self.ranks.rank == 0

    @property
    def seconds(self) -> float | None:
        """After which no new prompt is begun."""
        return None if self.minutes is None else 60 * self.minutes

    def device(self, asked: str) -> str:
        """The device of this process."""
        return asked if self.ranks is None else self.ranks.device(asked)

    def check(self, folder: GridFolder, inputs: Inputs) -> None:
        """Refuse what would fail before the long work begins. Raises as `GridFolder.check`."""
        parts = [self.shard] if self.ranks is None else [self.ranks.shard, *([None] if self.is_first else [])]
        for shard in parts:  # rank 0 writes the whole, too
            folder.check(resume=self.resume, overwrite=self.overwrite, inputs=inputs, shard=shard)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A grid in its folder: `plan` decides what rows hold, `check` is that of rows which are read back, `frame` what
    the summary states besides."""

    grid: NeedleGrid | TaskGrid
    folder: GridFolder
    plan: dict[str, Any]
    check: Check
    frame: EvaluationFrame


def run_spread(asked: Evaluation, spread: Spread, run: Runner, finish: Callable[[list[Row]], Made]) -> Made | None:
    """What `finish` makes of the rows of a whole run, which `run` gives, while nobody else can add any.

    None where this process does a part only, which prints where its rows are, or is another rank than the first.
    """
    shared = SharedRun(
        asked.folder, asked.plan, asked.check, spread.resume, spread.overwrite, spread.shard, tell_cut, asked.frame
    )
    own = 0

    def work(journal: Journal, share: Share) -> list[Row]:
        nonlocal own
        trials: list[Any] = own_trials(asked.grid.work(), share)
        left = unfinished(trials, journal, share)
        own = len(trials)
        collects = spread.ranks is not None and share.shard is None
        shown = spread.is_first and bool(left or not collects)
        with GridProgress(asked.grid, left, own=trials, shown=shown) as progress:
            return run(journal, share, progress)

    with Orderly(RESUME_HINT):
        if spread.ranks is not None:
            return shared.made_by_ranks(spread.ranks, work, finish)
        made = shared.made(work, finish)
    if spread.shard is not None:
        print_part(asked, spread, own)
    return made


def print_part(asked: Evaluation, spread: Spread, own: int) -> None:
    """What a part did, and how its rows become a summary."""
    path, total = asked.folder.place(spread.shard), asked.grid.num_trials
    if spread.as_json:
        part = {"shard": str(spread.shard), "rows": str(path), "num_trials": own, "num_trials_of_plan": total}
        write_json(part)
    else:
        told = f"part {spread.shard}: {own:,} of {total:,} trials, written to {path}"
        stdout_console().print(told, soft_wrap=True, markup=False)
    tell(
        "when all parts are done, the same command with --resume and without --shard writes the summary, and so does "
        f"`headprobe eval merge {asked.folder.path}`, which needs no model"
    )
