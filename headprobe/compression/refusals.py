"""What transformers' caches can do and a compressed one cannot, refused in one place."""

from __future__ import annotations

from typing import Any, NoReturn

from headprobe.errors import OptionError


class Refusals:
    """Methods of a cache, or of one of its layers, that a compressed cache has no answer for; before their base."""

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless nothing is to be removed."""
        if tokens_to_remove:
            refuse("crop (assisted decoding takes tokens back)")

    def reorder_cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("beam search")

    def offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("offloading")

    def batch_repeat_interleave(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("repeating sequences of the batch")

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("selecting sequences of the batch")


def refuse(what: str) -> NoReturn:
    """Raise `OptionError`: a compressed cache cannot do `what`."""
    raise OptionError(f"a compressed cache does not support {what}: entries that were evicted are gone")
