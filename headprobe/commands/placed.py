"""Where a command's model lies, as its options say: refused early, and the processes of torchrun brought together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headprobe.models.loading import PlacementOptions
from headprobe.models.placement import Placement, processes
from headprobe.profiling.ranks import Ranks


@contextmanager
def placed(ranks: Ranks | None, placement: PlacementOptions) -> Iterator[None]:
    """Inside, a model can be loaded so. Raises `OptionError`, before anything else is done, for what cannot be."""
    how = Placement(**placement)
    if ranks is not None:
        ranks.refuse_device_map(how.device_map)
    if not how.tensor_parallel:
        yield
        return
    if ranks is None:
        processes()  # which says how to start several
    assert ranks is not None
    with ranks.sharing_heads():
        yield
