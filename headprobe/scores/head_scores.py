"""The table of head scores: what every heatmap, ranking and budget is made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headprobe.errors import NonFiniteError, NoPassingTrialError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.provenance import Provenance

Floats = NDArray[np.float64]
Head = tuple[int, int]


@dataclass(frozen=True)
class Method:
    """An estimator: its name, formula in words, parameters, and a version that rises when results would change."""

    name: str
    formula: str
    version: int
    parameters: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trial:
    """One needle at one depth in one length of haystack.

    `length` in tokens, `depth` in percent, `f1` in [0, 1], `num_steps` the output tokens that were looked at,
    `scores` float64 `[L, H]` or None where they were not kept. `extra` holds fields of a newer program.
    Raises `NonFiniteError` naming trial, layer and head.
    """

    id: str
    needle: str
    length: int
    depth: float
    passed: bool
    f1: float
    response: str
    num_steps: int
    scores: Floats | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores is not None:
            object.__setattr__(self, "scores", _frozen_table(self.scores, f"trial {self.id}"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trial):
            return NotImplemented
        mine, theirs = dict(vars(self)), dict(vars(other))
        a, b = mine.pop("scores"), theirs.pop("scores")
        same = a is b or (a is not None and b is not None and np.array_equal(a, b))
        return same and mine == theirs

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """`mean`, `std` and `normalized`, each float64 `[L, H]`, read-only."""

    mean: Floats
    std: Floats
    normalized: Floats
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mean", "std", "normalized"):
            object.__setattr__(self, name, _frozen_table(getattr(self, name), name))

    @classmethod
    def of(cls, passing: Floats) -> ScoreTable:
        """The table of the passing trials' scores `[P, L, H]`."""
        mean = passing.mean(axis=0)
        return cls(mean, passing.std(axis=0), normalize(mean))


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of all query heads of one model by one method.

    Statistics run over the passing trials. `stored` is the table as a file gave it; without it the table is
    computed from the trials. `extra` holds a file's unknown fields, which are kept when it is written again.
    Raises `ValueError` when a trial's scores have another shape than `geometry.shape`, an id comes twice, or
    passing trials lack scores and nothing is stored.

    >>> from headprobe.scores.provenance import Provenance, ModelIdentity
    >>> geometry = ModelGeometry(1, 2, 1, 8, ("full_attention",))
    >>> made = [Trial(str(i), "n", 64, 0.0, i < 2, 1.0, "", 4, np.array([[i, 2.0]])) for i in range(3)]
    >>> scores = HeadScores(geometry, Method("r2", "", 1, {}), tuple(made), Provenance(ModelIdentity("toy")))
    >>> scores.mean.tolist(), scores.normalized.tolist(), scores.top(1)
    ([[0.5, 2.0]], [[0.2, 0.8]], [(0, 1, 2.0)])
    """

    geometry: ModelGeometry
    method: Method
    trials: tuple[Trial, ...]
    provenance: Provenance
    stored: ScoreTable | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trials", tuple(self.trials))
        if len({trial.id for trial in self.trials}) != len(self.trials):
            raise ValueError(f"repeated trial ids: {_repeated([t.id for t in self.trials])}")
        for trial in self.trials:
            self._check_shape(trial.scores, f"trial {trial.id}")
        if self.stored is not None:
            for name in ("mean", "std", "normalized"):
                self._check_shape(getattr(self.stored, name), name)
        elif not self.has_trial_scores:
            raise ValueError("a passing trial has no scores, and no table is stored")

    def _check_shape(self, table: Floats | None, what: str) -> None:
        if table is not None and table.shape != self.geometry.shape:
            raise ValueError(f"{what} has scores of shape {table.shape}, the model {self.geometry.shape}")

    @property
    def num_trials(self) -> int:
        """All trials, passed or not."""
        return len(self.trials)

    @property
    def num_passed(self) -> int:
        """Trials in which the model answered correctly: those that count."""
        return sum(trial.passed for trial in self.trials)

    @property
    def has_trial_scores(self) -> bool:
        """Whether every passing trial holds its own scores (a file can leave them out)."""
        return all(trial.scores is not None for trial in self.trials if trial.passed)

    @cached_property
    def passing_scores(self) -> Floats:
        """Scores of the passing trials, float64 `[P, L, H]`, in the order of `trials`.

        Raises `NoPassingTrialError` when none passed, `OptionError` when the file does not contain the trials' scores.
        """
        passing = [trial.scores for trial in self.trials if trial.passed]
        if not passing:
            raise NoPassingTrialError(f"none of {self.num_trials} trials passed: there is no score to report")
        kept = [scores for scores in passing if scores is not None]
        if len(kept) != len(passing):
            raise OptionError("these scores hold no trial scores: they were written without them")
        stacked = np.stack(kept)
        stacked.setflags(write=False)
        return stacked

    @cached_property
    def table(self) -> ScoreTable:
        """Mean, deviation and normalised mean. Raises `NoPassingTrialError` when no trial passed."""
        return self.stored if self.stored is not None else ScoreTable.of(self.passing_scores)

    @property
    def mean(self) -> Floats:
        """Mean over the passing trials, `[L, H]`."""
        return self.table.mean

    @property
    def std(self) -> Floats:
        """Standard deviation over the passing trials, divided by their number (ddof 0), `[L, H]`."""
        return self.table.std

    @property
    def normalized(self) -> Floats:
        """`normalize(mean)`: non-negative, sums to 1 over all heads, `[L, H]`."""
        return self.table.normalized

    def ranking(self) -> list[tuple[int, int, float]]:
        """All heads as `(layer, head, mean)`, best first; ties are ordered by layer, then head."""
        return rank_heads(self.mean)

    def top(self, k: int) -> list[tuple[int, int, float]]:
        """The first `k` of `ranking()`; all heads when there are fewer."""
        if k < 0:
            raise OptionError(f"cannot take the top {k} heads, need at least 0")
        return self.ranking()[:k]

    def to_kv_heads(self, gqa: str = "mean") -> Floats:
        """Mean scores for each KV head, `[L, G]`: `mean` or `max` over the query heads that share it."""
        layers, groups = self.geometry.num_hidden_layers, self.geometry.num_key_value_heads
        grouped = self.mean.reshape(layers, groups, self.geometry.group_size)
        if gqa not in ("mean", "max"):
            raise OptionError(f"query heads are joined by 'mean' or 'max', not {gqa!r}")
        joined = grouped.mean(axis=2) if gqa == "mean" else grouped.max(axis=2)
        return np.asarray(joined, dtype=np.float64)

    def pass_rates(self) -> dict[tuple[int, float], tuple[int, int]]:
        """`(length, depth) -> (passed, total)`, sorted."""
        cells: dict[tuple[int, float], tuple[int, int]] = {}
        for trial in sorted(self.trials, key=lambda t: (t.length, t.depth)):
            passed, total = cells.get((trial.length, trial.depth), (0, 0))
            cells[trial.length, trial.depth] = passed + trial.passed, total + 1
        return cells


def rank_heads(table: Floats) -> list[tuple[int, int, float]]:
    """All heads of `[L, H]` as `(layer, head, score)`, best first; ties are ordered by layer, then head.

    >>> rank_heads(np.array([[0.5, 0.0], [1.0, 0.5]]))
    [(1, 0, 1.0), (0, 0, 0.5), (1, 1, 0.5), (0, 1, 0.0)]
    """
    flat, width = table.ravel(), table.shape[1]
    order = np.argsort(-flat, kind="stable").tolist()
    return [(i // width, i % width, float(flat[i])) for i in order]


def normalize(mean: Floats) -> Floats:
    """`max(mean, 0) / sum of max(mean, 0)` over all heads; all zero when no head scores above 0.

    For methods without negative scores this is the plain L1 norm.

    >>> normalize(np.array([[1.0, 3.0], [-2.0, 0.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    clipped = np.maximum(mean, 0.0)
    largest = clipped.max()
    if largest == 0.0:
        return clipped
    with np.errstate(over="ignore"):  # no quotient exceeds 1; numpy 1 also divides what lies beside a row's end
        scaled = clipped / largest
    return np.asarray(scaled / fsum(scaled.ravel().tolist()), dtype=np.float64)


def _frozen_table(values: Any, what: str) -> Floats:
    table = np.array(values, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"{what} has scores of shape {table.shape}, need [layers, heads]")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        layer, head = map(int, bad[0])
        raise NonFiniteError(f"{what} has the score {table[layer, head]} at layer {layer}, head {head}")
    table.setflags(write=False)
    return table


def _repeated(names: list[str]) -> str:
    return ", ".join(f"{name!r:.40}" for name, count in Counter(names).items() if count > 1)[:120]
