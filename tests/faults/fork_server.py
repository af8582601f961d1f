"""Commands that begin at once: a process that has loaded everything forks for each, and tests kill the child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import ROOT

SERVER = """
import json, os, resource, sys
from headprobe.commands.interrupts import heed_interrupts
from headprobe.cli import main
import headprobe.commands.score, headprobe.commands.evaluate.needles, headprobe.commands.scores.merge
import headprobe.commands.tune
from headprobe.models.loading import load_model
import headprobe.pictures.needles
load_model("demo", device="cpu", dtype="float32")
print("ready", flush=True)
for line in sys.stdin:
    arguments, folder, printed, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ["HEADPROBE_CACHE"] = os.path.join(folder, "cache-of-headprobe")
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(descriptor, number)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        heed_interrupts()
        code = main(arguments)
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class ForkServer:
    """Runs commands in `folder`, one after another: `start` gives the process's id, `end` its exit code."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._printed = folder / "printed.txt"
        self._running: int | None = None

    def start(self, *arguments: str, limit: int | None = None) -> int:
        """The id of the process that runs the command; `limit`: bytes that no file may exceed."""
        assert self._server.stdin is not None
        asked = [arguments, str(self._folder), str(self._printed), limit]
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        self._running = int(_line(self._server))
        return self._running

    def end(self) -> int:
        """How the command that was started last has ended: its exit code, less than 0 for a signal."""
        code = int(_line(self._server))
        self._running = None
        return code

    def run(self, *arguments: str, limit: int | None = None) -> int:
        """The exit code of a command that nobody disturbs."""
        self.start(*arguments, limit=limit)
        return self.end()

    @property
    def printed(self) -> str:
        """What the last command printed."""
        return self._printed.read_text()

    def clear(self) -> None:
        """End what a test that failed has left running."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
            self.end()


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, "the server has ended"
    return line


@contextmanager
def serving() -> Iterator[subprocess.Popen[str]]:
    """A process that has loaded everything."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert _line(server) == "ready\n"
        yield server
        server.communicate()
