"""Whether the trials of a file carry its ranking."""

from __future__ import annotations

import numpy as np

from headprobe.scores.checks.finding import ERROR, INFO, WARNING, Check, Seen, Suspect
from headprobe.scores.distinct_trials import DistinctTrials
from headprobe.scores.ranks import top_k_weights
from headprobe.scores.uncertainty import ClusteredTrials

TOP = 10
STABLE_SHARE = 0.9
LEAST_CLUSTERS = 5
LOW_PASS_RATE = 0.5
_RESAMPLES = 200


def no_trials(suspect: Suspect) -> Seen:
    """The file holds means only."""
    if suspect.scores.trial_scores is not None or suspect.scores.is_ranking:
        return None
    return INFO, "no scores of single trials: how sure the ranking is cannot be told"


def zero_trials(suspect: Suspect) -> Seen:
    """Trials in which every head scores 0."""
    trials = suspect.scores.trial_scores
    if trials is None:
        return None
    zero = np.flatnonzero(~trials.any(axis=(1, 2)))
    if not len(zero):
        return None
    detail = f"{len(zero)} of {len(trials)} trials are zero in every head, the first is trial {zero[0] + 1}"
    return ERROR if 2 * len(zero) > len(trials) else WARNING, detail


def duplicate_trials(suspect: Suspect) -> Seen:
    """Trials that are one measurement told several times."""
    trials = suspect.scores.trial_scores
    if trials is None:
        return None
    found = DistinctTrials.of(trials)
    if found.number == len(trials):
        return None
    first, last = found.longest_run
    run = f"; trials {first + 1} to {last + 1} are one and the same" if last > first else ""
    detail = f"{found.number} of {len(trials)} trials are distinct, worth {found.effective:.1f} equal ones{run}"
    return ERROR if 2 * found.number <= len(trials) else WARNING, detail


def too_few_trials(suspect: Suspect) -> Seen:
    """The top heads change when the trials are drawn anew."""
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
            f"{clusters}: too few to tell how far the top {top} heads would change; {LEAST_CLUSTERS} would do",
        )
    kept = _kept(drawn, top)
    if kept >= STABLE_SHARE * top:
        return None
    detail = f"of the top {top} heads {kept:.1f} come back on average when {clusters} are drawn anew"
    return WARNING, f"{detail} ({_RESAMPLES} times); {STABLE_SHARE * top:g} are needed"


def low_pass_rate(suspect: Suspect) -> Seen:
    """The model answered few of its trials."""
    native = suspect.scores.native
    if native is None or native.num_passed >= LOW_PASS_RATE * native.num_trials:
        return None
    return WARNING, f"{native.num_passed} of {native.num_trials} trials passed"


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
    Check("zero-trials", "the needle was not found in them; they pull every mean down", zero_trials, "trials"),
    Check(
        "duplicate-trials",
        "fewer measurements than it looks; the repeated prompt weighs most",
        duplicate_trials,
        "trials",
    ),
    Check("too-few-trials", "other trials would rank other heads first", too_few_trials, "trials"),
    Check("low-pass-rate", "what a model attends to when it fails is no retrieval", low_pass_rate, "native"),
    Check("uneven-coverage", "the scores say nothing about these", uneven_coverage, "native"),
)
