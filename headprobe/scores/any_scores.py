"""Head scores from any file: the native format and those of other programs, told apart by their content."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.errors import FileFormatError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores import strict_json
from headprobe.scores.file_bytes import MAX_BYTES, file_bytes
from headprobe.scores.foreign.duo import TABLE_NAME, is_duo, read_duo
from headprobe.scores.foreign.keyed import check_keys, is_keyed, read_keyed
from headprobe.scores.foreign.kvzip import is_kvzip, read_kvzip
from headprobe.scores.foreign.locos import is_locos, read_locos
from headprobe.scores.foreign.qrhead import is_qrhead, read_qrhead
from headprobe.scores.foreign.table import QUERY, RANKING_NOTE, FaultError, ForeignTable
from headprobe.scores.head_scores import Floats, HeadScores
from headprobe.scores.score_file import scores_from

BOUNDS = {"r2": 1.0, "retrieval": 1.0, "enhanced": 1.0, "value": 1.0, "contrast": 1.0}
MAX_CONTAINERS = 4_000_000
KNOWN_FORMATS = (
    "headprobe (JSON), headkv (JSON by layer-head key), duo (tsv), qrhead (YAML), kvzip (.pt), locos (JSON envelope)"
)


class UnreadableScoresError(FileFormatError):
    """A file that cannot be read as head scores; `check` is the name under which `scores validate` lists it."""

    def __init__(self, reason: str, path: Path | str | None = None, check: str = "unreadable") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.check = check


@dataclass(frozen=True, eq=False)
class AnyScores:
    """What a score file holds, native or foreign.

    `path` is where it was read from; `format` one of `headprobe`, `headkv`, `duo`, `qrhead`, `kvzip`, `locos`;
    `heads` says what the second axis counts, `query` or `kv`. `mean` is `[L, N]`. `trial_scores` is `[T, L, N]`, the
    passing trials in the order of the file, or None where it has none. `bound` is the largest value that the method
    can give, None where unknown. A ranking without scores (`is_ranking`) has points instead: as many as heads are
    ranked for the first, 1 for the last, 0 for all others. `notes` say what the reader noticed, each as
    `name: text`. `sha256` is that of the file's bytes.
    """

    path: Path
    format: str
    heads: str
    mean: Floats
    trial_scores: Floats | None
    native: HeadScores | None
    geometry: ModelGeometry | None
    method: str | None
    model: str | None
    bound: float | None
    is_ranking: bool
    notes: tuple[str, ...]
    sha256: str

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.mean.shape[0])

    @property
    def num_heads(self) -> int:
        """N: query or KV heads of a layer, as `heads` says."""
        return int(self.mean.shape[1])


def read_any(path: Path | str, max_bytes: int = MAX_BYTES) -> AnyScores:
    """Read a score file of any known format; a folder stands for the DuoAttention table in it.

    The format is told by the content. Raises `UnreadableScoresError` (a `FileFormatError`) with the reason, and the
    name of the check that failed, whatever the file holds.
    """
    source = Path(path)
    if source.is_dir():
        source = source / TABLE_NAME
    data = file_bytes(source, max_bytes)
    digest = sha256(data).hexdigest()
    try:
        return _any(data, source, digest)
    except FaultError as fault:
        raise UnreadableScoresError(str(fault), source, fault.check) from None


def reduce_to_kv(mean: Floats, num_kv_heads: int, how: str = "mean") -> Floats:
    """Query heads `[L, H]` to KV heads `[L, G]`: the `mean` or `max` over the `H / G` neighbours that share one.

    Raises `OptionError` for another `how`, or where G does not divide H.

    >>> reduce_to_kv(np.array([[0.0, 1.0, 0.5, 0.5]]), 2).tolist()
    [[0.5, 0.5]]
    >>> reduce_to_kv(np.array([[0.0, 1.0, 0.5, 0.5]]), 2, "max").tolist()
    [[1.0, 0.5]]
    """
    layers, heads = mean.shape
    if how not in ("mean", "max"):
        raise OptionError(f"query heads are joined by 'mean' or 'max', not {how!r}")
    if num_kv_heads < 1 or heads % num_kv_heads:
        raise OptionError(f"{heads} query heads cannot be shared evenly by {num_kv_heads} KV heads")
    grouped = mean.reshape(layers, num_kv_heads, heads // num_kv_heads)
    return np.asarray(grouped.mean(axis=2) if how == "mean" else grouped.max(axis=2), dtype=np.float64)


def _any(data: bytes, path: Path, digest: str) -> AnyScores:
    if is_kvzip(data):
        return _foreign(path, "kvzip", read_kvzip(data), digest)
    if data.lstrip()[:1] == b"{":
        return _from_json(data, path, digest)
    if is_duo(data):
        return _foreign(path, "duo", read_duo(data, path), digest)
    if is_qrhead(data):
        return _foreign(path, "qrhead", read_qrhead(data), digest)
    raise FaultError("unreadable", f"no known score file: {KNOWN_FORMATS}" if data else "the file is empty")


def _from_json(data: bytes, path: Path, digest: str) -> AnyScores:
    containers = data.count(b"[") + data.count(b"{")
    if containers > MAX_CONTAINERS:  # two bytes of text, and sixty of memory
        raise FaultError("too-long", f"{containers} arrays and objects, need at most {MAX_CONTAINERS}")
    check_keys(data)
    value = strict_json.parse(data, path)
    if is_keyed(value):
        return _foreign(path, "headkv", read_keyed(value), digest)
    if is_locos(value):
        return _foreign(path, "locos", read_locos(value), digest)
    return _native(path, scores_from(value, path), digest)


def _native(path: Path, scores: HeadScores, digest: str) -> AnyScores:
    name, is_ranking = scores.method.name, scores.method.parameters.get("is_ranking") is True
    return AnyScores(
        path=path,
        format="headprobe",
        heads=QUERY,
        mean=scores.mean,
        trial_scores=scores.passing_scores if scores.has_trial_scores else None,
        native=scores,
        geometry=scores.geometry,
        method=name,
        model=scores.provenance.model.id,
        bound=BOUNDS.get(name),
        is_ranking=is_ranking,
        notes=(f"ranking-only: {RANKING_NOTE}",) if is_ranking else (),
        sha256=digest,
    )


def _foreign(path: Path, format_name: str, table: ForeignTable, digest: str) -> AnyScores:
    fields: dict[str, Any] = {name: _read_only(value) for name, value in vars(table).items()}
    return AnyScores(path=path, format=format_name, native=None, geometry=None, sha256=digest, **fields)


def _read_only(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    return value
