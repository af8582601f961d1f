"""`headprobe scores pull`: score files from the hub, checked before they are put into the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from headprobe.commands.interrupts import Orderly
from headprobe.commands.output import one_line, print_table, write_json
from headprobe.commands.scores.validate import finding_records, refusal, reports_on
from headprobe.commands.streams import write_error
from headprobe.errors import FileFormatError, OptionError
from headprobe.models.hub import quiet_downloads
from headprobe.scores.files import check_place, write_atomically
from headprobe.scores.hub.remote import RemoteFile, RemoteRepository, fetch, find_repository, name_fault, place_in
from headprobe.scores.validation import FileReport

MIB = 2**20
MAX_FILES = 64
NO_SCORES = ("config.json", "dataset_infos.json", "dataset_info.json")


@dataclass(frozen=True)
class Destination:
    """Where pulled files go, whether they may replace others there, and whether errors in them are accepted."""

    folder: Path
    overwrite: bool
    with_errors: bool


def pull_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Names in the repository; default: all its .json files.", show_default=False),
    ] = None,
    repo: Annotated[str, typer.Option("--repo", metavar="USER/NAME", help="The dataset repository.")] = "",
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", help="Branch, tag or commit; default: main.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")] = Path(
        "scores"
    ),
    max_mib: Annotated[int, typer.Option("--max-mib", min=1, help="Most MiB for all files together.")] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other files of these names.")] = False,
    with_errors: Annotated[
        bool,
        typer.Option("--with-errors", help="Also keep files in which the checks find errors, if they can be read."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fetch score files from the Hugging Face hub; each is checked first, and kept only if the checks find no error."""
    if not repo and files and files[0].count("/") == 1:
        raise OptionError(f"which repository? Give --repo {files[0]}")
    with quiet_downloads():
        there = find_repository(repo, revision)
        if there is None:
            raise OptionError(f"the hub has no dataset repository {repo}, or a private one (`hf auth login`)")
        chosen = chosen_files(there, files or [])
        check_sizes(there, chosen, max_mib * MIB)
        if dry_run:
            records = [_blank(file) for file in chosen]
        else:
            refuse_conflicts(chosen, output, overwrite)
            with Orderly():
                records = pulled_files(there, chosen, Destination(output, overwrite, with_errors))
    _show(there, records, output, dry_run, as_json)
    refused = [record["name"] for record in records if record["refused"]]
    if refused:
        raise FileFormatError(f"{len(refused)} of {len(records)} files of {repo} refused, the first {refused[0]!r:.80}")


def chosen_files(there: RemoteRepository, names: list[str]) -> tuple[RemoteFile, ...]:
    """The files called `names`, else all .json files but those that describe the repository.

    Raises `OptionError` for a name that is not there, and for more than 64 files.
    """
    if names:
        found = {name: there.find(name) for name in dict.fromkeys(names)}
        missing = [name for name, file in found.items() if file is None]
        if missing:
            raise OptionError(f"{there.repo_id} holds no file {missing[0]!r:.80}; it holds {_some(there)}")
        chosen = [file for file in found.values() if file is not None]
    else:
        jsons = [file for file in there.files if file.name.lower().endswith(".json")]
        chosen = [file for file in jsons if file.name.lower().rsplit("/", 1)[-1] not in NO_SCORES]
        if not chosen:
            raise OptionError(f"{there.repo_id} holds no .json file; it holds {_some(there)}")
    if len(chosen) > MAX_FILES:
        raise OptionError(
            f"{there.repo_id} holds {len(chosen):,} .json files, the limit is {MAX_FILES}: name the ones you want"
        )
    return tuple(chosen)


def check_sizes(there: RemoteRepository, chosen: tuple[RemoteFile, ...], max_bytes: int) -> None:
    """Raise `FileFormatError` when the files are larger than `max_bytes` together."""
    total = sum(file.size for file in chosen)
    if total > max_bytes:
        limit = f"the limit is {max_bytes // MIB} MiB (--max-mib)"
        raise FileFormatError(f"{len(chosen)} file(s) of {total / MIB:,.1f} MiB together; {limit}", there.repo_id)


def refuse_conflicts(chosen: tuple[RemoteFile, ...], folder: Path, overwrite: bool) -> None:
    """Raise `OutputExistsError` before anything is fetched when another file of such a name is in `folder`.

    `FileFormatError` when two of the names are one where upper and lower case are not distinguished.
    """
    names = [file.name.casefold() for file in chosen]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise FileFormatError(
            f"two files are called {twice[0]!r:.80} apart from upper and lower case: pull one of them"
        )
    for file in chosen:
        if name_fault(file.name) is None and not _holds(folder / file.name, file):
            check_place(folder / file.name, overwrite)


def _some(there: RemoteRepository) -> str:
    names = [repr(file.name)[1:-1][:80] for file in there.files]
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "") if names else "nothing"


def pulled_files(
    there: RemoteRepository, chosen: tuple[RemoteFile, ...], destination: Destination
) -> list[dict[str, Any]]:
    """Fetch all files, check them together, and only then write those without an error; a record of each."""
    records = {file.name: _blank(file) for file in chosen}
    downloads: dict[str, bytes] = {}
    for file in chosen:
        try:
            downloads[file.name] = _content(there, file, destination.folder)
        except FileFormatError as error:
            records[file.name]["refused"] = str(error)
    for name, report in check_downloads(there.repo_id, downloads).items():
        records[name] |= _kept(name, downloads[name], report, destination)
    return list(records.values())


def check_downloads(repo_id: str, downloads: Mapping[str, bytes]) -> dict[str, FileReport]:
    """A report on each download, by its name. They are looked at together, in a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="headprobe-") as folder:
        root = Path(folder) / repo_id.split("/")[1]
        paths = {name: root / name for name in downloads}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(downloads[name])
        largest = max(map(len, downloads.values()), default=0)
        reports = reports_on(list(paths.values()), None, None, largest)
    return {name: _without(f"{root}/", report) for name, report in zip(paths, reports, strict=True)}


def _without(folder: str, report: FileReport) -> FileReport:
    findings = tuple(replace(finding, detail=finding.detail.replace(folder, "")) for finding in report.findings)
    return replace(report, findings=findings)


def _content(there: RemoteRepository, file: RemoteFile, folder: Path) -> bytes:
    target = place_in(folder, file.name)
    return target.read_bytes() if _holds(target, file) else fetch(there, file, file.size)


def _kept(name: str, data: bytes, report: FileReport, destination: Destination) -> dict[str, Any]:
    """Write a file that has no error, unless it already exists."""
    target, refused = destination.folder / name, refusal(report, destination.with_errors)
    was_there = target.is_file() and target.read_bytes() == data
    if refused is None and not was_there:
        write_atomically(target, data, destination.overwrite)
    return {
        "path": None if refused else str(target),
        "was_there": was_there,
        "format": report.format,
        "sha256": sha256(data).hexdigest(),
        "findings": finding_records(report),
        "refused": refused,
    }


def _holds(target: Path, file: RemoteFile) -> bool:
    return target.is_file() and target.stat().st_size == file.size and file.holds(target.read_bytes())


def _blank(file: RemoteFile) -> dict[str, Any]:
    empty: dict[str, Any] = {"path": None, "was_there": False, "format": None, "sha256": None, "findings": []}
    return {"name": file.name, "bytes": file.size} | empty | {"refused": name_fault(file.name)}


def _show(there: RemoteRepository, records: list[dict[str, Any]], folder: Path, dry_run: bool, as_json: bool) -> None:
    if as_json:
        head = {"repo": there.repo_id, "revision": there.revision, "folder": str(folder), "dry_run": dry_run}
        write_json(head | {"files": records})
        return
    typer.echo(f"{there.repo_id} at {there.revision}\n")
    rows = [(r["name"], f"{r['bytes']:,}", r["format"], _outcome(r, dry_run)) for r in records]
    print_table(("file", "bytes", "format", "outcome"), rows, right=("bytes",))
    for record in records:
        for found in record["findings"]:
            if found["severity"] != "info" and not record["refused"]:
                line = f"{record['name']}: {found['severity']}: {found['check']}: {found['detail']}"
                write_error(one_line(line))


def _outcome(record: dict[str, Any], dry_run: bool) -> str:
    if record["refused"]:
        return f"refused: {record['refused']}"
    if dry_run:
        return "not fetched"
    return f"already there: {record['path']}" if record["was_there"] else f"written to {record['path']}"
