"""Commands that begin at once: a process that has loaded everything forks for each, and tests kill the child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Program:
    """What a child runs: a module, as `python -m` would, or code, as `python -c`; and what it finds."""

    module: str | None = "headprobe"
    code: str | None = None
    env: Mapping[str, str] | None = None
    limit: int | None = None  # bytes that no file may exceed


HEADPROBE = Program()


class Child:
    """A running command, with the part of `subprocess.Popen` that tests need; its output goes to files."""

    def __init__(self, loaded: LoadedProcess, pid: int, out: Path, err: Path | None) -> None:
        self._loaded = loaded
        self.pid = pid
        self._out, self._err = out, err
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, less than 0 for a signal; None while it runs."""
        if self.returncode is None:
            self._loaded.first_ended([self], block=False)
        return self.returncode

    def wait(self) -> int:
        """Until it has ended: the exit code."""
        if self.returncode is None:
            self._loaded.first_ended([self])
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has printed on standard output."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has printed on standard error, or on both where they go to one file."""
        return (self._err or self._out).read_text()


class LoadedProcess:
    """The process that forks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **request: Any) -> Any:
        """Send a request, and read its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(line_of(self._process))

    def fork(self, program: Program, arguments: Sequence[str], folder: Path, out: Path, err: Path | None) -> Child:
        """Start a command in `folder` with the environment of now; without `err` both streams go to `out`."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(program.env or {})}
        pid = self.ask(
            do="start", module=program.module if program.code is None else None, code=program.code,
            arguments=list(arguments), folder=str(folder), env=env, out=str(out),
            err=None if err is None else str(err), limit=program.limit,
        )  # fmt: skip
        return Child(self, pid, out, err)

    def first_ended(self, children: Sequence[Child], *, block: bool = True) -> Child | None:
        """The first of `children` to end, with its exit code; None where that is not waited for."""
        found = self.ask(do="wait", pids=[child.pid for child in children], block=block)
        if found is None:
            return None
        (ended,) = (child for child in children if child.pid == found[0])
        ended.returncode = found[1]
        return ended


class ForkServer:
    """Runs commands in `folder`: one after another by `start`, `end` and `run`, or as children by `fork`."""

    def __init__(self, loaded: LoadedProcess, folder: Path, streams: Path) -> None:
        self.loaded = loaded
        self.folder = folder
        self._streams = streams  # a folder of its own, so that `folder` holds what commands write
        self._children: list[Child] = []

    def fork(self, *arguments: str, program: Program = HEADPROBE, folder: Path | None = None) -> Child:
        """A child whose streams are apart."""
        out, err = (self._streams / f"{len(self._children)}.{name}" for name in ("out", "err"))
        return self._keep(self.loaded.fork(program, arguments, folder or self.folder, out, err))

    def start(self, *arguments: str, program: Program = HEADPROBE) -> int:
        """The id of the process that runs the command; what it prints on either stream becomes `printed`."""
        printed = self._streams / f"{len(self._children)}.both"
        return self._keep(self.loaded.fork(program, arguments, self.folder, printed, None)).pid

    def end(self) -> int:
        """How the command that was started last has ended: its exit code, less than 0 for a signal."""
        return self._children[-1].wait()

    def run(self, *arguments: str, program: Program = HEADPROBE) -> int:
        """The exit code of a command that nobody disturbs."""
        self.start(*arguments, program=program)
        return self.end()

    @property
    def printed(self) -> str:
        """What the last command printed."""
        return self._children[-1].err

    def clear(self) -> None:
        """End what a test that failed has left running."""
        for child in self._children:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                child.wait()

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the server has ended"
    return line


@contextmanager
def serving(*before: str) -> Iterator[LoadedProcess]:
    """A process that has loaded everything, started by the command `before` (such as `unshare`)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-m", "tests.loaded_process"]
    with subprocess.Popen(
        command, env=env, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert line_of(process) == "ready\n"
        yield LoadedProcess(process)
        process.communicate()
