"""What all summaries of rows share: policies at budgets, cells of tables, means, and what is stated beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from statistics import fmean, median
from typing import Any

from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.evaluation.trials import Row
from headprobe.evaluation.variants import RANDOM, SHUFFLED, told_as
from headprobe.scores.uncertainty import Estimate


@dataclass(frozen=True)
class CellKey:
    """A policy with the source of its scores (None, `real`, `random`, `shuffled`) at a budget (None: `full`), and how
    its cache holds entries."""

    policy: str
    scores: str | None
    budget: int | None
    kv_cache_dtype: str = AUTO

    @property
    def name(self) -> str:
        """The policy, and behind it how entries are held and what its scores are, where that is not as usual."""
        return told_as(self.policy, self.scores, self.kv_cache_dtype)

    def record(self) -> dict[str, Any]:
        """As JSON; of quantized entries only where there are any."""
        held = {} if self.kv_cache_dtype == AUTO else {"kv_cache_dtype": self.kv_cache_dtype}
        return {"policy": self.policy, "scores": self.scores, "budget": self.budget, **held}

    @property
    def rule(self) -> str:
        """The policy, and behind it how entries are held, whatever its scores are."""
        return told_as(self.policy, None, self.kv_cache_dtype)

    @property
    def is_baseline(self) -> bool:
        """Whether its scores mean nothing."""
        return self.scores in (RANDOM, SHUFFLED)


FULL = CellKey("full", None, None)


def key_of(row: Row) -> CellKey:
    """The cell that a row belongs to."""
    return CellKey(row["policy"], row["scores"], row["budget"], row.get("kv_cache_dtype", AUTO))


def cell_record(cell: Any) -> dict[str, Any]:
    """A cell, a dataclass whose first field is its key, as JSON."""
    plain = cell.key.record()
    for field in fields(cell)[1:]:
        value = getattr(cell, field.name)
        if isinstance(value, Estimate):
            value = value.record()
        elif isinstance(value, dict):
            value = {name: found.record() for name, found in value.items()}
        plain[field.name] = value
    return plain


@dataclass(frozen=True, eq=False)
class RowSummary:
    """What `rows` are about."""

    rows: tuple[Row, ...]

    @cached_property
    def keys(self) -> tuple[CellKey, ...]:
        """Policies and budgets in the order in which the rows have them."""
        return tuple(dict.fromkeys(key_of(row) for row in self.rows))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the variants, each once."""
        return tuple(dict.fromkeys(key.name for key in self.keys))

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """Budgets, rising."""
        return tuple(sorted({row["budget"] for row in self.rows if row["budget"] is not None}))

    @cached_property
    def num_prompts(self) -> int:
        """Prompts that have at least one row."""
        return len({row["prompt"] for row in self.rows})


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """The mean of what was measured; None where nothing was."""
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None


def median_of(rows: Sequence[Row], name: str) -> float | None:
    """The median of what was measured; None where nothing was."""
    values = [row[name] for row in rows if row[name] is not None]
    return median(values) if values else None


# What an evaluation states before it runs, so that the rows of its parts become a summary without the model.


@dataclass(frozen=True)
class EvaluationFrame:
    """`stated`: what the summary says besides results, as JSON; `prompts`: ids in the order in which they are asked;
    `answers`: what each of them goes through, as the end of a trial's id (`snapkv|64`)."""

    stated: dict[str, Any]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> EvaluationFrame:
        """What `record` gave. Raises `ValueError` for what is no such thing."""
        try:
            found = cls(dict(record["stated"]), tuple(record["prompts"]), tuple(record["answers"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not what an evaluation knows beforehand ({error})") from None
        if not all(isinstance(name, str) for name in (*found.prompts, *found.answers)):
            raise ValueError("not what an evaluation knows beforehand (names that are no texts)")
        return found

    def trials_of(self, prompt: str) -> Iterator[str]:
        """The ids of a prompt's trials."""
        return (f"{prompt}|{answer}" for answer in self.answers)

    @property
    def trials(self) -> list[str]:
        """The ids of all trials, in the order in which they run."""
        return [trial for prompt in self.prompts for trial in self.trials_of(prompt)]

    def is_complete(self, rows: tuple[Row, ...]) -> bool:
        """Whether every trial has given something."""
        return sum(row["error"] is None for row in rows) == len(self.prompts) * len(self.answers)
