"""The same bytes of KV cache, with all heads alike and by a plan: `python -m proof.capacity MODEL PLAN`.

What fits, what was held, and how long the same requests took.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from proof.engine import Seen, engine, managers, run
from proof.record import add_json, write_record
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
    add_json(parser)
    given = parser.parse_args()
    prompts = prose(given.model, [given.length] * given.requests)
    options: dict[str, Any] = {
        "cache_bytes": given.mib * 2**20, "max_num_seqs": given.requests, "max_num_batched_tokens": given.chunk,
        "max_model_len": given.length + given.new_tokens,
    }  # fmt: skip
    print(f"{given.requests} requests of {given.length} + {given.new_tokens} tokens, {given.mib} MiB of KV cache")
    seen, rows = {}, {}
    for name, plan in (("all heads alike", None), ("plan", given.plan)):
        with engine(given.model, plan, **options) as llm:
            run(llm, [prompts[0][:64]], 2)  # warm
            llm.reset_prefix_cache()
            seen[name] = run(llm, prompts, given.new_tokens)
            rows[name] = _row(seen[name], llm, given)
            _print(name, rows[name])
    alike, planned = seen.values()
    ratios = {
        "tokens_at_once": planned.most_tokens / alike.most_tokens,
        "requests_at_once": planned.most_running / alike.most_running,
        "throughput_cpu": alike.seconds / planned.seconds,
    }
    print(
        f"ratios: {ratios['tokens_at_once']:.2f} times the tokens, {ratios['requests_at_once']:.2f} times the requests "
        f"at once, {ratios['throughput_cpu']:.2f} times the throughput (CPU)"
    )
    write_record(given, {"what": "the same cache, all heads alike and by the plan", "ratios": ratios, "runs": rows})


def _row(seen: Seen, llm: Any, given: argparse.Namespace) -> dict[str, Any]:
    """What is printed of a run, and its steps: requests, their tokens, blocks of each cache."""
    new = given.requests * given.new_tokens
    return {
        "requests_at_once": seen.most_running,
        "tokens_at_once": seen.most_tokens,
        "blocks": managers(llm)[0].block_pool.num_gpu_blocks - 1,
        "block_sizes": [manager.block_size for manager in managers(llm)],
        "most_blocks": seen.most_blocks,
        "preemptions": seen.preemptions,
        "seconds": round(seen.seconds, 1),
        "new_tokens_per_second": round(new / seen.seconds, 2),
        "steps": " ".join(
            f"{running}:{tokens}:{'+'.join(map(str, held))}"
            for running, tokens, held in zip(seen.running, seen.tokens, seen.held, strict=True)
        ),
    }


def _print(name: str, row: dict[str, Any]) -> None:
    print(
        f"{name}: {row['requests_at_once']} requests and {row['tokens_at_once']:,} tokens at once, "
        f"{row['most_blocks']} of {row['blocks']} blocks in use at most, {row['preemptions']} preemptions, "
        f"{row['seconds']:.1f} s, {row['new_tokens_per_second']:.1f} new tokens/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
