"""Head scores from any file, in headprobe's own format or another program's, and back into any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from headprobe.errors import FileFormatError, HeadprobeError, OptionError, shown
from headprobe.geometry import ModelGeometry
from headprobe.scores.files import MAX_BYTES, file_bytes
from headprobe.scores.formats import FORMATS, names_to_write
from headprobe.scores.formats.format import Contents, FaultError, Format, Source
from headprobe.scores.formats.format import Converted as Converted
from headprobe.scores.formats.format import StatedFacts as StatedFacts
from headprobe.scores.head_scores import Floats, HeadScores
from headprobe.scores.provenance import UNKNOWN, MethodFacts

# Head scores from any file: the native format and those of other programs, which their content decides.


class UnreadableScoresError(FileFormatError):
    """A file that cannot be read as head scores; `check` is the name under which `scores validate` lists it."""

    def __init__(self, reason: str, path: Path | str | None = None, check: str = "unreadable") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.check = check


@dataclass(frozen=True, eq=False)
class AnyScores:
    """What a score file holds, native or foreign.

    `path` is where it was read from; `format` the name of one of `FORMATS`, such as `headprobe` or `headkv`; `heads`
    says what the second axis counts, `query` or `kv`. `mean` is `[L, N]`. `trial_scores` is `[T, L, N]`, the passing
    trials in the order of the file, or None where it has none. `facts` say what the method's scores can be, as far as
    that is known. A ranking without scores (`is_ranking`) has points instead: as many as heads are
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
    is_ranking: bool
    notes: tuple[str, ...]
    sha256: str
    facts: MethodFacts = UNKNOWN

    @property
    def bound(self) -> float | None:
        """The largest score that the method can give, None where unknown."""
        return self.facts.most

    @property
    def family(self) -> str:
        """What pictures call the format."""
        return FORMATS[self.format].family

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

    The content decides which format it is. Raises `UnreadableScoresError` (a `FileFormatError`) with the reason, and
    the name of the check that failed, whatever the file holds.
    """
    place = Path(path)
    place = _table_in(place) if place.is_dir() else place
    source = Source(place, file_bytes(place, max_bytes))
    try:
        name, contents = _read(source)
    except FaultError as fault:
        raise UnreadableScoresError(str(fault), place, fault.check) from None
    return AnyScores(path=place, format=name, sha256=sha256(source.data).hexdigest(), **vars(contents))


def check_gqa(gqa: str) -> None:
    """Raise `OptionError` for a way to join query heads other than `mean` and `max`."""
    if gqa not in ("mean", "max"):
        raise OptionError(f"query heads are joined by 'mean' or 'max', not {shown(gqa)}")


def reduce_to_kv(mean: Floats, num_kv_heads: int, gqa: str = "mean") -> Floats:
    """Query heads `[L, H]` to KV heads `[L, G]`: the `mean` or `max` over the `H / G` neighbours that share one.

    Raises `OptionError` for another `gqa`, or where G does not divide H.

    >>> reduce_to_kv(np.array([[0.0, 1.0, 0.5, 0.5]]), 2).tolist()
    [[0.5, 0.5]]
    >>> reduce_to_kv(np.array([[0.0, 1.0, 0.5, 0.5]]), 2, "max").tolist()
    [[1.0, 0.5]]
    """
    layers, heads = mean.shape
    check_gqa(gqa)
    if num_kv_heads < 1 or heads % num_kv_heads:
        raise OptionError(f"{heads} query heads cannot be shared evenly by {num_kv_heads} KV heads")
    grouped = mean.reshape(layers, num_kv_heads, heads // num_kv_heads)
    return np.asarray(grouped.mean(axis=2) if gqa == "mean" else grouped.max(axis=2), dtype=np.float64)


def _read(source: Source) -> tuple[str, Contents]:
    """The name of the file's format, and what it holds. JSON of no format is read as a damaged file of ours."""
    broken: list[str] = []
    known = []
    for form in _formats(broken):
        found = _contents(form, source)
        if found is not None:
            return form.name, found
        known.append(f"{form.name} ({form.about})")
    if not source.data:
        raise FaultError("unreadable", "the file is empty")
    if source.json is not None and not broken:
        return "headprobe", FORMATS["headprobe"].read(source)
    raise FaultError("unreadable", "; ".join([f"no known score file: {', '.join(known)}", *broken]))


def _formats(broken: list[str]) -> Iterator[Format]:
    """All formats, those of other packages last; why one of them cannot be loaded goes to `broken`, since that is no
    reason not to read the files of all others."""
    for name in FORMATS:
        try:
            yield FORMATS[name]
        except OptionError as error:
            broken.append(str(error))


def _contents(form: Format, source: Source) -> Contents | None:
    """What the file holds where it is of this format; whatever goes wrong in another package is a fault of the file."""
    try:
        return form.read(source) if form.fits(source) else None
    except (FaultError, HeadprobeError):
        raise
    except Exception as error:
        if form.name in FORMATS.ours:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise FaultError("unreadable", f"the format {form.name} cannot read it: {reason:.200}") from error


def _table_in(folder: Path) -> Path:
    """The file that stands for a folder: the first that a format names and that is there, else Duo's."""
    places = [folder / form.table_name for form in _formats([]) if form.table_name is not None]
    return next((place for place in places if place.exists()), places[0])


# Scores of any file as those of another format, and what writers of formats share.


def convert(scores: AnyScores, to: str, stated: StatedFacts) -> Converted:
    """Write `scores` as `to`, the name of a format that can be written, such as `headkv` (one line of JSON by key).

    Raises `OptionError` for another `to`, or where the geometry is needed and missing or does not fit.
    """
    write = FORMATS[to].write if to in names_to_write() else None
    if write is None:
        known = [name for name in names_to_write() if name != to]
        raise OptionError(f"--to is {to!r}, need one of {', '.join(known)}")
    if stated.method is not None and scores.native is None:
        scores = replace(scores, method=stated.method)
    return write(scores, stated)


def fitting(scores: AnyScores, stated: StatedFacts) -> ModelGeometry:
    """The geometry of the file, else the stated one. Raises `OptionError` where there is none, or the table has another
    shape."""
    geometry = scores.geometry or stated.geometry
    if geometry is None:
        how = "give --model" if scores.heads == "kv" else "give --model or --num-kv-heads"
        raise OptionError(f"{scores.path} does not state which query heads share a KV head; {how}")
    heads = geometry.num_key_value_heads if scores.heads == "kv" else geometry.num_attention_heads
    found, due = scores.mean.shape, (geometry.num_hidden_layers, heads)
    if found != due and not (scores.is_ranking and found[0] <= due[0] and found[1] <= due[1]):
        name = stated.model or "the model"
        raise OptionError(f"{scores.path} has {found[0]} x {found[1]} heads, {name} has {due[0]} x {due[1]}")
    return geometry


def query_heads(scores: AnyScores, geometry: ModelGeometry) -> tuple[Floats, Floats | None]:
    """Mean and trials over all query heads: KV heads repeated, rankings filled up with zeros."""
    if scores.heads == "kv":
        return np.repeat(scores.mean, geometry.group_size, axis=1), None
    if scores.mean.shape == geometry.shape:
        return scores.mean, scores.trial_scores
    whole = np.zeros(geometry.shape)
    whole[: scores.num_layers, : scores.num_heads] = scores.mean
    return whole, None


def grouped(mean: Floats, num_kv_heads: int, gqa: str) -> Floats:
    """`reduce_to_kv`, but groups of equal scores keep them to the last bit."""
    most, least = reduce_to_kv(mean, num_kv_heads, "max"), -reduce_to_kv(-mean, num_kv_heads, "max")
    return np.where(most == least, most, reduce_to_kv(mean, num_kv_heads, gqa))
