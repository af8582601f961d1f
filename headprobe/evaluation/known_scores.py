"""What is known of a model before anything runs: head scores for its policies, and the settings it recommends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from headprobe.compression.policies import Policy, with_selector
from headprobe.compression.selectors import Window
from headprobe.errors import FileFormatError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import COMPRESSION_FILE, bundled_model_folder, short_name
from headprobe.models.loading import LoadedModel
from headprobe.profiling.estimators import DEFAULT_METHOD, ESTIMATORS
from headprobe.scores.any_scores import AnyScores, read_any, reduce_to_kv
from headprobe.scores.ranks import midranks
from headprobe.scores.strict_json import parse

# The head scores that a policy is to use for a model: given, found in `scores/`, or shipped with the bundled model.

SHIPPED = "scores"  # folder beside the bundled weights


def known_scores(
    loaded: LoadedModel, policy: Policy, given: Path | None = None, folder: Path = Path("scores")
) -> tuple[AnyScores | None, str | None]:
    """Scores for `policy`, and a remark where they are not quite what it asks for.

    `given` comes first; else the newest file in `folder` that belongs to this model, one of the method that the policy
    wants before others; else those shipped with the bundled model. Where none is given, a policy with `scores_beside`
    gets the best heads of both methods (`with_best_of`). None for a policy that needs none. Raises
    `OptionError`, which says how to make them, where there are none.
    """
    if not policy.needs_scores:
        return None, None
    found = read_any(given) if given is not None else _found(loaded, policy.scores, folder)
    if found is None:
        method = f" --method {policy.scores}" if policy.scores in ESTIMATORS and policy.scores != DEFAULT_METHOD else ""
        raise OptionError(
            f"no head scores of {loaded.name} in {folder}/, which {policy.name} needs: "
            f"`headprobe score --model {_model_option(loaded)}{method}` makes them, --scores FILE names others"
        )
    remark = _remark(found, policy, loaded)
    if given is None and policy.scores_beside is not None and found.method == policy.scores:
        beside = _found(loaded, policy.scores_beside, folder)
        if beside is not None and beside.method == policy.scores_beside:
            return with_best_of(found, beside, loaded.geometry), remark
        missing = f"{policy.name} takes {policy.scores_beside} scores too, and there are none"
        remark = missing if remark is None else f"{remark}; {missing}"
    return found, remark


def with_best_of(first: AnyScores, second: AnyScores, geometry: ModelGeometry) -> AnyScores:
    """Points by which the best heads of both files come first: RazorAttention's choice of retrieval heads.

    Of the best `n` heads 14 of 15 are the best by `first` (induction) and 1 of 15 is the best by `second` (echo), as
    far as they are not the same. A KV head counts as its best query head does.
    """
    if first.mean.shape != geometry.shape or second.mean.shape != geometry.shape:
        return first
    places = [midranks(side.mean.ravel()).reshape(geometry.shape) / share for side, share in ((first, 14), (second, 1))]
    points = reduce_to_kv(1.0 / np.minimum(*places), geometry.num_key_value_heads, "max")
    both = sha256(f"{first.sha256}/{second.sha256}".encode()).hexdigest()
    return replace(first, mean=points, heads="kv", trial_scores=None, native=None, sha256=both)


def _model_option(loaded: LoadedModel) -> str:
    """What to give to `--model` for this model: a folder by its path."""
    own_folder = Path(loaded.source).is_dir() and Path(loaded.source) != bundled_model_folder()
    return loaded.source if own_folder else loaded.name


def _found(loaded: LoadedModel, method: str | None, folder: Path) -> AnyScores | None:
    files = sorted(folder.glob("*.json"), key=lambda file: (_changed(file), file.name), reverse=True)
    own = [scores for file in files if (scores := _readable(file)) is not None and belongs(scores, loaded)]
    shipped = bundled_model_folder() / SHIPPED
    if Path(loaded.source) == bundled_model_folder() and shipped.is_dir():
        own += [scores for file in sorted(shipped.glob("*.json")) if (scores := _readable(file))]
    return next((scores for scores in own if scores.method == method), own[0] if own else None)


def _changed(file: Path) -> int:
    """When the file was changed."""
    return file.stat().st_mtime_ns


def _readable(file: Path) -> AnyScores | None:
    return _read(file, _changed(file))


@lru_cache(maxsize=64)  # every policy asks for the same few files
def _read(file: Path, changed: int) -> AnyScores | None:
    """The scores of a file that was changed then; None for what is no score file: other JSON may lie in the folder."""
    try:
        return read_any(file)
    except FileFormatError:
        return None


def belongs(scores: AnyScores, loaded: LoadedModel) -> bool:
    """Whether a file's scores are of this model: by the hashes of config and weights in it, else by name."""
    identity = None if scores.native is None else scores.native.provenance.model
    if identity is not None and identity.config_sha256:
        known = loaded.weights_sha256  # empty where only a plan is made, without weights
        same_weights = not known or identity.weights_sha256 in (None, known)
        return identity.config_sha256 == loaded.config_sha256 and same_weights
    return scores.model is not None and short_name(scores.model) == short_name(loaded.name)


def _remark(scores: AnyScores, policy: Policy, loaded: LoadedModel) -> str | None:
    parts = []
    if scores.native is not None and not belongs(scores, loaded):
        other = "other weights" if scores.model == short_name(loaded.name) else f"{scores.model}, not"
        parts.append(f"{scores.path.name} holds scores of {other} of {loaded.name}")
    if scores.method is not None and scores.method != policy.scores:
        parts.append(f"{policy.name} is meant for {policy.scores} scores, {scores.path.name} has {scores.method}")
    return "; ".join(parts) or None


# What a model recommends for its own compression: `compression.json` in its folder.

_KEYS = ("window", "pool")
_MAX_BYTES = 2**16


@dataclass(frozen=True)
class Recommended:
    """The observation window in queries and the width of pooling in entries; None where nothing is recommended.

    The bundled model has both: its prompts end in few tokens behind the question, and its heads look at single tokens,
    so that what stands beside them has to be kept too.
    """

    window: int | None = None
    pool: int | None = None

    @classmethod
    def of(cls, source: str) -> Recommended:
        """What the model's folder recommends, in a file like `{"window": 2, "pool": 49}` or with one of the two.

        Raises `FileFormatError` for a file with anything else in it, or numbers that no policy can have.
        """
        path = Path(source) / COMPRESSION_FILE
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except OSError as error:
            raise FileFormatError(f"cannot be read: {error.strerror}", path) from None
        if len(data) > _MAX_BYTES:
            raise FileFormatError(f"is larger than {_MAX_BYTES} bytes", path)
        return cls._checked(parse(data, path), path)

    @classmethod
    def _checked(cls, record: object, path: Path) -> Recommended:
        if not isinstance(record, dict) or not record or not set(record) <= set(_KEYS):
            raise FileFormatError('expected {"window": QUERIES, "pool": WIDTH} or one of the two', path)
        for name, value in record.items():
            if type(value) is not int:
                raise FileFormatError(f"{name} is {value!r:.60}, need a whole number", path)
        try:
            Window(**record)
        except OptionError as error:
            raise FileFormatError(str(error), path) from None
        return cls(**record)

    def without(self, window: int | None, pool: int | None) -> Recommended:
        """What is left beside the numbers that the user gave, which overrule their own kind only."""
        return Recommended(self.window if window is None else None, self.pool if pool is None else None)

    def apply(self, policy: Policy) -> Policy:
        """`policy` with these numbers, as far as its selector has them."""
        return with_selector(policy, {key: value for key, value in vars(self).items() if value is not None})

    def words(self) -> str | None:
        """In words; None where nothing is recommended."""
        told = [] if self.window is None else [f"use the last {self.window} queries"]
        if self.pool is not None:
            told.append(f"pooled over {self.pool}" if told else f"pool over {self.pool} entries")
        return ", ".join(told) or None


def with_recommended_window(
    loaded: LoadedModel, policy: Policy, window: int | None = None, pool: int | None = None
) -> Policy:
    """`policy` with the window and pooling that the model's folder recommends, but for what the user gave.

    Policies without a window, and models that recommend nothing, are left as they are.
    """
    return Recommended.of(loaded.source).without(window, pool).apply(policy)


def window_note(loaded: LoadedModel, window: int | None = None, pool: int | None = None) -> str | None:
    """In words that recommended values are taken; None where they are not."""
    told = Recommended.of(loaded.source).without(window, pool).words()
    return None if told is None else f"window policies {told}, as {loaded.name} recommends"
