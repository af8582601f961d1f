"""Several processes of one run on this machine: by torchrun itself, or forked with all that torchrun tells them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from tests.fork_server import ROOT, Child, ForkServer, Program


@dataclass(frozen=True)
class Ended:
    """How the run ended, and what its processes printed, those of one rank after those of another."""

    returncode: int
    stdout: str
    stderr: str


def torchrun(folder: Path, *arguments: object, module: str = "headprobe", ranks: int = 2) -> Ended:
    """Processes that torchrun starts, each of which loads everything: seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*command, "-m", module, *map(str, arguments)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def forked_ranks(server: ForkServer, *arguments: object, module: str = "headprobe", ranks: int = 2) -> Ended:
    """The same from the process that has loaded everything: with torchrun's variables, its store, and its end."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
    told = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": f"forked-{store.port}", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    started = [
        server.fork(*map(str, arguments), program=Program(module, env=told | {"RANK": str(k), "LOCAL_RANK": str(k)}))
        for k in range(ranks)
    ]
    code = _end(server, started)
    return Ended(code, *("".join(getattr(child, name) for child in started) for name in ("out", "err")))


def _end(server: ForkServer, started: list[Child]) -> int:
    """Like torchrun: once one has failed the others are told to end, and the run has failed."""
    running, code = list(started), 0
    while running:
        ended = server.loaded.first_ended(running)
        assert ended is not None
        running.remove(ended)
        if ended.returncode and not code:
            code = 1
            time.sleep(0.1)  # which is how often torchrun looks
            for child in running:
                child.send_signal(signal.SIGTERM)
            running = [child for child in running if child.poll() is None]
    return code
