"""What pictures say about the scores they show, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats, HeadScores, rank_heads

LONGEST_NAME = 64
LONGEST_FORMULA = 240


@dataclass(frozen=True)
class HeatmapContent:
    """The table `[layers, heads]` that is drawn, its best heads above 0 in order of rank, and the words around it."""

    table: Floats
    top: tuple[tuple[int, int, float], ...]
    head_name: str
    title: str
    subtitle: str
    facts: tuple[str, ...]

    @property
    def decimals(self) -> int:
        """Decimals that show three digits of the best score."""
        best = float(abs(self.table).max())
        return 3 if best == 0.0 else min(max(3, 2 - floor(log10(best))), 9)

    def number(self, score: float) -> str:
        """A score as all pictures write it."""
        return f"{score:.{self.decimals}f}"


def heatmap_content(scores: HeadScores, top: int, kv_heads: bool) -> HeatmapContent:
    """What a heatmap shows: query heads, or KV heads by the mean over their query heads.

    Heads that score 0 or less have no rank. Raises `OptionError` when `top` is negative.
    """
    if top < 0:
        raise OptionError(f"top is {top}, need at least 0")
    table = scores.to_kv_heads("mean") if kv_heads else scores.mean
    best = tuple(head for head in rank_heads(table)[:top] if head[2] > 0.0)
    model, method = scores.provenance.model, scores.method
    formula = printable(method.formula, LONGEST_FORMULA)
    return HeatmapContent(
        table=table,
        top=best,
        head_name="KV head" if kv_heads else "head",
        title=printable(model.id, LONGEST_NAME),
        subtitle=f"{printable(method.name, LONGEST_NAME)}: {formula}" if formula else printable(method.name),
        facts=(*_trial_facts(scores), *_probe_facts(scores.provenance.probes), _head_fact(scores, kv_heads)),
    )


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` on one line, without control characters, its middle left out when it is longer than `longest`.

    >>> printable("a\\x1b[31mb\\nc"), printable("abcdefghij", 7)
    ('a[31mb c', 'abc...j')
    """
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    if len(line) <= longest:
        return line
    ahead = (longest - 2) // 2 + 1
    return line[:ahead] + "..." + line[len(line) - (longest - 3 - ahead) :]


def tick_step(count: int, most: int) -> int:
    """The power of two that leaves at most `most` ticks on `count` rows or columns.

    >>> tick_step(8, 16), tick_step(32, 16), tick_step(80, 16)
    (1, 2, 8)
    """
    step = 1
    while -(-count // step) > most:
        step *= 2
    return step


def _trial_facts(scores: HeadScores) -> list[str]:
    passed, total = scores.num_passed, scores.num_trials
    facts = [f"{passed} of {total} trials passed ({100 * passed / total:.0f} %)"]
    lengths, depths = [t.length for t in scores.trials], [t.depth for t in scores.trials]
    facts.append(_range(min(lengths), max(lengths), "tokens"))
    facts.append("depth " + _range(min(depths), max(depths), "%"))
    return facts


def _range(low: float, high: float, unit: str) -> str:
    return f"{low:,.10g} {unit}" if low == high else f"{low:,.10g} to {high:,.10g} {unit}"


def _probe_facts(probes: Mapping[str, Any]) -> list[str]:
    names = ((kind, probes.get(kind)) for kind in ("needles", "haystack"))
    return [f"{kind} {printable(block['name'], 32)}" for kind, block in names if isinstance(block, dict)]


def _head_fact(scores: HeadScores, kv_heads: bool) -> str:
    layers, heads = scores.geometry.shape
    groups, size = scores.geometry.num_key_value_heads, scores.geometry.group_size
    if kv_heads:
        joined = "" if size == 1 else f", each the mean of {size} query heads"
        return f"{layers} layers x {groups} KV heads{joined}"
    shared = "" if size == 1 else f", {size} to a KV head"
    return f"{layers} layers x {heads} query heads{shared}"
