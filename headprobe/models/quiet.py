"""Keep transformers and the hub from writing on the terminal while a model is loaded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, no advice and no warnings from transformers inside; as it was before afterwards."""
    from transformers import utils

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


@contextmanager
def quiet_downloads() -> Iterator[None]:
    """No warnings from the hub client inside, and its progress bars only on a terminal."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    logging = utils.logging
    level, hide = logging.get_verbosity(), not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if hide:
            utils.enable_progress_bars()
