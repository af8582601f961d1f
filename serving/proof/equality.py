"""vLLM with the plug-in against headprobe's `duo`, token by token: `python -m proof.equality MODEL PLAN`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headprobe_vllm.plan import read_plan
from proof.duo import duo_answers, load
from proof.engine import engine, run
from proof.record import add_json, write_record
from proof.texts import prose


def main() -> int:
    """Print a line a prompt; 0 when all tokens are equal."""
    parser = argparse.ArgumentParser(prog="python -m proof.equality", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--lengths", default="100,250,500,1000,1900", help="tokens of the prompts")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens that vLLM reads in one step")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=None, help="of the cache: so few that requests are preempted")
    add_json(parser)
    given = parser.parse_args()
    prompts = prose(given.model, [int(length) for length in given.lengths.split(",")])
    options: dict[str, Any] = {"max_num_batched_tokens": given.chunk, "max_model_len": given.max_model_len}
    if given.blocks is not None:
        options["blocks"] = given.blocks
    with engine(given.model, given.plan, **options) as llm:
        seen = run(llm, prompts, given.new_tokens)
    expected = duo_answers(load(given.model), prompts, read_plan(given.plan), given.new_tokens)
    print(
        f"{seen.most_running} requests at once, steps of at most {given.chunk} tokens, {seen.preemptions} preemptions, "
        f"{seen.most_blocks} blocks in use at most"
    )
    rows = []
    for prompt, ours, theirs in zip(prompts, seen.answers, expected, strict=True):
        equal = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(theirs))
        rows.append({"prompt_tokens": len(prompt), "equal": equal, "of": len(theirs)})
        print(f"prompt of {len(prompt):>5} tokens: {equal} of {len(theirs)} tokens equal")
    seen_too = {"at_once": seen.most_running, "preemptions": seen.preemptions, "most_blocks": seen.most_blocks}
    write_record(given, {"what": "greedy tokens equal to headprobe's duo", **seen_too, "prompts": rows})
    return int(seen.answers != expected)


if __name__ == "__main__":
    raise SystemExit(main())
