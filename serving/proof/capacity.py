"""The same bytes of KV cache, with all heads alike and by a plan: `python -m proof.capacity MODEL PLAN`.

What fits, what was held, and how long the same requests took.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from proof.engine import Seen, engine, managers, run
from proof.texts import prose


def main() -> None:
    """Print both runs and their ratios."""
    parser = argparse.ArgumentParser(prog="python -m proof.capacity", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--length", type=int, default=1900, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--mib", type=int, default=48, help="of KV cache")
    parser.add_argument("--chunk", type=int, default=2048)
    given = parser.parse_args()
    prompts = prose(given.model, [given.length] * given.requests)
    options: dict[str, Any] = {
        "cache_bytes": given.mib * 2**20, "max_num_seqs": given.requests, "max_num_batched_tokens": given.chunk,
        "max_model_len": given.length + given.new_tokens,
    }  # fmt: skip
    print(f"{given.requests} requests of {given.length} + {given.new_tokens} tokens, {given.mib} MiB of KV cache")
    seen = {}
    for name, plan in (("all heads alike", None), ("plan", given.plan)):
        with engine(given.model, plan, **options) as llm:
            run(llm, prompts[:1], 2)  # warm
            seen[name] = run(llm, prompts, given.new_tokens)
            _print(name, seen[name], llm, given)
    alike, planned = seen.values()
    print(
        f"ratios: {planned.most_running / alike.most_running:.2f} times the requests at once, "
        f"{alike.seconds / planned.seconds:.2f} times the throughput (CPU)"
    )


def _print(name: str, seen: Seen, llm: Any, given: argparse.Namespace) -> None:
    blocks = managers(llm)[0].block_pool.num_gpu_blocks
    new = given.requests * given.new_tokens
    print(
        f"{name}: {seen.most_running} requests at once, {seen.most_blocks} of {blocks - 1} blocks in use at most, "
        f"{seen.preemptions} preemptions, {seen.seconds:.1f} s, {new / seen.seconds:.1f} new tokens/s"
    )


if __name__ == "__main__":
    main()
