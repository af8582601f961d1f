"""What a push changes in a repository: its card, the files, looked at before anything goes out, in one commit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from headprobe.errors import FileAccessError, FileFormatError, OptionError, OutputExistsError
from headprobe.scores.checks import Finding
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.hub.remote import RemoteRepository, check_file_name, fetch, unreachable
from headprobe.scores.uncertainty import head_intervals

# The README.md of a repository of score files: one section a file, which a later push of that file replaces.
#
# Strings of a score file come from strangers, and none of them may become markup.

CARD = "README.md"
TOP_HEADS = 10
MAX_LENGTH = 300  # of a string of the file
_HEADER = """---
pretty_name: {name}
tags:
- headprobe
- attention-heads
- retrieval-heads
viewer: false
---

# {name}

Scores of attention heads, as `headprobe` files. Layers and heads count from 0; `4-2` is head 2 of layer 4.

```console
$ headprobe scores pull --repo {repo_id}
```
"""


def score_card(
    scores: HeadScores,
    name: str,
    picture: str | None,
    repo_id: str,
    findings: Iterable[Finding] = (),
) -> str:
    """The section about the file `name`: picture, provenance, best heads, and what the checks found.

    All strings of the file stand in code spans.
    """
    drawn = [] if picture is None else [f"![Heatmap of {name}: layers down, heads across]({picture})"]
    parts = [
        f"## {name}",
        *drawn,
        table(("", ""), _provenance(scores)),
        f"The {len(_top(scores))} best heads:",
        table(("rank", "head", "score", "95 % interval"), _rows(scores)),
        _checks(findings),
        f"```console\n$ headprobe scores pull {name} --repo {repo_id}\n```",
    ]
    return "\n\n".join(parts)


def merge_card(card: str | None, section: str, name: str, repo_id: str) -> str:
    """`card` with the section about `name` replaced or added; a new card where there is none.

    All other text stays as it is. Raises `FileFormatError` where the marks around the section do not fit together.
    """
    begin, end = f"<!-- headprobe: begin {name} -->", f"<!-- headprobe: end {name} -->"
    block = f"{begin}\n{section}\n{end}"
    if card is None:
        return _HEADER.format(name=repo_id.split("/")[1], repo_id=repo_id) + f"\n{block}\n"
    if (card.count(begin), card.count(end)) == (0, 0):
        return f"{card.rstrip()}\n\n{block}\n"
    start, stop = card.find(begin), card.find(end)
    if (card.count(begin), card.count(end)) != (1, 1) or stop < start:
        raise FileFormatError(f"the marks around the section of {name} do not fit together", f"{repo_id}/{CARD}")
    return card[:start] + block + card[stop + len(end) :]


def _top(scores: HeadScores) -> list[tuple[int, int, float]]:
    return [head for head in scores.top(TOP_HEADS) if head[2] > 0.0]


def _rows(scores: HeadScores) -> list[Sequence[str]]:
    best = _top(scores)
    if scores.has_trial_scores and scores.num_passed:
        intervals = head_intervals(scores, [(layer, head) for layer, head, _ in best])
        told = [f"{low:.3f} to {high:.3f}" for low, high in intervals]
    else:
        told = ["–"] * len(best)
    return [
        (str(rank), f"{layer}-{head}", f"{score:.4f}", interval)
        for rank, ((layer, head, score), interval) in enumerate(zip(best, told, strict=True), 1)
    ]


def _provenance(scores: HeadScores) -> list[Sequence[str]]:
    model, probes, geometry = scores.provenance.model, scores.provenance.probes, scores.geometry
    rows: list[tuple[str, object]] = [
        ("model", model.id),
        ("revision", model.revision),
        ("architecture", model.architecture),
        ("heads", f"{geometry.num_hidden_layers} layers x {geometry.num_attention_heads} query heads, "
                  f"{geometry.num_key_value_heads} KV heads"),
        ("method", f"{scores.method.name}, version {scores.method.version}"),
        ("formula", scores.method.formula),
        ("trials", f"{scores.num_passed} of {scores.num_trials} passed"),
        ("lengths", _numbers(sorted({trial.length for trial in scores.trials}), "tokens")),
        ("depths", _numbers(sorted({trial.depth for trial in scores.trials}), "percent")),
        ("needles", _named(probes.get("needles"))),
        ("haystack", _named(probes.get("haystack"))),
        ("seed", probes.get("seed")),
        ("number format", model.dtype),
        ("made", scores.provenance.created_at),
        ("headprobe", scores.provenance.environment.get("headprobe")),
    ]  # fmt: skip
    return [(name, code(value)) for name, value in rows]


def _numbers(values: Sequence[float], unit: str) -> str:
    told = [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in values]
    return f"{', '.join(told)} {unit}" if len(told) <= 12 else f"{told[0]} to {told[-1]} {unit}, {len(told)} of them"


def _named(block: Any) -> str | None:
    if not isinstance(block, dict) or not isinstance(block.get("name"), str):
        return None
    digest = block.get("sha256")
    return block["name"] + (f" (sha256 {digest[:12]})" if isinstance(digest, str) else "")


def _checks(findings: Iterable[Finding]) -> str:
    told = [f"- {f.severity}, {code(f.check)}: {code(f.detail)} ({f.why})" for f in findings]
    if not told:
        return "`headprobe scores validate` finds nothing to object to."
    return "\n".join(["`headprobe scores validate` says:", "", *told])


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


# What a push would change in a repository: put together and looked at before anything goes out.

MAX_CARD = 4 * 2**20
_PUSHED = re.compile(r"[\w.,+=@-]+\.json")
NEW, CHANGED, SAME = "new", "changed", "same"


@dataclass(frozen=True)
class Upload:
    """A file as it will be in the repository; `change` is `new`, `changed` or `same`."""

    name: str
    data: bytes
    change: str

    @property
    def sha256(self) -> str:
        """The hash of the content."""
        return sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """All files of a push. `parent` is the commit it builds on, None where the repository is not there yet."""

    repo_id: str
    uploads: tuple[Upload, ...]
    parent: str | None

    @property
    def changes(self) -> tuple[Upload, ...]:
        """Those that the repository does not hold yet in this form."""
        return tuple(upload for upload in self.uploads if upload.change != SAME)


def check_score_name(name: str) -> str:
    """`name` if a score file can be pushed under it. Raises `OptionError` or `FileFormatError`.

    Stricter than `check_file_name`: the name comes into Markdown and shell commands of the card.
    """
    if _PUSHED.fullmatch(name) is None:
        raise OptionError(f"cannot push {name!r:.80}: need a name of letters, digits and '_.,+=@-' that ends in .json")
    return check_file_name(name)


def pack(
    repo_id: str, files: Iterable[tuple[str, bytes]], section: str, remote: RemoteRepository | None, overwrite: bool
) -> Parcel:
    """The `files` (the score file first, then its picture) and the card, compared with what the repository holds.

    Raises `OutputExistsError` when it holds another file of such a name and `overwrite` is false, `FileFormatError`
    when its card is not text. Fetches the card, and nothing else.
    """
    uploads = [_upload(name, data, remote) for name, data in files]
    other = [upload.name for upload in uploads if upload.change == CHANGED]
    if other and uploads[0].change != SAME and not overwrite:
        raise OutputExistsError(f"{repo_id} holds another {other[0]} already; --overwrite replaces it")
    card = merge_card(_card_of(remote), section, uploads[0].name, repo_id)
    uploads.append(_upload(CARD, card.encode("utf-8"), remote))
    return Parcel(repo_id, tuple(uploads), None if remote is None else remote.revision)


def _upload(name: str, data: bytes, remote: RemoteRepository | None) -> Upload:
    there = None if remote is None else remote.find(name)
    return Upload(name, data, NEW if there is None else SAME if there.holds(data) else CHANGED)


def _card_of(remote: RemoteRepository | None) -> str | None:
    there = None if remote is None else remote.find(CARD)
    if remote is None or there is None:
        return None
    try:
        return fetch(remote, there, MAX_CARD).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"byte {error.start} is not UTF-8", f"{remote.repo_id}/{CARD}") from None


# Send a parcel to the hub: one commit, on top of the one that was looked at.

DATASET = "dataset"


def publish(parcel: Parcel, message: str, private: bool = False) -> str:
    """Commit the changes of `parcel` and return the commit's hash; makes the repository where there is none.

    Somebody else's commit in between makes it fail instead of being overwritten. Raises `FileAccessError` when the
    hub cannot be reached or refuses.
    """
    api, repo_id = HfApi(library_name="headprobe"), parcel.repo_id
    operations = [CommitOperationAdd(upload.name, upload.data) for upload in parcel.changes]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if parcel.parent is None:
                api.create_repo(repo_id, repo_type=DATASET, private=private, exist_ok=False)
            done = api.create_commit(
                repo_id, operations, commit_message=message, repo_type=DATASET, parent_commit=parcel.parent
            )
    except Exception as error:
        raise FileAccessError(f"nothing was pushed to {repo_id}: {_refusal(error)}") from error
    return str(done.oid)


def _refusal(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None:
        return unreachable(error)
    reasons = {
        401: "the hub does not know you (`hf auth login`, or HF_TOKEN)",
        403: "your token may not write there (it needs the right to write, and the name must be yours)",
        404: "there is no such repository, or your token may not see it",
        409: "the repository already exists, but your token may not see it",
        412: "somebody else pushed meanwhile; push again",
    }
    told = " ".join(str(getattr(error, "server_message", None) or error).split())
    return reasons.get(int(status), f"the hub answered {status}: {told[:160]}")
