"""Whether work grows with its size and not faster: two sizes against each other, by the CPU's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES = 16  # the larger size in small ones; work that grows with the square takes 256 times as long
MARGIN = 3.0
TRIES = 4


def grows_linearly(work: Callable[[int], object], size: int) -> bool:
    """Whether `work(16 * size)` takes less than 48 times what `work(size)` does; the shortest of up to four tries each.

    A part that grows with the square is found from where it takes 2.5 times the rest at the larger size.
    """
    small = large = float("inf")
    for _ in range(TRIES):
        small, large = min(small, seconds(work, size)), min(large, seconds(work, TIMES * size))
        if large < MARGIN * TIMES * small:
            return True
    return False


def seconds(work: Callable[[int], object], size: int) -> float:
    """Of the CPU: what else the machine does takes part of the clock on the wall."""
    begin = time.process_time()
    work(size)
    return time.process_time() - begin
