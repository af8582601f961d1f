"""For tests of faults: one process that has loaded everything, from which each command is forked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer, serving


@pytest.fixture(scope="session")
def loaded_process() -> Iterator[subprocess.Popen[str]]:
    with serving() as process:
        yield process


@pytest.fixture
def server(tmp_path: Path, loaded_process: subprocess.Popen[str]) -> Iterator[ForkServer]:
    found = ForkServer(loaded_process, tmp_path)
    yield found
    found.clear()
