"""Whether the numbers can be what the stated method gives."""

from __future__ import annotations

import numpy as np

from headprobe.scores.checks.finding import ERROR, WARNING, Check, Seen, Suspect
from headprobe.scores.head_scores import Floats
from headprobe.scores.methods import COUNT, MASS

TOLERANCE = 1e-6
UNIFORM_SHARE = 0.95
SATURATED_SHARE = 0.25
LONGEST_ANSWER = 256
_TRIALS_LOOKED_AT = 50
GATE_NAMES = {"f1": "an F1", "rouge1_recall": "a ROUGE-1 recall", "deciding_words": "a share of the deciding words"}


def above_bound(suspect: Suspect) -> Seen:
    """Scores above the largest value of the method."""
    bound = suspect.facts.most
    if bound is None:
        return None
    scores = suspect.scores
    trials = scores.mean[None] if scores.trial_scores is None else scores.trial_scores
    over = trials > bound + TOLERANCE
    if not over.any():
        return None
    heads, count = int(over.any(axis=0).sum()), int(over.any(axis=(1, 2)).sum())
    where = "" if scores.trial_scores is None else f" in {count} of {len(trials)} trials"
    told = "1 head scores" if heads == 1 else f"{heads} heads score"
    return ERROR, f"{told} above {bound:g}{where}, up to {trials.max():.4g}"


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
        told = f"in {counted.count(None)} of {len(counted)} trials the scores are no multiples of 1/N"
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
    Check("saturated-scores", "the best heads cannot be told apart", saturated_scores),
)
