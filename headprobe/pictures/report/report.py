"""A report about score files: `headprobe report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from headprobe.errors import OptionError
from headprobe.pictures.report.document import report_document
from headprobe.pictures.report.record import Detail, file_record, short_numbers, shortened
from headprobe.pictures.wording import printable
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.checks.finding import Suspect
from headprobe.scores.comparison import compare
from headprobe.scores.validation import FileReport, validate

MAX_BYTES = 1_000_000
MOST_FILES = 8
DETAIL = (
    Detail(400, 8192),
    Detail(100, 2048),
    Detail(20, 512),
    Detail(10, 128),
    Detail(10, 0),
    Detail(10, 0, digits=5),
)  # as far as the page has room


def report_html(
    files: Sequence[AnyScores], checked: Sequence[FileReport] | None = None, title: str | None = None
) -> bytes:
    """The page about `files`, below `MAX_BYTES`; the same files give the same bytes.

    `checked` is what `validate` found in them, by default by the files' own word.

    Raises `OptionError` for no file, more than `MOST_FILES`, or files so large that the page would not fit.
    """
    if not 1 <= len(files) <= MOST_FILES:
        raise OptionError(f"a report takes 1 to {MOST_FILES} files, got {len(files)}")
    names = file_names(files)
    heading = title or f"{names[0]}: head scores"
    reports = checked or validate([Suspect.of(scores) for scores in files])
    pairs = [pair_record(files, pair) for pair in combinations(range(len(files)), 2)]
    records = [file_record(*parts) for parts in zip(files, names, reports, strict=True)]
    size = 0
    for detail in DETAIL:
        shown = [shortened(record, detail) for record in records]
        page = report_document(shown, pairs, heading).encode("utf-8")
        size = len(page)
        if size < MAX_BYTES:
            return page
    advice = "give fewer files" if len(files) > 1 else f"give fewer heads than {files[0].mean.size:,}"
    raise OptionError(f"the report would take {size:,} bytes, the limit is {MAX_BYTES:,}: {advice}")


def file_names(files: Sequence[AnyScores]) -> list[str]:
    """What the page calls the files: their names; with folder, then number, where they are the same."""
    names = [printable(scores.path.name) for scores in files]
    longer = [printable(f"{scores.path.absolute().parent.name}/{scores.path.name}") for scores in files]
    names = [long if Counter(names)[name] > 1 else name for name, long in zip(names, longer, strict=True)]
    counts = Counter(names)
    return [f"{name} ({place})" if counts[name] > 1 else name for place, name in enumerate(names, 1)]


def pair_record(files: Sequence[AnyScores], pair: tuple[int, int]) -> dict[str, Any]:
    """Two of the files side by side, as the page reads them; `refused` says why they cannot be compared."""
    first, second = (files[index] for index in pair)
    try:
        found = compare(first, second)
    except OptionError as error:
        return {"first": pair[0], "second": pair[1], "refused": printable(str(error), 400)}
    return {
        "first": pair[0],
        "second": pair[1],
        "refused": None,
        "heads": found.heads,
        "layers": int(found.first.shape[0]),
        "firstValues": None if found.first.shape == first.mean.shape else short_numbers(found.first),
        "secondValues": None if found.second.shape == second.mean.shape else short_numbers(found.second),
        "spearman": found.spearman,
        "low": found.low,
        "high": found.high,
        "overlaps": [[overlap.k, overlap.shared] for overlap in found.overlaps],
        "moved": [
            [m.layer, m.head, *short_numbers_of(m.first_score, m.second_score), m.first_rank, m.second_rank]
            for m in found.moved
        ],
        "notes": [printable(note, 400) for note in found.notes],
    }


def short_numbers_of(*values: float) -> list[float]:
    """As `short_numbers`, for single numbers."""
    return [float(f"{value:.5g}") for value in values]
