"""The folder of a needle grid: rows as they come, checked when read back, and what is made from them in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from headprobe.compression.policies import parameters
from headprobe.evaluation.needle_grid import NeedleGrid
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.evaluation.needle_trial import MEASURED
from headprobe.evaluation.summaries import EvaluationFrame
from headprobe.evaluation.variants import Variant
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel
from headprobe.profiling.journal import Check, Journal, check_journal, check_run
from headprobe.profiling.record_check import CHOICES, field, number, one_of, share, text, whole
from headprobe.profiling.shards import Shard, shard_journals
from headprobe.scores.files import refuse_one_place
from headprobe.stages import stage_record

if TYPE_CHECKING:
    from headprobe.evaluation.needle_grid import NeedleGrid


# Whether a row, read back from a needle grid's journal, is what a trial of that grid writes.

COUNTS = ("new_tokens", "kv_entries", "kv_entries_asked", "kv_bytes", "kv_bytes_asked", "full_kv_bytes")


def found_no_memory(row: Mapping[str, Any], measured: Sequence[str]) -> bool:
    """Whether the row's trial ended for want of memory. Raises `ValueError` where such a row holds a measure."""
    if field(row, "error") is None:
        return False
    text(row, "error")
    for name in measured:
        one_of(row, name, (None,))
    return True


def check_needle_head(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a row whose needle, length and depth are not those of its prompt, `reasoning-09@256@50`,
    or whose tokens are no numbers."""
    text(row, "needle")
    whole(row, "length", 1)
    number(row, "depth", 100.0)
    named = f"{row['needle']}@{row['length']}@{row['depth']:g}"
    if row["prompt"] != named:
        raise ValueError(f"its needle, length and depth are {named!r:.60}, its prompt is {row['prompt']!r:.60}")
    if field(row, "depth_reached") is not None:
        number(row, "depth_reached", 100.0)
    check_tokens(row)


def check_tokens(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a row whose prompt or context has no number of tokens."""
    whole(row, "prompt_tokens", 1)
    if field(row, "context_tokens") is not None:
        whole(row, "context_tokens", 1)


def check_needle_row(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a row whose measured fields are wrong."""
    if found_no_memory(row, MEASURED):
        return
    for name in ("response", "kernel"):
        text(row, name)
    one_of(row, "exact_match", (True, False))
    one_of(row, "chose", CHOICES)
    share(row, "answer_f1")
    for name in COUNTS:
        whole(row, name, 0)
    number(row, "ttft_s")
    if field(row, "peak_bytes") is not None:
        whole(row, "peak_bytes", 0)
    if field(row, "s_per_token") is not None:
        number(row, "s_per_token")


class Planned(Protocol):
    """What has trials, of needles or of tasks."""

    def trials(self) -> Iterator[Any]:
        """All of them, each with an `id` and a `head()`: the fields of its row that are known before it runs."""


class RowCheck:
    """The check of one grid's rows: head and types of each field."""

    whole: ClassVar[str] = "grid"  # what a message calls it

    def __init__(self, grid: Planned) -> None:
        self._heads = {trial.id: trial.head() for trial in grid.trials()}

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a row that is wrong."""
        head = self._heads.get(row["trial"])
        if head is None:
            raise ValueError(f"the {self.whole} has no such trial")
        for name, due in head.items():
            if field(row, name) != due or type(row[name]) is not type(due):
                raise ValueError(f"its {name} is {row[name]!r:.60}, the {self.whole} has {due!r:.60}")
        self._check_measured(row)

    def _check_measured(self, row: Mapping[str, Any]) -> None:
        check_needle_row(row)


# The folder of a needle grid: rows as they come, and what is made from them in the end.

SCHEMA = "headprobe-needles/1"
ROWS, SUMMARY, TABLE, GRID, CURVE = "trials.jsonl", "summary.json", "table.md", "grid.png", "recall.png"
DERIVED = (SUMMARY, TABLE, GRID, CURVE)
_LOOK = ("window", "pool")  # what of a selector's parameters a model may recommend


@dataclass(frozen=True)
class GridFolder:
    """Where a run is written. `trials.jsonl` is the run itself; all else is made from it, and rewritten each time."""

    path: Path
    rows: ClassVar[str] = ROWS
    derived: ClassVar[tuple[str, ...]] = DERIVED

    @classmethod
    def default(cls, model: str, query_agnostic: bool) -> GridFolder:
        """`evals/needles--<model>`, with `--query-agnostic` behind it for runs of that kind."""
        kind = "--query-agnostic" if query_agnostic else ""
        return cls(Path("evals") / f"needles--{short_name(model).replace('/', '--')}{kind}")

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.path / name

    def check(
        self,
        *,
        resume: bool,
        overwrite: bool,
        inputs: Mapping[str, Path | str | None] | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Refuse what would fail, or lose a file, before the long work begins.

        `inputs`: files that the run reads, by what they are called in a message; `shard`: the run is a part, which
        writes rows of its own and no summary. Raises `OptionError` where one of them would be written over,
        `OutputExistsError`, `FileAccessError`, and `ResumeError` where another process writes.
        """
        rows = self.place(shard)
        if shard is not None:
            refuse_one_place({"the part's rows": rows}, inputs)
            check_journal(rows, resume=resume, overwrite=overwrite, holding="a part of a run")
            return
        derived = [self.file(name) for name in self.derived]
        check_run(
            rows, derived, resume=resume, overwrite=overwrite, inputs=inputs, parts=shard_journals(rows)
        )  # fmt: skip

    def place(self, shard: Shard | None = None) -> Path:
        """Where rows go: those of a part into a file of their own."""
        rows = self.file(self.rows)
        return rows if shard is None else shard.journal(rows)

    def journal(
        self,
        description: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        check: Check | None = None,
        shard: Shard | None = None,
        frame: EvaluationFrame | None = None,
    ) -> Journal:
        """The rows so far, to be added to; `overwrite` alone forgets them. Raises as `Journal.resume`."""
        return Journal.open(
            self.place(shard), description, resume=resume, overwrite=overwrite, check=check,
            frame=None if frame is None else frame.record(),
        )  # fmt: skip


class Compared(Protocol):
    """What compares variants."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Policies with their scores."""


def frame_of(loaded: LoadedModel, grid: NeedleGrid) -> EvaluationFrame:
    """What the grid's summary states besides results, and its trials."""
    stated = {
        "schema": SCHEMA,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "query_agnostic": grid.options.query_agnostic,
        "needles": grid.prepared.plan.needles.name,
        "haystack": grid.prepared.plan.haystack_name,
        "seed": grid.options.seed,
        "planned_prompts": len(grid.prompts),
        "planned_rows": grid.num_trials,
        "windows": told_windows(grid),
        "policies": {variant.name: _policy_record(variant) for variant in grid.variants},
    }
    prompts = tuple(prompt.trial_id for _, prompt in grid.prompts)
    answers = tuple(trial.id.removeprefix(f"{prompts[0]}|") for trial in grid.trials_of(*grid.prompts[0]))
    return EvaluationFrame(stated, prompts, answers)


def summary_record(frame: EvaluationFrame, summary: GridSummary) -> dict[str, Any]:
    """The summary as one JSON object, with all that decides what it holds. What was not measured is null."""
    complete = frame.is_complete(summary.rows)
    return {**frame.stated, "is_complete": complete, **summary.record(), "stages": stage_record()}


def told_windows(grid: Compared) -> list[str]:
    """Window and pooling of the policies that look through one: they decide much, and a model may recommend its own."""
    selectors = (variant.policy.selector for variant in grid.variants if not variant.policy.keeps_all)
    looking = (s for s in selectors if "window" in parameters(s))
    found = (", ".join(f"{name} {getattr(s, name)}" for name in _LOOK if name in parameters(s)) for s in looking)
    return list(dict.fromkeys(found))


def _policy_record(variant: Any) -> dict[str, Any]:
    scores = variant.scores
    return {
        **variant.describe(),
        "scores_file": None if scores is None else scores.path.name,
        "remark": variant.remark,
    }
