"""`python -m benchmarks.kvpress --kvpress-python PATH`: bytes and times of compressed caches, ours and kvpress's.

kvpress wants a transformers of its own, so each side is a process in its own environment. Both load the same random
Llama from one folder, read the same tokens with the same number of threads, and are measured in turn within one run.
Results go to `benchmarks/results/kvpress-cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, write_result

ROOT = Path(__file__).resolve().parent.parent
OURS, THEIRS = "headprobe", "kvpress"
POLICIES = ((THEIRS, "snapkv"), (OURS, "snapkv"), (OURS, "headkv-r2"), (THEIRS, "adakv"), (OURS, "ada-snapkv"))
WINDOW, POOL = 8, 7  # of SnapKV, on both sides
LARGEST_DIFFERENCE = 1e-3  # of logits that both sides should agree on
VOCABULARY = 2048
SHAPES = {
    "100m": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 14, "num_attention_heads": 12,
             "num_key_value_heads": 4, "head_dim": 64},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 32},
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A policy on one side, None for the model as it is. `ratio`: the share of the prompt evicted, as in kvpress."""

    side: str
    policy: str | None
    ratio: float = 0.0

    @property
    def name(self) -> str:
        """For the table: `kvpress snapkv 0.9`."""
        return f"{self.side} {self.policy} {self.ratio}" if self.policy else f"{self.side} uncompressed"


def contenders(ratios: list[float]) -> list[Contender]:
    """Both sides uncompressed, then all policies at each ratio."""
    plain = [Contender(THEIRS, None), Contender(OURS, None)]
    return plain + [Contender(side, policy, ratio) for ratio in ratios for side, policy in POLICIES]


def kept_entries(prompt: int, ratio: float) -> int:
    """Entries per KV head that kvpress keeps of a prompt, by its own rounding.

    >>> kept_entries(4096, 0.9), kept_entries(4096, 0.9375)
    (409, 256)
    """
    return max(1, int(prompt * (1 - ratio)))


# -- the two sides --------------------------------------------------------------------------------------------------


class Worker:
    """A process of `benchmarks.kvpress_worker`."""

    def __init__(self, command: list[str], threads: int) -> None:
        mine = {
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **mine}
        )
        self.versions = self._answer()

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have `request` measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {' '.join(map(str, self._process.args))} ended without an answer")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        """End the process: it stops when nothing more can come."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


@contextmanager
def workers(kvpress_python: str, folder: Path, threads: int, seed: int) -> Iterator[dict[str, Worker]]:
    """Both sides. kvpress's python runs isolated (-I), so that this repository cannot be imported there."""
    script = str(ROOT / "benchmarks" / "kvpress_worker.py")
    commands = {
        THEIRS: [kvpress_python, "-I", script, THEIRS, str(folder), str(seed)],
        OURS: [sys.executable, "-m", "benchmarks.kvpress_worker", OURS, str(folder), str(seed)],
    }
    with ExitStack() as stack:
        running = {}
        for side, command in commands.items():
            running[side] = Worker(command, threads)
            stack.callback(running[side].close)
        yield running


def write_model(folder: Path, shape: str, positions: int, seed: int) -> int:
    """Write a random Llama (safetensors and config.json) to `folder`; its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=positions, **dict[str, Any](SHAPES[shape]))
    ).float()
    model.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def random_tokens(count: int, seed: int) -> list[int]:
    """Token ids, the same on both sides."""
    import random

    chosen = random.Random(seed)
    return [chosen.randrange(3, VOCABULARY) for _ in range(count)]


# -- measuring ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is asked of both sides."""

    prompt: int
    decode: int
    tokens: list[int]

    def request(self, contender: Contender, **changes: Any) -> dict[str, Any]:
        """A worker's request for one measurement of `contender`."""
        entries = kept_entries(changes.get("prompt", self.prompt), contender.ratio)
        return {**asdict(self), "entries": entries, "window": WINDOW, "pool": POOL, **asdict(contender), **changes}


def check(sides: dict[str, Worker], setup: Setup) -> dict[str, float]:
    """Largest differences of the two sides' logits where they must agree; `RuntimeError` if they don't.

    That is: the model as it is, and SnapKV without pooling (kvpress pools by the mean, ours by the maximum). Also warms
    both sides up.
    """
    short = {"prompt": min(512, setup.prompt), "decode": 8, "pool": 1, "logits": True}
    found = {}
    for policy, ratio in ((None, 0.0), ("snapkv", 0.75)):
        logits = [
            sides[side].measure(setup.request(Contender(side, policy, ratio), **short))["logits"] for side in sides
        ]
        found[policy or "uncompressed"] = max(abs(a - b) for a, b in zip(*logits, strict=True))
    if max(found.values()) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the two sides' logits differ by {found}: their times cannot be compared")
    return found


def play(sides: dict[str, Worker], setup: Setup, field: list[Contender], rounds: int) -> Iterator[dict[str, list[Any]]]:
    """Measure all contenders in turn, each round in the opposite order of the one before; all so far, by name."""
    found: dict[str, list[Any]] = {contender.name: [] for contender in field}
    for number in range(rounds):
        for contender in field if number % 2 == 0 else reversed(field):
            measured = sides[contender.side].measure(setup.request(contender))
            found[contender.name].append(measured)
            print(
                f"round {number + 1}  {contender.name:28}  prefill {measured['prefill_s']:.2f} s  "
                f"decode {measured['decode_s_per_token'] * 1e3:.1f} ms", file=sys.stderr, flush=True,
            )  # fmt: skip
        yield found


def summary(field: list[Contender], found: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One row a contender: bytes and entries (the same in each round), medians, and ratios to kvpress's SnapKV.

    Ratios are medians over the rounds' own ratios, at the same number of entries; the model as it is has none.
    """
    rows = []
    for contender in field:
        mine = found[contender.name]
        row: dict[str, Any] = asdict(contender)
        row |= {name: mine[0][name] for name in mine[0] if name.startswith(("entries", "end", "kv", "other"))}
        row |= {name: _median(mine, name) for name in mine[0] if name.startswith(("prefill", "decode"))}
        if contender.policy:
            other = found[Contender(THEIRS, "snapkv", contender.ratio).name]
            for name in ("prefill_s", "decode_s_per_token", "decode_fastest_step_s"):
                ratios = [a[name] / b[name] for a, b in zip(mine, other, strict=True)]
                row[f"{name}_over_kvpress_snapkv"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def _median(measured: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(one[name] for one in measured), 6)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows to read."""
    head = ("", "entries held", "seen", "KV MiB", "+ other", "prefill s", "decode ms", "/ kvpress snapkv")
    lines = ["{:28} {:>12} {:>9} {:>8} {:>8} {:>10} {:>10} {:>17}".format(*head)]
    for row in rows:
        name = Contender(row["side"], row["policy"], row["ratio"]).name
        ratio = row.get("decode_s_per_token_over_kvpress_snapkv", "")
        lines.append(
            f"{name:28} {row['entries_held']:>12} {row['entries_seen']:>9} {row['kv_bytes'] / 2**20:>8.2f} "
            f"{row['other_bytes'] / 2**20:>8.2f} {row['prefill_s']:>10.2f} {row['decode_s_per_token'] * 1e3:>10.2f} "
            f"{ratio:>17}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kvpress-python", required=True, help="python of an environment that has kvpress")
    parser.add_argument(
        "--ratio", type=float, nargs="+", default=[0.9, 0.9375], help="share of the prompt that is evicted"
    )
    parser.add_argument("--prompt", type=int, default=4096, help="tokens")
    parser.add_argument("--decode", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", choices=SHAPES, default="100m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "kvpress-cpu.json")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    """Measure, print, and write after each round what is known so far."""
    setup = Setup(options.prompt, options.decode, random_tokens(options.prompt + options.decode, options.seed))
    field = contenders(options.ratio)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headprobe-kvpress-")))
        parameters = write_model(folder, options.model, options.prompt + options.decode, options.seed)
        sides = stack.enter_context(workers(options.kvpress_python, folder, options.threads, options.seed))
        result: dict[str, Any] = {
            "environment": {**environment(), "threads": options.threads},
            "sides": {side: worker.versions for side, worker in sides.items()},
            "model": {"parameters": parameters, "dtype": "float32", "seed": options.seed, **SHAPES[options.model]},
            "setup": {"prompt": setup.prompt, "decode": setup.decode, "window": WINDOW, "pool": POOL},
            "largest_difference_of_logits": check(sides, setup),
        }
        for found in play(sides, setup, field, options.rounds):
            result |= {"summary": summary(field, found), "rounds": found}
            write_result("kvpress", result, options.output)
    print(table(result["summary"]))


if __name__ == "__main__":
    main()
