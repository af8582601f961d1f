"""What is compared: a policy with the scores it takes, beside it the same policy with scores that mean nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.compression.kv_cache_dtypes import AUTO, told_with
from headprobe.compression.policies import POLICIES, Policy, has_option, make_policy, make_policy_with
from headprobe.compression.session import on_kv_heads
from headprobe.errors import OptionError
from headprobe.evaluation.known_scores import known_scores
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import bundled_model_folder, resolve
from headprobe.models.loading import LoadedModel
from headprobe.probes.plan import whole_numbers
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.scores.any_scores import AnyScores, read_any

REAL, RANDOM, SHUFFLED = "real", "random", "shuffled"
BASELINES = (RANDOM, SHUFFLED)
ALL = "all"
STAND_INS = {"duo": "retrieval"}  # for a pattern file that is not there, the scores that come nearest


@dataclass(frozen=True, eq=False)
class Variant:
    """A policy and where its head scores come from.

    `source` is `real` (a file's scores), `random` or `shuffled` (baselines), None for a policy that takes no scores.
    `scores` are those of the KV heads `[L, G]` over all layers, `remark` says what is not quite right with them.
    `kv_cache_dtype`: how its cache holds entries, one of `KV_CACHE_DTYPES`.
    """

    policy: Policy
    source: str | None = None
    scores: AnyScores | None = None
    remark: str | None = None
    kv_cache_dtype: str = AUTO

    @property
    def name(self) -> str:
        """The policy's name; behind it how entries are held, and for a baseline its kind: `headkv-r2 int8 (random)`."""
        return told_as(self.policy.name, self.source, self.kv_cache_dtype)

    def scores_for(self, trial: str, seed: int, geometry: ModelGeometry) -> AnyScores | None:
        """The scores that `trial` runs with; baselines are drawn afresh for each trial, the same for all budgets.

        `random`: uniform in [0, 1) for each KV head. `shuffled`: the real table with its KV heads changing places, over
        all full-attention layers, so that the same budgets go to other heads.
        """
        if self.scores is None or self.source == REAL:
            return self.scores
        digest = sha256(f"{seed}/{told_as(self.policy.name, self.source)}/{trial}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        drawn = self.scores.mean.copy()
        rows = list(geometry.full_attention_layers)
        if self.source == RANDOM:
            drawn[rows] = generator.random(drawn[rows].shape)
        else:
            drawn[rows] = generator.permutation(drawn[rows].ravel()).reshape(drawn[rows].shape)
        return replace(self.scores, mean=drawn)

    def describe(self) -> dict[str, Any]:
        """All that decides what it does, as plain JSON values."""
        found = None if self.scores is None else {"method": self.scores.method, "sha256": self.scores.sha256}
        held = {} if self.kv_cache_dtype == AUTO else {"kv_cache_dtype": self.kv_cache_dtype}
        return {"rule": repr(self.policy), "scores": found, **held}

    def row_head(self) -> dict[str, Any]:
        """What rows say of it; of quantized entries only where there are any."""
        held = {} if self.kv_cache_dtype == AUTO else {"kv_cache_dtype": self.kv_cache_dtype}
        return {"policy": self.policy.name, "scores": self.source, **held}


def told_as(policy: str, source: str | None, kv_cache_dtype: str = AUTO) -> str:
    """What a variant is called.

    >>> told_as("headkv-r2", "random", "int8"), told_as("snapkv", None)
    ('headkv-r2 int8 (random)', 'snapkv')
    """
    name = told_with(policy, kv_cache_dtype)
    return name if source in (None, REAL) else f"{name} ({source})"


def in_formats(found: Iterable[Variant], kv_cache_dtypes: Sequence[str]) -> tuple[Variant, ...]:
    """Each variant with its entries held in each of these ways; `full` as it is first, the measure of all others."""
    every = [replace(variant, kv_cache_dtype=kv_cache_dtype) for variant in found for kv_cache_dtype in kv_cache_dtypes]
    plain = [replace(variant, kv_cache_dtype=AUTO) for variant in every if variant.policy.keeps_all]
    return tuple({variant.name: variant for variant in [*plain, *every]}.values())


@dataclass(frozen=True)
class PolicyOptions:
    """Changes to every policy that has such an option; None leaves it as it is.

    `exact`: a policy that is taken as it is wherever its name is asked for.
    """

    window: int | None = None
    pool: int | None = None
    beta: float | None = None
    sinks: int | None = None
    exact: Policy | None = None

    def apply(self, names: Sequence[str]) -> list[Policy]:
        """The policies called `names`, changed. Raises `OptionError` for an option that none of them has."""
        given = {key: value for key, value in vars(self).items() if value is not None and key != "exact"}
        for key, value in given.items():
            if not any(has_option(make_policy(name), key) for name in names):
                raise OptionError(f"none of {', '.join(names)} has a {key} (given: {value})")
        exact = {} if self.exact is None else {self.exact.name: self.exact}
        return [exact[name] if name in exact else make_policy_with(name, given) for name in names]


def policy_names(text: str) -> tuple[str, ...]:
    """Names from `full,snapkv,...` or `all`, each once; `full`, the measure of all others, always comes first.

    >>> policy_names("snapkv,h2o,snapkv")
    ('full', 'snapkv', 'h2o')
    """
    parts = [part.strip() for part in text.split(",")]
    names = [name for part in parts for name in (POLICIES if part == ALL else [part])]
    for name in names:
        make_policy(name)
    return tuple(dict.fromkeys(["full", *names]))


def parse_budgets(text: str) -> tuple[int, ...]:
    """Whole numbers from text such as `16,32`.

    >>> parse_budgets("16, 32")
    (16, 32)
    """
    return whole_numbers(text, "budget {} is not a number of entries (write 16 or 16,32)")


def parse_baselines(text: str) -> tuple[str, ...]:
    """Names from text such as `random,shuffled`; of `none` there are none.

    >>> parse_baselines("random, shuffled"), parse_baselines("none")
    (('random', 'shuffled'), ())
    """
    return () if text == "none" else tuple(name.strip() for name in text.split(","))


def check_scores_exist(
    policies: Sequence[str], given: Sequence[Path], model: str, folder: Path = Path("scores")
) -> None:
    """Raise `OptionError` where a policy needs head scores and there can be none, before the model is loaded.

    `variants` knows more, once it is: whether the files that are there fit.
    """
    lacking = next((name for name in policies if make_policy(name).needs_scores), None)
    if lacking is None or given or any(folder.glob("*.json")) or resolve(model).source == str(bundled_model_folder()):
        return
    raise OptionError(
        f"no head scores in {folder}/, which {lacking} needs: `headprobe score --model {model}` makes them, --scores "
        "FILE names others"
    )


def variants(
    loaded: LoadedModel,
    policies: Iterable[Policy],
    given: Sequence[Path] = (),
    *,
    baselines: Sequence[str] = BASELINES,
    gqa: str = "mean",
    folder: Path = Path("scores"),
) -> Iterator[Variant]:
    """Each policy, and its baselines behind it where it takes scores.

    `given` score files come before those in `folder` and the shipped ones; of several the one whose method the policy
    wants, else the first. Raises `OptionError` where a policy's scores are not there: a row of `headkv-r` on scores of
    another method would be mislabelled, unless they were named by hand.
    """
    files = [(path, read_any(path).method) for path in given]
    for policy in policies:
        if not policy.needs_scores:
            yield Variant(policy)
            continue
        scores, remark = _scores_of(loaded, policy, _best_of(files, policy), folder)
        settled = on_kv_heads(scores, loaded.geometry, gqa)
        for source in (REAL, *baselines):
            yield Variant(policy, source, settled, remark)


def _best_of(files: Sequence[tuple[Path, str | None]], policy: Policy) -> Path | None:
    """Of score files with their methods the one for `policy`: of its method, of the stand-in for it, the first."""
    for wanted in (policy.scores, STAND_INS.get(policy.scores or "")):
        for path, method in files:
            if method is not None and method == wanted:
                return path
    return files[0][0] if files else None


def _scores_of(loaded: LoadedModel, policy: Policy, path: Path | None, folder: Path) -> tuple[AnyScores, str | None]:
    scores, remark = known_scores(loaded, policy, path, folder)
    assert scores is not None
    if path is not None or scores.method == policy.scores:
        return scores, remark
    if policy.scores in ESTIMATORS:
        raise OptionError(
            f"{policy.name} needs {policy.scores} scores of {loaded.name}: `headprobe score --model {loaded.name} "
            f"--method {policy.scores}` makes them, --scores FILE names others"
        )
    wanted = STAND_INS.get(policy.scores or "")
    nearest, _ = known_scores(loaded, replace(policy, scores=wanted), None, folder)
    assert nearest is not None
    return nearest, f"{policy.name} runs on {nearest.method} scores: there is no {policy.scores} file"
