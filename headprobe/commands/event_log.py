"""`--log-json FILE`: the events of a run, a JSON object per line, as they happen. `--profile FILE`: what torch did."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from headprobe.commands.output import tell
from headprobe.errors import FileAccessError, OutputExistsError
from headprobe.events import PLAN, SKIP, TRIAL
from headprobe.scores.files import check_place, open_to_add, refuse_dash, write_atomically
from headprobe.stages import Stages

SCHEMA = "headprobe-log/1"
PATIENCE = 0.5  # seconds in which a line that another process is writing becomes whole
FIRST_BYTES = b'{"schema":"' + SCHEMA.encode() + b'"'


class EventLog:
    """A file to which each event is added by a single write, so that several processes can share it.

    Every line has `schema`, `time` (UTC), `run`, `rank`, `seconds` (since the command began) and `event`; lines about a
    trial have `took` (seconds since the one before, or since the plan) and `stages` (the part of it in each stage).
    Where no more can be written, `on_failure` is called once with the reason, and the run goes on without the log.
    """

    def __init__(self, path: Path, stages: Stages, on_failure: Callable[[str], None]) -> None:
        self.path, self._stages, self._on_failure = path, stages, on_failure
        self._run, self._rank = run_of_environment()
        self._since, self._before = 0.0, dict[str, float]()
        self._descriptor: int | None = open_log(path)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write a line."""
        now = self._stages.elapsed
        line: dict[str, Any] = {
            "schema": SCHEMA,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "run": self._run,
            "rank": self._rank,
            "seconds": round(now, 3),
            "event": event,
            **facts,
        }
        if event in (PLAN, TRIAL, SKIP):
            spent = self._stages.record()
            if event != PLAN:
                line |= {"took": round(now - self._since, 3), "stages": _difference(spent, self._before)}
            self._since, self._before = now, spent
        self._write(orjson.dumps(line, default=str) + b"\n")

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            return
        try:
            written = os.write(self._descriptor, line)
            reason = None if written == len(line) else "No space left on device"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason is not None:
            self.close()
            self._on_failure(f"cannot write {self.path}: {reason}; the run goes on without it")

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def open_log(path: Path) -> int:
    """A descriptor that adds to `path`, made where it is missing; a last line that was cut short is ended.

    Raises `OutputExistsError` for a file that is something else, `FileAccessError`, `OptionError` for `-`.
    """
    refuse_dash(path)
    descriptor = open_to_add(path, "--log-json: ")
    begins = os.read(descriptor, len(FIRST_BYTES))
    if not FIRST_BYTES.startswith(begins):
        os.close(descriptor)
        raise OutputExistsError(f"--log-json: {path} exists and is no log of ours: move it away, or name another file")
    if begins and not _is_ended(descriptor):
        os.write(descriptor, b"\n")
    return descriptor


def _is_ended(descriptor: int) -> bool:
    """Whether the file ends with a whole line. One that another process is writing at this moment can be seen in part;
    one that was cut short stays as it is."""
    until = time.monotonic() + PATIENCE
    while True:
        os.lseek(descriptor, -1, os.SEEK_END)
        if os.read(descriptor, 1) == b"\n":
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(PATIENCE / 50)


def run_of_environment() -> tuple[str, int]:
    """The id of this run, twelve hexadecimal digits that all processes of one torchrun share, and this one's rank."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return os.urandom(6).hex(), 0
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    same = "\0".join(os.environ.get(name, "") for name in names)
    return sha256(same.encode()).hexdigest()[:12], int(os.environ.get("RANK", "0"))


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    found = {name: round(after[name] - before.get(name, 0.0), 3) for name in after if name != "total"}
    return {name: seconds for name, seconds in found.items() if seconds}


# `--profile FILE`: what torch did in the first trials of a run, as a trace for Chrome's and Perfetto's viewers.

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
