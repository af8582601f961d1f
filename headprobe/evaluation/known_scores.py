"""The head scores that a policy is to use for a model: given, found in `scores/`, or shipped with the bundled model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from headprobe.compression.policies import Policy
from headprobe.errors import FileFormatError, OptionError
from headprobe.models.catalog import bundled_model_folder, short_name
from headprobe.models.loading import LoadedModel
from headprobe.profiling.estimators import DEFAULT_METHOD, ESTIMATORS
from headprobe.scores.any_scores import AnyScores, read_any

SHIPPED = "scores"  # folder beside the bundled weights


def known_scores(
    loaded: LoadedModel, policy: Policy, given: Path | None = None, folder: Path = Path("scores")
) -> tuple[AnyScores | None, str | None]:
    """Scores for `policy`, and a remark where they are not quite what it asks for.

    `given` comes first; else the newest file in `folder` that belongs to this model, one of the method that the policy
    wants before others; else those shipped with the bundled model. None for a policy that needs none. Raises
    `OptionError`, which tells how to make them, where there are none.
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
    return found, _remark(found, policy, loaded)


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
        same_weights = identity.weights_sha256 in (None, loaded.weights_sha256)
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
