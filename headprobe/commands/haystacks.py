"""`headprobe haystacks`: the available background texts, and how one of them begins."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, write_json
from headprobe.errors import OptionError
from headprobe.home import shipped_haystacks
from headprobe.probes.haystack import Haystack, load_haystack


def haystacks_command(
    haystacks: Annotated[
        list[str] | None, typer.Argument(help="Names, files or folders; default: all that are shipped.")
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show", metavar="NAME|PATH", help="Print a haystack's first paragraph.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List haystacks, or check your own files and folders (txt, md, jsonl)."""
    if show is not None and haystacks:
        raise OptionError(f"--show {show} prints one haystack: leave out {' '.join(haystacks)}, or leave out --show")
    if show is not None:
        _show(load_haystack(show), as_json)
        return
    records = [haystack_record(load_haystack(name)) for name in haystacks or [*shipped_haystacks(), "all"]]
    if as_json:
        write_json(records)
        return
    print_table(
        ("name", "words", "paragraphs", "files", "sha256"),
        [(r["name"], f"{r['num_words']:,}", r["num_paragraphs"], r["num_files"], r["sha256"][:12]) for r in records],
        right=("words", "paragraphs", "files"),
    )


def haystack_record(haystack: Haystack) -> dict[str, Any]:
    """A haystack as `--json` prints it."""
    return {
        "name": haystack.name,
        "num_words": haystack.num_words,
        "num_paragraphs": len(haystack.paragraphs),
        "num_characters": len(haystack.text),
        "num_files": len(haystack.sources),
        "sources": list(haystack.sources),
        "sha256": haystack.sha256,
    }


def _show(haystack: Haystack, as_json: bool) -> None:
    if as_json:
        write_json({**haystack_record(haystack), "first_paragraph": haystack.paragraphs[0]})
    else:
        typer.echo(textwrap.fill(haystack.paragraphs[0], 100))
