"""What differs between the releases of transformers that headprobe supports (5.17 to the newest), in one place.

From 5.24 on a model's forward takes its KV cache as `cache`; before that, and in modelling code that still uses the old
name, as `past_key_values`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache as memoized
from typing import Any

from transformers import GenerationMixin

CACHE_NAMES = ("cache", "past_key_values")  # newest first


@memoized
def cache_argument(function: Callable[..., Any]) -> str:
    """The name under which `function` takes a KV cache.

    >>> cache_argument(lambda input_ids, past_key_values=None: None)
    'past_key_values'
    """
    return CACHE_NAMES[0] if CACHE_NAMES[0] in inspect.signature(function).parameters else CACHE_NAMES[1]


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The keyword argument that hands `cache` to `model`: `model(input_ids=ids, **with_cache(model, cache))`."""
    return {cache_argument(type(model).forward): cache}


def generating_with(cache: Any) -> dict[str, Any]:
    """The keyword argument that hands `cache` to `model.generate`."""
    return {cache_argument(GenerationMixin.prepare_inputs_for_generation): cache}


def given_cache(named: Mapping[str, Any]) -> Any:
    """The KV cache among the keyword arguments of a call, under whichever name; None where there is none."""
    return next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The KV cache that a model's output carries."""
    return given_cache(output)
