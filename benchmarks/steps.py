"""Benchmarks that are commands of headprobe: each is printed and run, and continued where it was interrupted."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = (130, 143)


@dataclass(frozen=True)
class Step:
    """A command of headprobe, the files that are there once it is done, and those that it cannot do without.

    `found` says whether its result is in files that were there before.
    """

    arguments: tuple[str, ...]
    results: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    found: Callable[[], bool] | None = None

    @property
    def is_done(self) -> bool:
        """Whether all of it is there."""
        return all(path.exists() for path in self.results) and (self.found is None or self.found())

    @property
    def command(self) -> str:
        """As a user types it."""
        return f"headprobe {shlex.join(self.arguments)}"


def run_all(steps: Iterable[Step]) -> str | None:
    """Run what is not done, in order; in words what failed or was left out, None where all is there.

    A step that fails does not keep the others from running; one that is interrupted ends the program.
    """
    failed = []
    for step in steps:
        missing = [path.name for path in step.needs if not path.exists()]
        if step.is_done:
            continue
        if missing:
            failed.append(f"left out, since {', '.join(missing)} is missing: {step.command}")
            continue
        print(f"\n$ {step.command}", flush=True)
        code = subprocess.run([sys.executable, "-m", "headprobe", *step.arguments], check=False).returncode
        if code in INTERRUPTED:
            sys.exit(code)
        if code:
            failed.append(f"exit code {code}: {step.command}")
    return "\n".join(failed) or None
