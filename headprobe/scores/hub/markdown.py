"""Strings of a score file inside Markdown: they come from strangers, and none of them may become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_LENGTH = 300


def code(value: object) -> str:
    """`value` as a code span on one line, in which neither HTML nor links nor mentions work; a dash for nothing.

    The ends of HTML comments are taken apart, since such comments mark the sections of a card.

    >>> code("a | <b>`x`")
    "`a \\\\| <b>'x'`"
    >>> code(None)
    '–'
    """
    text = " ".join(("" if value is None else str(value)).split())
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    if not text:
        return "–"
    short = text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 3] + "..."
    # A backslash before the bar would undo its escape.
    return "`" + short.replace("`", "'").replace("\\", "/").replace("|", "\\|").replace("-->", "-- >") + "`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
