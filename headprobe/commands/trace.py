"""`--profile FILE`: what torch did in the first trials of a run, as a trace for Chrome's and Perfetto's viewers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from headprobe.commands.output import tell
from headprobe.errors import FileAccessError, OutputExistsError
from headprobe.events import PLAN, SKIP, TRIAL
from headprobe.scores.files import check_place, write_atomically
from headprobe.stages import Stages

TRACED_TRIALS = 3  # a trial of a long prompt is 100,000 events already


class Trace:
    """Records from the first plan on, until `TRACED_TRIALS` trials are done, and writes the trace then.

    Raises `OutputExistsError` where the file is there and may not be replaced, `FileAccessError`.
    """

    def __init__(self, path: Path, stages: Stages, overwrite: bool) -> None:
        if os.path.lexists(path) and not overwrite:
            raise OutputExistsError(f"--profile: {path} already exists: name another file")
        check_place(path, overwrite=True)
        self.path, self._stages = path, stages
        self._profile: profile | None = None
        self._trials, self._is_over = 0, False

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Begin with the plan, end with the last of the trials."""
        if self._is_over:
            return
        if event == PLAN and self._profile is None:
            self._begin()
        elif event in (TRIAL, SKIP) and self._profile is not None:
            self._trials += 1
            if self._trials == TRACED_TRIALS:
                self.close()

    def _begin(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else its library writes to stderr
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = profile(activities=kinds)
        self._profile.start()
        self._stages.mark = record_function

    def close(self) -> None:
        """Stop recording, and write what there is."""
        if self._is_over or self._profile is None:
            return
        self._is_over = True
        self._stages.mark = None
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="headprobe-") as folder:
            made = Path(folder) / f"trace{''.join(self.path.suffixes[-2:]) or '.json'}"
            self._profile.export_chrome_trace(str(made))
            self._profile = None
            try:
                write_atomically(self.path, made.read_bytes(), overwrite=True)
            except FileAccessError as error:
                tell(f"{error}; the run goes on without a profile")
                return
        tell(f"profile of the first {self._trials} trials written to {self.path}")
