"""What `headprobe compress` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headprobe.commands.output import print_table, printable, stdout_console, write_json
from headprobe.compression.budgets import Ints
from headprobe.evaluation.compressed_answers import CompressedAnswer
from headprobe.evaluation.questions import Question
from headprobe.pictures.budget_map import print_budget_map
from headprobe.pictures.wording import told_bytes

COLUMNS = (
    "policy", "budget", "right", "entries", "KV cache", "of full", "peak memory", "first token", "tokens/s", "answer",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeptEntries:
    """Entries that each KV head kept, `[layers, G]`, as `print_budget_map` shows them."""

    layers: tuple[int, ...]
    capacity: Ints


def print_answers(model: str, question: Question, answers: Sequence[CompressedAnswer], as_json: bool) -> None:
    """Print all answers; the first policy's entries head by head."""
    if as_json:
        records = [answer_record(model, question, answer) for answer in answers]
        write_json(records[0] if len(records) == 1 else records)
        return
    console, first = stdout_console(), answers[0]
    tokens = len(question.input_ids)
    console.print(f"{model} | {question.source} | {tokens:,} tokens", soft_wrap=True, markup=False)
    if question.needle is not None:
        console.print(f"question: {question.needle.question}", soft_wrap=True, markup=False)
        console.print(f"expected: {question.needle.answer}", soft_wrap=True, markup=False)
    console.print(f"answer:   {printable(first.answer)}{_verdict(first)}\n", soft_wrap=True, markup=False)
    if not first.policy.keeps_all:
        mean = first.generation.kv_entries / sum(len(layer) for layer in first.generation.lengths)
        console.print(
            f"entries kept by each KV head under {first.policy.name}, {mean:,.0f} on average:", soft_wrap=True,
            markup=False,
        )  # fmt: skip
        print_budget_map(KeptEntries(first.layers, np.array(first.generation.lengths)), console)
        console.print()
    print_table(COLUMNS, [_row(answer) for answer in answers], right=COLUMNS[1:9])


def answer_record(model: str, question: Question, answer: CompressedAnswer) -> dict[str, Any]:
    """One policy's answer as `--json` prints it; what is not known is null."""
    given = answer.generation
    return {
        "model": model,
        "policy": answer.policy.name,
        "budget": answer.budget,
        "prompt": question.source,
        "prompt_tokens": given.prompt_tokens,
        "answer": answer.answer,
        "expected": question.expected,
        "correct": answer.correct,
        "f1": answer.f1,
        "kv_entries": given.kv_entries,
        "kv_bytes": given.kv_bytes,
        "full_kv_bytes": given.full_kv_bytes,
        "peak_bytes": given.peak_bytes,
        "ttft_s": given.ttft_s,
        "tokens_per_s": given.tokens_per_s,
        "new_tokens": len(given.tokens),
        "layers": list(answer.layers),
        "lengths": [list(layer) for layer in given.lengths],
        "scores": None if answer.scores_path is None else str(answer.scores_path),
        "attention": given.kernel,
        "cuda_graph": given.used_graph,
        "cuda_graph_refusal": given.graph_refusal,
        "sampling": None if given.sampler is None else asdict(given.sampler),
        "notes": list(answer.remarks),
    }


def _row(answer: CompressedAnswer) -> list[object]:
    given = answer.generation
    return [
        answer.policy.name,
        answer.budget,
        {True: "yes", False: "no", None: "-"}[answer.correct],
        f"{given.kv_entries:,}",
        told_bytes(given.kv_bytes),
        f"{100 * given.kv_bytes / given.full_kv_bytes:.3g} %",
        "-" if given.peak_bytes is None else told_bytes(given.peak_bytes),
        f"{given.ttft_s:.2f} s",
        "-" if given.tokens_per_s is None else f"{given.tokens_per_s:.0f}",
        printable(answer.answer),
    ]


def _verdict(answer: CompressedAnswer) -> str:
    return {True: "  (right)", False: "  (wrong)", None: ""}[answer.correct]
