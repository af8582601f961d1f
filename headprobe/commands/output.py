"""What commands print: JSON or tables on stdout, which fit the terminal and are not cut when piped; notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headprobe.commands.streams import write_error

PIPED_WIDTH = 200
WIDEST = 100_000  # columns of a table that nobody looks at in a terminal
LONGEST_LINE = 500
RESUME_HINT = "finished trials are kept, the same command with --resume continues"


def write_json(data: Any) -> None:
    """Print `data` as indented JSON; numbers that are not finite are refused with `ValueError`."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, which only a damaged name or file holds, cannot be written but as the escape that JSON has.
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def stdout_console() -> Console:
    """A rich console on stdout; wide when it is no terminal, so that no line is wrapped for a reader that is none."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPED_WIDTH)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> None:
    """Print a table; `right` names the columns set flush right, None stays empty, and so does a header of no words."""
    flush_right = set(right)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        is_right = column in flush_right
        table.add_column(column, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    for row in rows:
        table.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    console = stdout_console()
    if not sys.stdout.isatty():
        console.width = max(console.width, console.measure(table, options=console.options.update(width=WIDEST)).maximum)
    console.print(table)


def tell(message: str) -> None:
    """Print `headprobe: message` as one line on stderr."""
    write_error(f"headprobe: {one_line(message)}")


def tell_cut(journal: Path, lines: int) -> None:
    """Say that the last lines of a journal, which a kill had cut short or a lost machine damaged, have been dropped."""
    if lines == 1:
        tell(f"note: the last line of {journal} was cut short; it is dropped, and its trial runs again")
    else:
        tell(f"note: the last {lines} lines of {journal} are damaged; they are dropped, and their trials run again")


def one_line(message: str) -> str:
    """The message on one line of at most 500 characters, cut in the middle, with terminal control characters escaped.

    >>> one_line("too\\n long \\x1b[31m"), len(one_line("x" * 9999))
    ('too long \\\\x1b[31m', 500)
    """
    line = printable(" ".join(message.split()))
    if len(line) <= LONGEST_LINE:
        return line
    gap = " ... "
    end = (LONGEST_LINE - len(gap)) // 3
    return line[: LONGEST_LINE - len(gap) - end] + gap + line[-end:]


def printable(text: str) -> str:
    """`text` with terminal control characters escaped: strangers' files contain names and answers.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def plan_value(value: Any) -> str:
    """A value of a plan or of a dry run, in words.

    >>> plan_value([512, 131072]), plan_value([0.0, 33.333333, None]), plan_value(749455936), plan_value(True)
    ('512, 131072', '0, 33.33, -', '749,455,936', 'yes')
    """
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(
            f"{item:.4g}" if isinstance(item, float) else "-" if item is None else str(item) for item in value
        )
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def told_seconds(seconds: float) -> str:
    """A time in words.

    >>> told_seconds(42.4), told_seconds(150), told_seconds(8000)
    ('42 s', '2.5 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.2g} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


SILENT_SECONDS = 120.0  # the longest that a long run says nothing in a log


class Tenths:
    """When a long run reports in a log: at every tenth of the work, and at the latest after two minutes.

    >>> lines = Tenths(done=0, total=50, now=0.0)
    >>> [lines.is_due(done, 50, now) for done, now in ((4, 10.0), (5, 12.0), (6, 131.0), (7, 132.0))]
    [False, True, False, True]
    """

    def __init__(self, done: int, total: int, now: float) -> None:
        self._tenth, self._at = done * 10 // max(total, 1), now

    def is_due(self, done: int, total: int, now: float) -> bool:
        """Whether a line is to be printed at the time `now`, in seconds; one that is, is taken as printed."""
        tenth = done * 10 // total
        if tenth <= self._tenth and now - self._at < SILENT_SECONDS:
            return False
        self._tenth, self._at = tenth, now
        return True


class Pace:
    """How long the rest of a run takes, in seconds, where work is of several kinds; one that has not come yet counts
    like the others.

    >>> pace = Pace()
    >>> pace.took("short", 4, 2.0)
    >>> pace.left({"short": 2, "long": 3})
    2.5
    >>> pace.took("long", 1, 10.0)
    >>> pace.left({"short": 2, "long": 3})
    31.0
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._units: dict[str, float] = {}

    def took(self, kind: str, units: float, seconds: float) -> None:
        """Count `units` of work of a kind that took `seconds` together."""
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        self._units[kind] = self._units.get(kind, 0.0) + units

    def left(self, units: Mapping[str, float]) -> float:
        """How long these take. Raises `ZeroDivisionError` before anything was counted."""
        overall = sum(self._seconds.values()) / sum(self._units.values())
        paces = {kind: self._seconds[kind] / done for kind, done in self._units.items()}
        return sum(count * paces.get(kind, overall) for kind, count in units.items())


def time_left(seconds: float, done: int, left: int) -> str:
    """What `left` pieces of work (or tokens) will take in words, where `done` took `seconds`; unknown before the first.

    >>> time_left(20.0, 4, 10), time_left(1.0, 0, 10)
    ('50 s', '-')
    """
    return told_seconds(seconds * left / done) if done else "-"
