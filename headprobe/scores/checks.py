"""The checks of `headprobe scores validate`: of a file's layout, of its trials, and of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats
from headprobe.scores.provenance import COUNT, MASS, METHODS, PER_ANSWER_TOKEN, MethodFacts
from headprobe.scores.ranks import top_k_weights
from headprobe.scores.summary import DistinctTrials
from headprobe.scores.uncertainty import ClusteredTrials

# What a check looks at, and what it finds.

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True, eq=False)
class Suspect:
    """A file under examination, with what is stated about it from elsewhere.

    `model` and `geometry` say whose scores they ought to be and `source` who says so (`--model`, the file's name);
    `method` is that of the file or of `--method`, `stated` the facts of the latter where they are known from its
    estimator. All are None where nobody says.
    """

    scores: AnyScores
    model: str | None = None
    geometry: ModelGeometry | None = None
    source: str | None = None
    method: str | None = None
    stated: MethodFacts | None = None

    @property
    def facts(self) -> MethodFacts:
        """What the scores can be: by the method's name, else as stated, else as the file or its format says."""
        return METHODS.get(self.method or "") or self.stated or self.scores.facts

    @classmethod
    def of(cls, scores: AnyScores) -> Suspect:
        """A file with nothing but its own word."""
        return cls(scores, scores.model, scores.geometry, "the file", scores.method)


@dataclass(frozen=True)
class Finding:
    """What a check found: its name, `error`, `warning` or `info`, what was seen, and why that matters."""

    check: str
    severity: str
    detail: str
    why: str


Seen = tuple[str, str] | None  # severity and detail, or nothing to tell


@dataclass(frozen=True)
class Check:
    """A check by name, why it matters, the function that looks, and what it needs: `trials` or `native` files only."""

    name: str
    why: str
    look: Callable[[Suspect], Seen]
    needs: str = ""

    def applies(self, suspect: Suspect) -> bool:
        """Whether the file holds what is looked at."""
        scores = suspect.scores
        held = {"": True, "trials": scores.trial_scores is not None, "native": scores.native is not None}
        return held[self.needs]


def note(suspect: Suspect, name: str) -> str | None:
    """What the reader noted under this name, or None."""
    found = (text.partition(": ") for text in suspect.scores.notes)
    return next((detail for head, _, detail in found if head == name), None)


# Whether a file says which head is meant, and holds all of them.


def keys_out_of_order(suspect: Suspect) -> Seen:
    """The keys of a JSON object are not in layer, head order."""
    detail = note(suspect, "keys-out-of-order")
    return None if detail is None else (ERROR, detail)


def unequal_trials(suspect: Suspect) -> Seen:
    """Heads, or the list of ids, have another number of trials."""
    detail = note(suspect, "unequal-trials")
    return None if detail is None else (ERROR, detail)


def wrong_shape(suspect: Suspect) -> Seen:
    """Layers and heads are not those of the model that is stated."""
    scores, geometry = suspect.scores, suspect.geometry
    if geometry is None:
        return None
    is_kv = scores.heads == "kv"
    due = geometry.num_hidden_layers, geometry.num_key_value_heads if is_kv else geometry.num_attention_heads
    found = scores.mean.shape
    if found == due or (scores.is_ranking and found[0] <= due[0] and found[1] <= due[1]):
        return None
    told = f"{found[0]} x {found[1]} {'KV' if is_kv else 'query'} heads"
    return ERROR, f"{told}, {suspect.model} (stated by {suspect.source}) has {due[0]} x {due[1]}"


def bad_config(suspect: Suspect) -> Seen:
    """The `config.json` beside a DuoAttention table cannot be used."""
    detail = note(suspect, "bad-config")
    return None if detail is None else (WARNING, detail)


def ranking_only(suspect: Suspect) -> Seen:
    """A ranking without scores."""
    detail = note(suspect, "ranking-only")
    return None if detail is None else (INFO, detail.partition(";")[0])


def no_provenance(suspect: Suspect) -> Seen:
    """The file does not say where it comes from."""
    scores = suspect.scores
    if scores.native is None:
        missing = [name for name, value in (("model", scores.model), ("method", scores.method)) if value is None]
        return INFO, f"the file does not state {', '.join([*missing, 'probes', 'versions'])}"
    model = scores.native.provenance.model
    if model.revision is None and model.config_sha256 is None:
        return INFO, "neither the model's revision nor the sha256 of its config is stated"
    return None


LAYOUT_CHECKS = (
    Check(
        "keys-out-of-order", "loaders that rely on the order of keys give heads the scores of others", keys_out_of_order
    ),
    Check("unequal-trials", "means over different trials cannot be compared, or scores were cut off", unequal_trials),
    Check("wrong-shape", "the scores belong to another model, or heads are missing", wrong_shape),
    Check("bad-config", "the model and the window sizes that belong to the table are unknown", bad_config),
    Check("ranking-only", "it can be compared by rank, but budgets need scores", ranking_only),
    Check("no-provenance", "nobody can measure the scores again or tell what they mean", no_provenance),
)


# Whether the trials of a file carry its ranking.

TOP = 10
STABLE_SHARE = 0.9
LEAST_CLUSTERS = 5
LOW_PASS_RATE = 0.5
FEW = 0.05  # trials without a hit, up to which they are answers in other words
CHANCE_SHARE = 0.95  # distinct trials, above which counts that agree may do so by chance
_RESAMPLES = 200


def no_trials(suspect: Suspect) -> Seen:
    """The file holds means only."""
    if suspect.scores.trial_scores is not None or suspect.scores.is_ranking:
        return None
    return INFO, "no scores of single trials: the certainty of the ranking is unknown"


def zero_trials(suspect: Suspect) -> Seen:
    """Trials in which every head scores 0."""
    trials = suspect.scores.trial_scores
    if trials is None:
        return None
    zero = np.flatnonzero(~trials.any(axis=(1, 2)))
    if not len(zero):
        return None
    detail = f"{len(zero)} of {len(trials)} trials are zero in every head, the first is trial {zero[0] + 1}"
    if suspect.scores.native is not None and suspect.facts.kind == COUNT and len(zero) <= FEW * len(trials):
        return INFO, f"{detail}; the gate took their answers, whose tokens no head looked up first"
    return ERROR if 2 * len(zero) > len(trials) else WARNING, detail


def duplicate_trials(suspect: Suspect) -> Seen:
    """Trials that are one measurement, stored several times."""
    trials = suspect.scores.trial_scores
    if trials is None:
        return None
    found = DistinctTrials.of(trials)
    if found.number == len(trials):
        return None
    first, last = found.longest_run
    run = f"; trials {first + 1} to {last + 1} are one and the same" if last > first else ""
    detail = f"{found.number} of {len(trials)} trials are distinct, worth {found.effective:.1f} equal ones{run}"
    if suspect.facts.kind == COUNT and not run and found.number >= CHANCE_SHARE * len(trials):
        return INFO, f"{detail}; counts of a few hits can agree by chance"
    return ERROR if 2 * found.number <= len(trials) else WARNING, detail


def too_few_trials(suspect: Suspect) -> Seen:
    """The top heads change when the trials are resampled."""
    scores = suspect.scores
    if scores.trial_scores is None:
        return None
    top = min(TOP, int((scores.mean > 0.0).sum()), max(1, scores.mean.size // 2))
    if top < 1:
        return None
    drawn = ClusteredTrials.of_any(scores)
    number = drawn.num_clusters
    clusters = "1 independent trial" if number == 1 else f"{number} independent trials"
    if number < LEAST_CLUSTERS:
        return (
            WARNING,
            f"{clusters}: too few to tell how far the top {top} heads would change; {LEAST_CLUSTERS} would be enough",
        )
    kept = _kept(drawn, top)
    if kept >= STABLE_SHARE * top:
        return None
    detail = f"on average {kept:.2f} of the top {top} heads are reproduced when {clusters} are resampled"
    return WARNING, f"{detail} ({_RESAMPLES} times); {STABLE_SHARE * top:g} are needed"


def low_pass_rate(suspect: Suspect) -> Seen:
    """The model answered few of its trials."""
    native = suspect.scores.native
    if native is None or native.num_passed >= LOW_PASS_RATE * native.num_trials:
        return None
    detail = f"{native.num_passed} of {native.num_trials} trials passed"
    if suspect.scores.trial_scores is None or too_few_trials(suspect) is not None:
        return WARNING, detail
    return INFO, f"{detail}; those are enough for a stable ranking"


def uneven_coverage(suspect: Suspect) -> Seen:
    """Lengths or depths without a passing trial."""
    native = suspect.scores.native
    if native is None:
        return None
    for name in ("length", "depth"):
        passed = {getattr(trial, name) for trial in native.trials if trial.passed}
        missing = sorted({getattr(trial, name) for trial in native.trials} - passed)
        if missing:
            return WARNING, f"no trial passed at {name} {', '.join(f'{value:g}' for value in missing[:8])}"
    return None


def _kept(drawn: ClusteredTrials, top: int) -> float:
    """How many of the top heads are, on average, in the top of a resample; ties at the border count in part."""
    whole = top_k_weights(drawn.flat.mean(axis=0), top)
    kept = [float((whole * top_k_weights(row, top)).sum()) for block in drawn.means(_RESAMPLES, 0) for row in block]
    return sum(kept) / len(kept) * top / float((whole * whole).sum())


TRIAL_CHECKS = (
    Check("no-trials", "the file has to be taken on trust", no_trials),
    Check("zero-trials", "no head found the needle in them; they pull every mean down", zero_trials, "trials"),
    Check(
        "duplicate-trials",
        "fewer measurements than it looks; the repeated prompt weighs most",
        duplicate_trials,
        "trials",
    ),
    Check("too-few-trials", "other trials would rank other heads first", too_few_trials, "trials"),
    Check(
        "low-pass-rate",
        "the model fails most trials; scores are of those that it passed",
        low_pass_rate,
        "native",
    ),
    Check("uneven-coverage", "the scores say nothing about these", uneven_coverage, "native"),
)


# Whether the numbers can be what the stated method gives.

TOLERANCE = 1e-6
UNIFORM_SHARE = 0.95
SATURATED_SHARE = 0.25
LONGEST_ANSWER = 256
MOST_SWALLOWED = 2  # tokens of an answer, its first and last, that can be one with their neighbours in the context
_TRIALS_LOOKED_AT = 50
GATE_NAMES = {"f1": "an F1", "rouge1_recall": "a ROUGE-1 recall", "deciding_words": "a share of the deciding words"}


def above_bound(suspect: Suspect) -> Seen:
    """Scores above the largest value of the method."""
    bound = suspect.facts.most
    if bound is None:
        return None
    scores = suspect.scores
    trials = scores.mean[None] if scores.trial_scores is None else scores.trial_scores
    over = trials > bound * _steps_per_token(suspect)[:, None, None] + TOLERANCE
    if not over.any():
        return None
    heads, count = int(over.any(axis=0).sum()), int(over.any(axis=(1, 2)).sum())
    where = "" if scores.trial_scores is None else f" in {count} of {len(trials)} trials"
    told = "1 head scores" if heads == 1 else f"{heads} heads score"
    return ERROR, f"{told} above {bound:g}{where}, up to {trials.max():.4g}"


def _steps_per_token(suspect: Suspect) -> Floats:
    """The most steps of our own trials to a token of the answer, `[T]`, or `[1]` where only their mean is there.

    Scores are divided by the answer's tokens in the context, while it has a step for each of its tokens behind the
    prompt. Those can be more. Other methods' bounds are as they state them.
    """
    scores = suspect.scores
    if scores.native is None or suspect.method not in PER_ANSWER_TOKEN:
        return np.ones(1)
    passing = [trial for trial in scores.native.trials if trial.passed]
    most = np.array([trial.num_steps / max(1, trial.num_steps - MOST_SWALLOWED) for trial in passing])
    if scores.trial_scores is None or len(most) != len(scores.trial_scores):
        return most.max(initial=1.0, keepdims=True)
    return most


def impossible_values(suspect: Suspect) -> Seen:
    """Negative scores, or fractions where masses belong and the reverse."""
    return _negative(suspect) or _failed_gate(suspect) or _fractions(suspect)


def uniform_scores(suspect: Suspect) -> Seen:
    """All heads score about the same."""
    mean = suspect.scores.mean
    if suspect.scores.is_ranking or mean.size < 2:
        return None
    if mean.max() == mean.min():
        return ERROR, f"all {mean.size} heads score {mean.max():g}"
    alike = effective_heads(mean) / mean.size
    if alike <= UNIFORM_SHARE:
        return None
    return WARNING, f"the scores are as even as those of {alike:.1%} of all heads with one score"


def saturated_scores(suspect: Suspect) -> Seen:
    """Many heads score the most that the method can give."""
    bound, mean = suspect.facts.most, suspect.scores.mean
    if bound is None or suspect.scores.is_ranking:
        return None
    full = int((np.abs(mean - bound) <= 0.01 * bound).sum())
    if full < SATURATED_SHARE * mean.size or full < 2:
        return None
    return WARNING, f"{full} of {mean.size} heads score within 1 % of {bound:g}"


def effective_heads(mean: Floats) -> float:
    """`exp(entropy)` of the positive scores: as many heads with one score would be as uneven. 0 without any.

    >>> round(effective_heads(np.array([[1.0, 1.0], [0.0, 0.0]])), 6)
    2.0
    """
    positive = mean[mean > 0.0]
    if not positive.size:
        return 0.0
    shares = positive / positive.max()
    shares = shares / shares.sum()
    shares = shares[shares > 0.0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def answer_length(trial: Floats) -> int | None:
    """The least N up to `LONGEST_ANSWER` of which all scores of a trial are multiples of 1/N; None for no such N.

    >>> answer_length(np.array([[0.5, 0.25]])), answer_length(np.array([[0.5, 0.333]])) is None
    (4, True)
    """
    values = np.unique(trial[trial != 0.0])
    for number in range(1, LONGEST_ANSWER + 1):
        hits = values * number
        if np.all(np.abs(hits - np.round(hits)) < TOLERANCE * number):
            return number
    return None


def _negative(suspect: Suspect) -> Seen:
    scores, least = suspect.scores, suspect.facts.least
    if least is None or scores.is_ranking:
        return None
    found = float(scores.mean.min() if scores.trial_scores is None else scores.trial_scores.min())
    if found >= least - TOLERANCE:
        return None
    if suspect.method is None:
        return ERROR, f"a score of {found:.4g}; no method of this family gives less than {least:g}"
    verb = "never gives less than" if least == 0.0 else "gives at least"
    return ERROR, f"a score of {found:.4g}; `{suspect.method}` {verb} {least:g}"


def _fractions(suspect: Suspect) -> Seen:
    trials, kind = suspect.scores.trial_scores, suspect.facts.kind
    if trials is None or kind not in (MASS, COUNT):
        return None
    method = "this method" if suspect.method is None else f"`{suspect.method}`"
    looked_at = [trial for trial in trials[:_TRIALS_LOOKED_AT] if len(np.unique(trial)) >= 4]
    counted = [answer_length(trial) for trial in looked_at]
    if kind == COUNT and None in counted:
        told = f"in {counted.count(None)} of {len(counted)} trials the scores are not multiples of 1/N"
        return ERROR, f"{told} for any N up to {LONGEST_ANSWER}, as {method} gives for an answer of N tokens"
    if kind == MASS and counted and None not in counted:
        told = f"in every trial the scores are multiples of 1/N (here of 1/{counted[0]})"
        return WARNING, f"{told}: hits were counted or digits cut off; {method} adds up attention"
    return None


def _failed_gate(suspect: Suspect) -> Seen:
    native = suspect.scores.native
    gate = None if native is None else native.method.parameters.get("gate")
    if native is None or not isinstance(gate, dict) or gate.get("metric") not in GATE_NAMES:
        return None
    metric, threshold = gate["metric"], gate.get("threshold")
    if not isinstance(threshold, int | float):
        return None
    stated = [(trial, trial.f1 if metric == "f1" else trial.extra.get(metric)) for trial in native.trials]
    wrong = [t.id for t, share in stated if t.passed and isinstance(share, int | float) and share <= threshold]
    if not wrong:
        return None
    told = f"{len(wrong)} trials count as passed with {GATE_NAMES[metric]} of {threshold:g} or less"
    return ERROR, f"{told}, first {wrong[0]!r:.60}"


VALUE_CHECKS = (
    Check("above-bound", "repeated answers or a wrong divisor; such heads are ranked too high", above_bound),
    Check("impossible-values", "another method, other code or a damaged file made these numbers", impossible_values),
    Check("uniform-scores", "there is nothing to rank; noise decides", uniform_scores),
    Check("saturated-scores", "the best heads cannot be distinguished", saturated_scores),
)
