"""A rank of torchrun's that something happens to: `python -m tests.faults.rank FAULT RANK command ...`.

`dies`: killed at its second trial; `full`: no memory for any trial; `others`: reads `RANK.jsonl` in place of
`needles.jsonl`, as if that had been changed between the beginnings of two ranks.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import torch

from headprobe.__main__ import run
from headprobe.events import TRIAL, listening


def die_at_second(event: str, facts: Mapping[str, Any], seen: list[str] = []) -> None:  # noqa: B006 - counts
    if event == TRIAL:
        seen.append(facts["trial"])
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def main() -> int:
    fault, rank, *command = sys.argv[1:]
    sys.argv = ["headprobe", *command]
    if os.environ["RANK"] != rank:
        return run()
    if fault == "dies":
        with listening(die_at_second):
            return run()
    if fault == "full":
        from headprobe.profiling.profiler import Profiler

        Profiler._trial = full  # type: ignore[method-assign, assignment]
    if fault == "others":
        sys.argv = [word.replace("needles.jsonl", f"{rank}.jsonl") for word in sys.argv]
    return run()


if __name__ == "__main__":
    sys.exit(main())
