"""Parts run in a child process, which is ended when one of them takes too long; the rest then goes on in a new one.

A kernel that hangs a device hangs its whole process, and nothing inside can end it. All parts share a child as long as
nothing goes wrong, since each new one imports torch and makes the model anew. The child says on stdout where it is.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from benchmarks.environment import RESULTS
from benchmarks.gpu.record import Record, say

BEGINS = "begins "
START_S = 90.0  # importing torch, and the model
GENEROUS = 3.0  # times what a part is expected to take


@dataclass(frozen=True)
class Part:
    """A module of `benchmarks.gpu.parts`; `seconds` that it is expected to take in full size on a GPU."""

    name: str
    seconds: float

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return START_S + GENEROUS * self.seconds


def supervise(
    parts: Sequence[Part], command: Sequence[str], record: Record, seconds: float, *, limited: bool = True
) -> None:
    """Run `parts` in children started by `command`, to which `--only NAME,... --seconds N` is added.

    `record` is read anew from its file after a child has ended, since the child writes it too. `limited`: whether a
    part is ended after its limit, which is made for a GPU.
    """
    deadline, left = time.monotonic() + seconds, list(parts)
    while left:
        remaining = deadline - time.monotonic()
        ended = _child(
            [*command, "--only", ",".join(part.name for part in left), "--seconds", f"{remaining:.0f}"], left, limited
        )
        record.reload()
        if ended is None:
            return
        record.end(ended.part.name, "failed", error=ended.reason)
        say(f"{ended.part.name}: {ended.reason}")
        left = left[left.index(ended.part) + 1 :]


@dataclass(frozen=True)
class Ended:
    """Where a child ended before its time, and why."""

    part: Part
    reason: str


def _child(command: Sequence[str], parts: Sequence[Part], limited: bool) -> Ended | None:
    """One child for `parts`; None if it got to its end."""
    by_name = {part.name: part for part in parts}
    at, began = parts[0], time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=RESULTS.parents[1]) as process:
        lines: Queue[str] = Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        while process.poll() is None or not lines.empty():
            try:
                line = lines.get(timeout=0.2)
            except Empty:
                if limited and time.monotonic() - began > at.limit:
                    process.kill()
                    process.wait()
                    return Ended(at, f"ended after its limit of {at.limit:.0f} s")
                continue
            name = line.removeprefix(BEGINS).strip()
            if line.startswith(BEGINS) and name in by_name:
                at, began = by_name[name], time.monotonic()
    return None if process.returncode == 0 else Ended(at, f"its process ended with {process.returncode}")


def _read(process: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)


def child_command(device: str, shape: str, out: Path, real_model: str | None) -> list[str]:
    """How a child is started."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--child",
        "--device",
        device,
        "--shape",
        shape,
        "--out",
        str(out),
    ]
    return command + ([] if real_model is None else ["--real-model", real_model])
