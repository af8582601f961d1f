"""Budgets of KV heads in a terminal, number by number, and their words; the figure is that of `budgets`."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from headprobe.compression.budgets import Ints
from headprobe.compression.policies import parameters
from headprobe.evaluation.head_budgets import BudgetTable, ReferenceLoss
from headprobe.pictures.style import AT_NIGHT, along, count, is_dark, told_bytes
from headprobe.pictures.terminal import SHADES, shows_colour
from headprobe.scores.head_scores import Floats


class BudgetMap:
    """Budgets with the words around them, as `budgets_figure` draws them: `scores` and `tokens` are `[layers, G]`."""

    def __init__(self, table: BudgetTable) -> None:
        self.table = table
        self.scores: Floats = table.head_scores
        self.tokens = table.capacity

    def facts(self) -> tuple[str, ...]:
        """All that the figure says below: rule, outcome, notes and losses."""
        return (*self.outcome(), *self.table.notes, *self.losses())

    def outcome(self) -> tuple[str, ...]:
        """Rule and outcome in words."""
        table, share = self.table, 100 * self.table.entries / self.table.full_entries
        facts = [
            told_policy(table),
            f"{table.budget:,} entries per KV head on average",
            f"prompt of {count(table.prompt_tokens, 'token')}",
            f"{int(table.capacity.min()):,} to {int(table.capacity.max()):,} entries per head",
            f"{table.entries:,} of {table.full_entries:,} entries ({share:.3g} %)",
        ]
        if table.bytes_per_entry is not None:
            kept, full = (told_bytes(n * table.bytes_per_entry) for n in (table.entries, table.full_entries))
            facts.append(f"{kept} of {full} of KV cache")
        return tuple(facts)

    def losses(self) -> list[str]:
        """What rounding and clamping cost, here and in the published code."""
        told = [] if self.table.keeps_all else [f"budget lost to rounding and clamping: {told_share(self.table.lost)}"]
        return told + ([] if self.table.reference is None else [told_loss(self.table.reference)])


def told_policy(table: BudgetTable) -> str:
    """The policy with the options that shape its budgets, such as `headkv-r2 (window 8, beta 1.2)`."""
    policy = table.policy
    options = [f"window {policy.selector.window}"] if policy.selector.window else []
    options += [f"sinks {policy.sinks}"] if policy.sinks else []
    options += [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name in parameters(policy.allocator)
        if (value := getattr(policy.allocator, name)) is not None
    ]
    return policy.name + (f" ({', '.join(options)})" if options else "")


def told_loss(loss: ReferenceLoss) -> str:
    """The published code's loss in one line."""
    noun = "KV heads" if loss.heads == "kv" else "query heads"
    parts = f"rounding {told_share(loss.lost_to_rounding)}, clamping {told_share(loss.lost_to_clamping)}"
    return f"by the published code, on {noun}: {told_share(loss.lost)} of {loss.asked:,} entries ({parts})"


def told_share(lost: Fraction) -> str:
    """A lost share in percent; an overdrawn one says so.

    >>> told_share(Fraction(1, 8)), told_share(Fraction(-1, 1000)), told_share(Fraction(0))
    ('12.5 %', '0.1 % overdrawn', '0 %')
    """
    return f"{100 * abs(float(lost)):.3g} %" + (" overdrawn" if lost < 0 else "")


class Entries(Protocol):
    """Entries of KV heads, `capacity` `[len(layers), G]`."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers in the order of rows."""
        ...

    @property
    def capacity(self) -> Ints:
        """Entries of each head."""
        ...


def print_budget_map(table: Entries, console: Console) -> None:
    """Print budgets, one row per layer: the numbers where they fit the width, else one character per head.

    In colour a number stands on a tile that is the brighter the more it is.
    """
    for line in budget_lines(table, console):
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def budget_lines(table: Entries, console: Console) -> list[Text]:
    """The lines that `print_budget_map` prints."""
    cell = max(len(f"{int(table.capacity.max()):,}"), len(str(table.capacity.shape[1] - 1))) + 2
    fits = _MARGIN + cell * table.capacity.shape[1] + _MEAN <= console.width
    return _numbers(table, cell, shows_colour(console)) if fits else _characters(table)


_MARGIN, _MEAN = 6, 10


def _numbers(table: Entries, cell: int, coloured: bool) -> list[Text]:
    heads = "".join(str(head).rjust(cell - 1) + " " for head in range(table.capacity.shape[1]))
    lines = [Text("layer".rjust(_MARGIN - 1) + " " + heads + "mean".rjust(_MEAN), "bold")]
    most = int(table.capacity.max())
    for layer, row in zip(table.layers, table.capacity.tolist(), strict=True):
        line = Text(str(layer).rjust(_MARGIN - 1) + " ")
        for number in row:
            line.append(f"{number:,}".rjust(cell - 1) + " ", _style(number / most) if coloured else None)
        lines.append(line.append(f"{np.mean(row):,.1f}".rjust(_MEAN)))
    return lines


def _style(fraction: float) -> Style:
    tile = along(AT_NIGHT, fraction)
    ink = (255, 255, 255) if is_dark(tile) else (0, 0, 0)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*tile))


def _characters(table: Entries) -> list[Text]:
    """Least, mean and most of each layer, and a character of `SHADES` for each head."""
    most = int(table.capacity.max())
    lines = [f"layer   least    mean    most   KV heads 0 to {table.capacity.shape[1] - 1}"]
    for layer, row in zip(table.layers, table.capacity.tolist(), strict=True):
        shades = "".join(SHADES[round(number / most * (len(SHADES) - 1))] for number in row)
        lines.append(f"{layer:5d} {min(row):7,d} {np.mean(row):7,.0f} {max(row):7,d}   |{shades}|")
    return [Text(line) for line in [*lines, "", f"0 '{SHADES}' {most:,}"]]
