"""`headprobe` and `python -m headprobe`: the command line, with nothing before it that an interrupt could catch."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line with the process's own arguments and return the exit code."""
    from headprobe.commands import interrupts

    heeds = interrupts.heed_at_once()
    try:
        from headprobe.cli import main

        if heeds:
            interrupts.heed_in_order()
        code = main()
    except KeyboardInterrupt:  # between two of these lines
        print(interrupts.LINE, file=sys.stderr)
        code = interrupts.INTERRUPTED
    if heeds:
        interrupts.heed_no_more()
    return code


if __name__ == "__main__":
    sys.exit(run())
