"""The methods that score heads, by name. A family of them is one file here; what they share is in `estimator.py`.

To add one, write its class into a file here and name it below; another package names its own in the group
`headprobe.estimators`. This module imports nothing heavy, so that help texts can list the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headprobe.errors import OptionError
from headprobe.registry import LatePart, Registry

if TYPE_CHECKING:
    from headprobe.profiling.estimators.estimator import Estimator

DEFAULT_METHOD = "r2"
ESTIMATORS: Registry[Estimator] = Registry(
    "headprobe.estimators",
    "method",
    {
        "r2": LatePart("headprobe.profiling.estimators.mass:R2_MASS"),
        "retrieval": LatePart("headprobe.profiling.estimators.hits:RETRIEVAL"),
        "enhanced": LatePart("headprobe.profiling.estimators.mass:ENHANCED"),
        "contrast": LatePart("headprobe.profiling.estimators.mass:CONTRAST"),
        "value": LatePart("headprobe.profiling.estimators.mass:VALUE"),
        "mass": LatePart("headprobe.profiling.estimators.mass:WHOLE_MASS"),
        "qr": LatePart("headprobe.profiling.estimators.question:QUESTION_ROWS"),
        "logit": LatePart("headprobe.profiling.estimators.logit:LOGIT"),
        "reconstruction": LatePart("headprobe.profiling.estimators.copies:RECONSTRUCTION"),
        "induction": LatePart("headprobe.profiling.estimators.copies:INDUCTION"),
        "echo": LatePart("headprobe.profiling.estimators.copies:ECHO"),
    },
    LatePart("headprobe.profiling.estimators.estimator:Estimator"),
)


def estimators(names: str | Sequence[str]) -> tuple[Estimator, ...]:
    """The estimators called `names` (a sequence or comma-separated), in that order, each once.

    Raises `OptionError` for a name that does not exist.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    listed = list(dict.fromkeys(n.strip() for n in listed if n.strip()))
    unknown = [n for n in listed if n not in ESTIMATORS]
    if unknown or not listed:
        raise OptionError(
            f"unknown method {', '.join(map(repr, unknown)) or repr('')}: choose from {', '.join(ESTIMATORS)}"
        )
    return tuple(ESTIMATORS[n] for n in listed)
