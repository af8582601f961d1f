"""Published figures of the HeadKV paper (arXiv 2410.19258), to stand beside ours where the model is one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from headprobe.models.catalog import find_alias

SETS = tuple(
    f"longbench:{name}" for name in ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique")
)
_ORDER = ("snapkv", "pyramidkv", "ada-snapkv", "headkv-r", "headkv-r2", "headkv-er")  # the last at one size only


@dataclass(frozen=True)
class PublishedScores:
    """Mean scores in percent of six LongBench sets, by policy and size. `full`: of the full cache.

    `group`: query heads per KV head. The published caches hold a copy of each KV head for each of its query heads, so
    that "128" takes the memory of `128 * group` entries per KV head.
    """

    model: str
    group: int
    full: float
    sizes: dict[int, dict[str, float]]

    def of(self, policy: str, budget: int | None) -> float | None:
        """The figure of a policy at a size; None where there is none."""
        return self.full if policy == "full" else self.sizes.get(budget or 0, {}).get(policy)


def _table(*rows: tuple[int, str]) -> dict[int, dict[str, float]]:
    return {size: dict(zip(_ORDER, map(float, line.split()), strict=False)) for size, line in rows}


PUBLISHED = (
    PublishedScores(
        "meta-llama/Meta-Llama-3-8B-Instruct", 4, 32.90,
        _table(
            (64, "24.16 23.06 26.41 28.32 29.76"),
            (128, "26.43 26.20 28.52 30.38 32.00 31.04"),
            (256, "29.54 29.07 30.62 31.54 32.51"),
            (512, "30.89 29.65 31.09 32.32 32.51"),
            (1024, "31.65 31.49 32.31 32.68 32.95"),
        ),
    ),
    PublishedScores(
        "mistralai/Mistral-7B-Instruct-v0.2", 4, 32.98,
        _table(
            (64, "23.86 24.81 26.33 29.63 29.97"),
            (128, "26.65 26.42 28.09 31.01 31.41 31.02"),
            (256, "28.72 29.10 29.91 31.53 32.24"),
            (512, "30.19 30.36 31.03 32.08 32.74"),
            (1024, "31.90 31.54 31.98 32.63 32.87"),
        ),
    ),
)  # fmt: skip


def published_for(model: str, sets: Sequence[str]) -> PublishedScores | None:
    """The figures that belong to `model` (alias, hub id or folder), where all of the six sets are among `sets`.

    >>> published_for("llama3-8b", SETS).of("headkv-r2", 128)
    32.0
    """
    if not set(SETS) <= set(sets):
        return None
    entry = find_alias(model)
    name = PurePath(model if entry is None else entry.repo_id or model).name.lower()
    return next((each for each in PUBLISHED if PurePath(each.model).name.lower() == name), None)
