"""Whether a row, read back from a needle grid's journal, is what a trial of that grid writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headprobe.evaluation.needle_trial import MEASURED
from headprobe.profiling.record_check import CHOICES, field, number, one_of, share, text, whole

if TYPE_CHECKING:
    from headprobe.evaluation.needle_grid import NeedleGrid

COUNTS = ("new_tokens", "kv_entries", "kv_entries_asked", "kv_bytes", "kv_bytes_asked", "full_kv_bytes")


class RowCheck:
    """The check of one grid's rows: head and types of each field."""

    def __init__(self, grid: NeedleGrid) -> None:
        self._heads = {trial.id: trial.head() for trial in grid.trials()}

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a row that is wrong."""
        head = self._heads.get(row["trial"])
        if head is None:
            raise ValueError("the grid has no such trial")
        for name, due in head.items():
            if field(row, name) != due or type(row[name]) is not type(due):
                raise ValueError(f"its {name} is {row[name]!r:.60}, the grid has {due!r:.60}")
        if field(row, "error") is None:
            _check_measured(row)
            return
        text(row, "error")
        for name in MEASURED:
            one_of(row, name, (None,))


def _check_measured(row: Mapping[str, Any]) -> None:
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
