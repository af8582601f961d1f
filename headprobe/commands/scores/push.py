"""`headprobe scores push`: a score file to the hub, with a card and its picture."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, write_json
from headprobe.commands.picture_output import figures
from headprobe.commands.scores.validate import finding_records, refusal, reports_on
from headprobe.errors import FileAccessError, FileFormatError, OptionError
from headprobe.models.hub import quiet_downloads
from headprobe.scores.any_scores import read_any
from headprobe.scores.files import MAX_BYTES, file_bytes
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.hub.parcel import Parcel, Upload, check_score_name, pack, publish, score_card
from headprobe.scores.hub.remote import RemoteRepository, check_repository, find_repository, is_logged_in, web_page
from headprobe.scores.validation import FileReport

UNKNOWN = "unknown"


def push_command(
    file: Annotated[Path, typer.Argument(help="The score file, in headprobe's format.", show_default=False)],
    repo: Annotated[
        str, typer.Option("--repo", metavar="USER/NAME", help="The dataset repository; created if missing.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="What the commit says.", show_default=False)] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another file of that name in the repository.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show everything that would be sent, and send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Put a score file on the Hugging Face hub, with its picture and a card that says where it comes from."""
    check_score_name(file.name)
    check_repository(repo)
    with quiet_downloads():
        remote, unasked = _look(repo, dry_run)
        _check_private(repo, remote, private)
        parcel, report = _packed(file, repo, remote, overwrite)
        revision = None if dry_run else _sent(parcel, message or f"Add {file.name}", private)
    record = _record(parcel, report, remote, unasked, revision, private)
    if as_json:
        write_json(record)
    else:
        _print(record)


def _look(repo: str, dry_run: bool) -> tuple[RemoteRepository | None, str | None]:
    """The repository as it is, and why the hub could not be asked; only a dry run goes on without the hub."""
    try:
        return find_repository(repo), None
    except FileAccessError as error:
        if not dry_run:
            raise
        return None, str(error)


def _check_private(repo: str, remote: RemoteRepository | None, private: bool) -> None:
    if private and remote is not None and not remote.private:
        raise OptionError(f"--private: {repo} already exists and is public; make it private on its page first")


def _packed(file: Path, repo: str, remote: RemoteRepository | None, overwrite: bool) -> tuple[Parcel, FileReport]:
    """All that would go, and what the checks say about the score file. An error among them ends it."""
    report = reports_on([file], None, None, MAX_BYTES)[0]
    if (reason := refusal(report)) is not None:
        raise FileFormatError(f"is not pushed: {reason} (see `headprobe scores validate`)", file)
    data = file_bytes(file)
    scores = _native(file, data)
    picture = f"{file.stem}.png"
    section = score_card(scores, file.name, picture, repo, report.findings)
    return pack(
        repo, [(file.name, data), (picture, figures().heatmap_bytes(scores))], section, remote, overwrite
    ), report


def _native(file: Path, data: bytes) -> HeadScores:
    scores = read_any(file)
    if scores.native is None:
        raise FileFormatError(f"is a {scores.format} file; `headprobe scores convert` makes one to push", file)
    if scores.sha256 != sha256(data).hexdigest():
        raise FileFormatError("changed while it was read", file)
    return scores.native


def _sent(parcel: Parcel, message: str, private: bool) -> str | None:
    return publish(parcel, message, private) if parcel.changes else parcel.parent


def _record(
    parcel: Parcel,
    report: FileReport,
    remote: RemoteRepository | None,
    unasked: str | None,
    revision: str | None,
    private: bool,
) -> dict[str, Any]:
    return {
        "repo": parcel.repo_id,
        "url": web_page(parcel.repo_id),
        "dry_run": revision is None,
        "hub_not_asked": unasked,
        "logged_in": is_logged_in(),
        "new_repository": None if unasked else remote is None,
        "private": private if remote is None else remote.private,
        "revision": revision,
        "files": [_file_record(upload, unasked) for upload in parcel.uploads],
        "findings": finding_records(report),
        "card": parcel.uploads[-1].data.decode("utf-8"),
    }


def _file_record(upload: Upload, unasked: str | None) -> dict[str, Any]:
    change = UNKNOWN if unasked else upload.change
    return {"name": upload.name, "bytes": len(upload.data), "sha256": upload.sha256, "change": change}


def _print(record: dict[str, Any]) -> None:
    kind = ("new " if record["new_repository"] else "") + ("private" if record["private"] else "public")
    typer.echo(f"{record['url']} ({kind} dataset repository)\n")
    files = [(file["name"], f"{file['bytes']:,}", file["change"]) for file in record["files"]]
    print_table(("file", "bytes", "in the repository"), files, right=("bytes",))
    if record["dry_run"]:
        typer.echo(f"\nREADME.md:\n\n{record['card']}")
        if record["hub_not_asked"]:
            typer.echo(f"the hub was not asked what it holds: {record['hub_not_asked']}")
        if not record["logged_in"]:
            typer.echo("you are not logged in to the hub: `hf auth login`, or HF_TOKEN")
        typer.echo("dry run: nothing was sent")
    elif all(file["change"] == "same" for file in record["files"]):
        typer.echo(f"\neverything is already there, at {record['revision']}")
    else:
        typer.echo(f"\npushed as {record['revision']}")
