"""`headprobe` and `python -m headprobe`: the command line, which handles interrupts before anything large is loaded."""

from __future__ import annotations

import sys

from headprobe.commands.interrupts import end_with, heed_interrupts


def run() -> int:
    """Run the command line with the process's own arguments and return the exit code."""
    heeds = heed_interrupts()
    from headprobe.cli import main  # after the line above: an interrupt may come while this is loaded

    code = main()
    return end_with(code) if heeds else code


if __name__ == "__main__":
    sys.exit(run())
