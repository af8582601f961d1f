"""What a model recommends for its own compression."""

from __future__ import annotations

from dataclasses import replace

from headprobe.compression.policies import Policy
from headprobe.compression.selectors import Window
from headprobe.models.catalog import recommended_pool
from headprobe.models.loading import LoadedModel


def with_recommended_pool(loaded: LoadedModel, policy: Policy, pool: int | None = None) -> Policy:
    """`policy` with the width of pooling that the model's folder recommends, unless `pool` was given by the user.

    Policies that don't pool, and models that recommend nothing, are left as they are.
    """
    if pool is not None or not isinstance(policy.selector, Window):
        return policy
    width = recommended_pool(loaded.source)
    return policy if width is None else replace(policy, selector=replace(policy.selector, pool=width))


def pool_note(loaded: LoadedModel, pool: int | None) -> str | None:
    """In words that a recommended width is taken; None where it is not."""
    width = None if pool is not None else recommended_pool(loaded.source)
    return None if width is None else f"importance is pooled over {width} neighbours, as {loaded.name} recommends"
