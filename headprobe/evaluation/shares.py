"""Shares of an evaluation: which prompts a process asks, and how the rows of many processes become one run again.

A part of a run asks its own prompts and leaves a journal of rows, no summary. The run that collects puts the rows of
the parts into its own file in the order in which one process would have written them, and asks what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from headprobe.evaluation.trials import Row, Trial, emit_row
from headprobe.events import PLAN, emit
from headprobe.profiling.journal import Journal
from headprobe.profiling.shards import Shard, has_run, trial_costs

AnyTrial = TypeVar("AnyTrial", bound=Trial)
Rows = Generator[tuple[AnyTrial, Row], None, None]


@dataclass(frozen=True)
class Share:
    """What of a run is this process's: the prompts of `shard` (None: all). `elsewhere`: finished rows of others, by
    trial id and in the order in which they were written."""

    shard: Shard | None = None
    elsewhere: Mapping[str, Row] = field(default_factory=dict)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {trial: place for place, trial in enumerate(self.elsewhere)}

    def own(self, tokens: Sequence[int]) -> Sequence[int]:
        """Which of the prompts with so many `tokens` are asked here, in rising order."""
        return range(len(tokens)) if self.shard is None else self.shard.dealt(trial_costs(tokens))

    def taken_over(self, trials: Iterable[Trial]) -> list[Row]:
        """The rows that others have of `trials`, in the order of their writing."""
        found = [trial.id for trial in trials if trial.id in self.elsewhere]
        return [self.elsewhere[trial] for trial in sorted(found, key=self._places.__getitem__)]


ALL = Share()


@dataclass(frozen=True, eq=False)
class PromptWork(Generic[AnyTrial]):
    """A prompt of `tokens` tokens, answer included, and the trials that it goes through."""

    tokens: int
    trials: Callable[[], Iterable[AnyTrial]]


@dataclass(frozen=True, eq=False)
class Asking(Generic[AnyTrial]):
    """How prompts are asked: `answers` gives the rows of trials, all of one prompt; `warm_up` is called before the
    first of them, so that its times are not those of a cold start."""

    answers: Callable[[list[AnyTrial]], Rows[AnyTrial]]
    warm_up: Callable[[], None]
    on_trial: Callable[[AnyTrial, Row], None] | None = None


def own_trials(work: Sequence[PromptWork[AnyTrial]], share: Share = ALL) -> list[AnyTrial]:
    """All trials of the share, in the order in which they run."""
    own = share.own([prompt.tokens for prompt in work])
    return [trial for place in own for trial in work[place].trials()]


def unfinished(trials: Iterable[AnyTrial], journal: Journal, share: Share = ALL) -> list[AnyTrial]:
    """The trials that neither `journal` nor others have finished."""
    return [t for t in trials if not _holds(journal, t.id) and t.id not in share.elsewhere]


def run_share(
    work: Sequence[PromptWork[AnyTrial]],
    journal: Journal,
    asking: Asking[AnyTrial],
    *,
    share: Share = ALL,
    seconds: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Put a row into `journal` for every trial of `share` that nobody has finished.

    Without a shard the rows of others are put there too, each prompt's before those that it still lacks. After
    `seconds` no new prompt is asked. `about`: what the event of the plan says besides.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    all_trials = own_trials(work, share)
    left = len(unfinished(all_trials, journal, share))
    shard = None if share.shard is None else str(share.shard)
    emit(PLAN, **(about or {}), shard=shard, trials=len(all_trials), done=len(all_trials) - left)
    is_warm = False
    for place in share.own([prompt.tokens for prompt in work]):
        trials = list(work[place].trials())
        if share.shard is None:
            journal.add_all([row for row in share.taken_over(trials) if not _holds(journal, row["trial"])])
        lacking = unfinished(trials, journal, share)
        if not lacking or (deadline is not None and time.monotonic() >= deadline):
            continue
        if not is_warm:
            asking.warm_up()
            is_warm = True
        with closing(asking.answers(lacking)) as rows:
            for trial, row in rows:
                journal.add(row)
                emit_row(row, work[place].tokens)
                if asking.on_trial is not None:
                    asking.on_trial(trial, row)


def _holds(journal: Journal, trial: str) -> bool:
    """Whether its row is there and holds no error."""
    return trial in journal.records and has_run(journal.records[trial])
