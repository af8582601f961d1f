"""`python -m benchmarks.soak`: 10,000 trials and a session of 200 turns at constant memory.

Scoring the bundled model on short prompts, with the process's resident size after every hundredth trial; then one
session with a policy that evicts while decoding, asked turn after turn. Both count as flat when the resident size stays
within 2 % over the last nine tenths. Trials go to a journal: the same command goes on where a run was stopped, and the
part behind the stop is then measured against its own beginning. Results go to `benchmarks/results/soak-<device>.json`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, write_result
from headprobe.compression.session import compress
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.job import ScoreOptions, Watch, prepare
from headprobe.profiling.preflight import output_paths
from headprobe.profiling.run import run

TRIALS, TURNS = 10_000, 200
LENGTHS, NEEDLES_PER_CELL = (112, 128), 25
EVERY = 100  # trials between two looks at the memory
FLAT = 0.02
POLICY, BUDGET = "h2o", 64
TURN_TOKENS, NEW_TOKENS = 5, 4
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Series:
    """Resident bytes after so many steps (`at`), in one process, and the seconds that they took.

    `spread`: largest less smallest, as a share of the smallest, over the steps behind the first tenth.
    """

    at: tuple[int, ...]
    resident: tuple[int, ...]
    seconds: float

    @property
    def late(self) -> tuple[int, ...]:
        """The sizes behind the first tenth of the steps."""
        first, last = self.at[0], self.at[-1]
        return tuple(size for at, size in zip(self.at, self.resident, strict=True) if at >= first + (last - first) / 10)

    @property
    def spread(self) -> float:
        return max(self.late) / min(self.late) - 1

    def record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "spread": round(self.spread, 5),
            "median_resident": int(statistics.median(self.late)),
            "is_flat": self.spread <= FLAT,
        }


def resident_bytes() -> int:
    """The resident size of this process. Raises `RuntimeError` where the system does not report it (Linux does)."""
    if not STATUS.exists():
        raise RuntimeError(f"{STATUS} is missing: the resident size is read on Linux only")
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


class Watched:
    """Looks at the memory after every `every`-th step."""

    def __init__(self, every: int, tell: Callable[[str], None] = print) -> None:
        self._every, self._steps, self._tell = every, 0, tell
        self._at: list[int] = []
        self._sizes: list[int] = []
        self._began = time.perf_counter()

    def resumed(self, records: Sized) -> None:
        """So many trials were done before."""
        self._steps = len(records)

    def step(self, *_: object) -> None:
        """A trial or turn is done."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._at.append(self._steps)
            self._sizes.append(resident_bytes())
            if len(self._at) % 10 == 0:
                self._tell(f"{self._steps:,} steps, {self._sizes[-1] / 2**20:,.1f} MiB, {self.seconds:.0f} s")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def series(self) -> Series:
        if len(self._at) < 2:
            raise RuntimeError(f"{self._steps} steps are too few to look at the memory, need {2 * self._every}")
        return Series(tuple(self._at), tuple(self._sizes), round(self.seconds, 1))


def soak_trials(loaded: LoadedModel, trials: int, folder: Path, every: int = EVERY) -> tuple[Series, int]:
    """Score on `trials` needles; a stopped run in `folder` goes on. Gives the memory, and how many trials passed."""
    depths = -(-trials // (len(LENGTHS) * NEEDLES_PER_CELL))
    options = ScoreOptions(lengths=LENGTHS, depths=depths, needles_per_cell=NEEDLES_PER_CELL, limit=trials)
    paths = output_paths("demo", ["r2"], folder / f"soak-{trials}.json")
    watched = Watched(every)
    job = prepare(loaded, options)
    watch = Watch(on_trial=watched.step, on_resume=watched.resumed)
    scores = run(loaded, job, paths, resume=True, overwrite=True, watch=watch).scores["r2"]
    return watched.series(), scores.num_passed


def soak_turns(loaded: LoadedModel, turns: int, every: int = 1) -> tuple[Series, int]:
    """One session of so many turns. Gives the memory, and the entries that its cache holds in the end."""
    chance = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    watched = Watched(every)
    said = torch.randint(10, 1000, (1, 2 * BUDGET), generator=chance)
    with compress(loaded, POLICY, budget=BUDGET) as session:
        for _ in range(turns):
            said = session.generate(said, **options)
            watched.step()
            said = torch.cat([said, torch.randint(10, 1000, (1, TURN_TOKENS), generator=chance)], 1)
        assert session.cache is not None
        entries = int(session.cache.lengths.sum())
    return watched.series(), entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "headprobe-soak")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    loaded = load_model("demo", device="cpu", dtype="float32")
    given.folder.mkdir(parents=True, exist_ok=True)
    turns, entries = soak_turns(loaded, given.turns)
    trials, passed = soak_trials(loaded, given.trials, given.folder)
    result = {
        "environment": environment(),
        "what": f"resident bytes of one process; flat: within {FLAT:.0%} over the last nine tenths",
        "trials": {"lengths": LENGTHS, "num_trials": given.trials, "num_passed": passed, **trials.record()},
        "turns": {"policy": POLICY, "budget": BUDGET, "num_turns": given.turns, "entries": entries, **turns.record()},
    }
    for name in ("trials", "turns"):
        print(f"{name}: {result[name]['spread']:.2%} over the last nine tenths")  # type: ignore[index]
    print("written to", write_result("soak", result, given.output))


if __name__ == "__main__":
    main()
