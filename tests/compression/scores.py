"""Random head scores for a model of a given geometry."""

from __future__ import annotations

import numpy as np

from headprobe.geometry import ModelGeometry
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance


def random_scores(geometry: ModelGeometry, seed: int = 0) -> HeadScores:
    """One passing trial of random, uneven scores."""
    table = np.random.default_rng(seed).gamma(0.3, size=geometry.shape)
    trial = Trial("t", "n", 64, 0.0, True, 1.0, "", 1, table)
    return HeadScores(geometry, Method("r2", "", 1, {}), (trial,), Provenance(ModelIdentity("random")))
