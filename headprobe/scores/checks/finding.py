"""What a check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.methods import METHODS, MethodFacts

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
