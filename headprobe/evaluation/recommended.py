"""What a model recommends for its own compression."""

from __future__ import annotations

from dataclasses import replace

from headprobe.compression.policies import Policy
from headprobe.compression.selectors import Window
from headprobe.models.catalog import recommended_window
from headprobe.models.loading import LoadedModel


def with_recommended_window(
    loaded: LoadedModel, policy: Policy, window: int | None = None, pool: int | None = None
) -> Policy:
    """`policy` with the window and pooling that the model's folder recommends, unless the user gave either.

    Policies without a window, and models that recommend nothing, are left as they are.
    """
    told = recommended_window(loaded.source)
    if told is None or window is not None or pool is not None or not isinstance(policy.selector, Window):
        return policy
    return replace(policy, selector=Window(*told))


def window_note(loaded: LoadedModel, window: int | None = None, pool: int | None = None) -> str | None:
    """In words that recommended values are taken; None where they are not."""
    told = recommended_window(loaded.source)
    if told is None or window is not None or pool is not None:
        return None
    return (
        f"window policies look through the last {told[0]} queries, pooled over {told[1]}, as {loaded.name} recommends"
    )
