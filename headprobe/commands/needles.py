"""`headprobe needles`: the available needle sets, and what one of their needles looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, write_json
from headprobe.errors import OptionError
from headprobe.home import shipped_needle_sets
from headprobe.probes.needle import Needle, NeedleSet, load_needles


def needles_command(
    sets: Annotated[
        list[str] | None, typer.Argument(help="Sets or .jsonl files; default: all that are shipped.")
    ] = None,
    show: Annotated[
        str | None,
        typer.Option("--show", metavar="SET|ID", help="Print the first needle of a set, or the needle with an id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List needle sets, or check your own files: a broken line is reported with its number."""
    if show is not None:
        needle = example(show, sets or [])
        if as_json:
            write_json(needle_record(needle))
        else:
            _print_needle(needle)
        return
    records = [set_record(needles) for needles in _load(sets or [])]
    if as_json:
        write_json(records)
        return
    print_table(
        ("name", "needles", "distractors", "kinds", "relations", "sha256"),
        [_row(record) for record in records],
        right=("needles", "distractors"),
    )


def set_record(needles: NeedleSet) -> dict[str, Any]:
    """A set as `--json` prints it; `kinds` and `relations` hold how many needles are of each."""
    return {
        "name": needles.name,
        "num_needles": len(needles),
        "num_distractors": sum(needle.distractor is not None for needle in needles.needles),
        "kinds": dict(Counter(needle.kind for needle in needles.needles)),
        "relations": dict(Counter(needle.relation for needle in needles.needles)),
        "sha256": needles.sha256,
    }


def needle_record(needle: Needle) -> dict[str, Any]:
    """A needle as a line of its file."""
    return asdict(needle)


def example(name_or_id: str, sets: list[str]) -> Needle:
    """The needle of that id in `sets` (all shipped ones when empty), else the first of the set of that name.

    Without `sets` the name may also be the path of a file. Raises `OptionError` when there is no such needle.
    """
    loaded = _load(sets)
    for needles in loaded:
        for needle in needles.needles:
            if name_or_id in (needle.id, needles.name):
                return needle
    if not sets and Path(name_or_id).is_file():
        return load_needles(name_or_id).needles[0]
    raise OptionError(_not_found(name_or_id, loaded, "" if sets else " and no file"))


def _not_found(name_or_id: str, sets: list[NeedleSet], or_file: str) -> str:
    names = ", ".join(needles.name for needles in sets)
    ids = f"{sets[0].needles[0].id} to {sets[0].needles[-1].id}" + (", ..." if len(sets) > 1 else "")
    return f"no needle set, no needle id{or_file} {name_or_id!r}; sets are {names}; ids are those inside ({ids})"


def _load(sets: list[str]) -> list[NeedleSet]:
    return [load_needles(name) for name in sets or shipped_needle_sets()]


def _row(record: Mapping[str, Any]) -> tuple[object, ...]:
    counted = [", ".join(f"{name} {number}" for name, number in record[key].items()) for key in ("kinds", "relations")]
    return record["name"], record["num_needles"], record["num_distractors"], *counted, record["sha256"][:12]


def _print_needle(needle: Needle) -> None:
    rows = [("id", needle.id), ("kind", needle.kind), ("relation", needle.relation)]
    rows += [("fact", fact) for fact in needle.facts]
    rows += [("question", needle.question), ("answer", needle.answer), ("distractor", needle.distractor or "none")]
    for name, value in rows:
        typer.echo(f"{name + ':':<12}{value}")
