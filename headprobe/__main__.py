"""`python -m headprobe`: the command line."""

from __future__ import annotations

import sys

from headprobe.cli import main

sys.exit(main())
