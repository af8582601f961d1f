"""transformers as it is: what differs between the supported releases (5.17 to the newest), and how to keep it quiet."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache as memoized
from typing import Any

from transformers import GenerationMixin, utils

# What differs between the releases of transformers that headprobe supports (5.17 to the newest), in one place.
#
# From 5.24 on a model's forward takes its KV cache as `cache`; before that, and in modelling code that still uses
# the old name, as `past_key_values`.

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


# Keep transformers from writing on the terminal while a model is loaded.


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, no advice and no warnings from transformers inside; as it was before afterwards."""
    logging: Any = utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
