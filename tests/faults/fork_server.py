"""Commands that begin at once: a process that has loaded everything forks for each, and tests kill the child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.conftest import ROOT

SERVER = """
import json, os, sys
from headprobe.commands.interrupts import heed_interrupts
from headprobe.cli import main
import headprobe.commands.score, headprobe.commands.evaluate.needles, headprobe.commands.scores.merge
from headprobe.models.loading import load_model
import headprobe.pictures.needles
load_model("demo", device="cpu", dtype="float32")
print("ready", flush=True)
for line in sys.stdin:
    arguments, printed = json.loads(line)
    child = os.fork()
    if child == 0:
        heed_interrupts()
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        code = main(arguments)
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class ForkServer:
    """Runs commands in `folder`, one after another: `start` gives the process's id, `end` its exit code."""

    def __init__(self, folder: Path) -> None:
        self._printed = folder / "printed.txt"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVER]
        self._server = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, *arguments: str) -> int:
        """The id of the process that runs the command."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([arguments, str(self._printed)]) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """How the command that was started last has ended: its exit code, less than 0 for a signal."""
        return int(self._line())

    def run(self, *arguments: str) -> int:
        """The exit code of a command that nobody disturbs."""
        self.start(*arguments)
        return self.end()

    @property
    def printed(self) -> str:
        """What the last command printed."""
        return self._printed.read_text()

    def _line(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server has ended"
        return line

    def __enter__(self) -> ForkServer:
        assert self._line() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.communicate()
