"""For all tests: no network, one thread, the same chance, and no file written outside the test's own folder."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

MEMORY = Path("/dev/shm")  # a disk takes milliseconds for each file that is synced and each folder that is removed
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))  # pytest's own name for where tests' folders lie
_SESSION = tempfile.TemporaryDirectory(prefix="headprobe-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _SESSION.name
os.environ["HEADPROBE_CACHE"] = str(Path(_SESSION.name) / "cache")
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(_SESSION.name) / "hypothesis")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(_SESSION.name) / "triton"))  # its own is in the home folder

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("alike", derandomize=True)
settings.load_profile("alike")

from tests.fork_server import ForkServer, LoadedProcess, serving  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
REPOSITORY = str(ROOT) + os.sep
PLACES = tuple(os.path.realpath(place) + os.sep for place in (tempfile.gettempdir(), "/dev", "/proc"))
CACHES = ("__pycache__", f"{os.sep}.coverage", f"{os.sep}.pytest_cache", f"{os.sep}matplotlib{os.sep}")


class _Guard:
    """An audit hook cannot be taken away again, so one stays for the session and is switched on for each test."""

    def __init__(self) -> None:
        self.active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & WRITING)
            if writes and isinstance(path, (str, bytes, os.PathLike)):
                self._check(path)
        elif event in CHANGES:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._check(path)

    def _check(self, path: str | bytes | os.PathLike[Any]) -> None:
        full = os.path.realpath(os.fsdecode(path)) + os.sep
        allowed = full.startswith(PLACES) and not full.startswith(REPOSITORY)
        if not allowed and not any(cache in full for cache in CACHES):
            raise PermissionError(f"a test may write to its tmp_path only, not to {full}")


GUARD = _Guard()
sys.addaudithook(GUARD)


@pytest.fixture(autouse=True)
def stay_in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in an empty folder of its own and can write only there (or elsewhere under the system's)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADPROBE_CACHE", str(tmp_path / "cache-of-headprobe"))
    GUARD.active = True
    try:
        yield
    finally:
        GUARD.active = False


@pytest.fixture(autouse=True)
def begin_with_the_same_chance() -> None:
    """What draws from a global generator draws the same, whichever tests ran before."""
    random.seed(0)
    for module, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if module in sys.modules:
            attrgetter(seed)(sys.modules[module])(0)


def heed_interrupts() -> None:
    """In a new process: the background jobs of a shell ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class CliResult:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """Run the command line inside this process: `cli("models", "--json").out`."""

    def run(*arguments: object) -> CliResult:
        from headprobe.cli import main

        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return CliResult(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def loaded_process() -> Iterator[LoadedProcess]:
    """One process that has loaded everything, from which commands are forked: each begins at once."""
    with serving() as process:
        yield process


@pytest.fixture
def server(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, loaded_process: LoadedProcess
) -> Iterator[ForkServer]:
    """Commands in processes of their own, where it does not matter what a new interpreter loads and when."""
    found = ForkServer(loaded_process, tmp_path, tmp_path_factory.mktemp("streams"))
    yield found
    found.clear()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: a collection of garbage in a test need not look through it, which takes 0.3 s."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch has no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
