"""Needles with the retrieval heads kept against as many random heads kept: `python -m proof.needles MODEL PLAN`."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proof.engine import engine, run
from proof.record import add_json, write_record
from proof.texts import needles


def main() -> None:
    """Print how often the answer was right: all heads full, the plan, random heads."""
    from headprobe.probes.answer import exact_match, rouge1_recall

    parser = argparse.ArgumentParser(prog="python -m proof.needles", description=__doc__)
    parser.add_argument("model", help="as headprobe names it: demo, or a folder")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--length", type=int, default=1900)
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--per-cell", type=int, default=2)
    parser.add_argument("--needles", default="reasoning")
    parser.add_argument("--inner", action="store_true", help="leave the first and the last depth out")
    parser.add_argument("--seeds", type=int, default=3, help="draws of random heads")
    add_json(parser)
    given = parser.parse_args()
    asked, loaded = needles(given.model, given.length, given.depths, given.per_cell, given.needles, inner=given.inner)
    folder, tokenizer = loaded.model.config._name_or_path, loaded.tokenizer
    new_tokens = max(needle.answer_tokens for needle in asked) + 4
    del loaded
    plan = json.loads(given.plan.read_text())
    with tempfile.TemporaryDirectory() as place:
        runs: list[tuple[str, Path | None]] = [("all heads full", None), ("the plan's heads full", given.plan)]
        runs += [(f"random heads full, draw {seed}", _random(plan, seed, Path(place))) for seed in range(given.seeds)]
        rows: list[dict[str, Any]] = []
        for name, path in runs:
            with engine(folder, path) as llm:
                answers = run(llm, [needle.prompt for needle in asked], new_tokens, stop=True).answers
            texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
            row = {
                "heads": name,
                "exact": sum(exact_match(text, needle.answer) for text, needle in zip(texts, asked, strict=True)),
                "of": len(asked),
                "rouge1_recall": _mean(rouge1_recall(text, n.answer) for text, n in zip(texts, asked, strict=True)),
            }
            rows.append(row)
            print(
                f"{name}: {row['exact']} of {row['of']} right, {row['rouge1_recall']:.2f} of the answers' words",
                flush=True,
            )
    write_record(given, {"what": "needles answered in vLLM", "rows": rows})


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 4)


def _random(plan: dict[str, Any], seed: int, folder: Path) -> Path:
    """The plan with as many full heads, drawn anew."""
    layers, heads = len(plan["full_heads"]), plan["model"]["num_key_value_heads"]
    draw = random.Random(seed).sample(range(layers * heads), sum(map(len, plan["full_heads"])))
    chosen = [sorted(number % heads for number in draw if number // heads == layer) for layer in range(layers)]
    path = folder / f"random-{seed}.json"
    path.write_text(json.dumps({**plan, "full_heads": chosen}))
    return path


if __name__ == "__main__":
    main()
