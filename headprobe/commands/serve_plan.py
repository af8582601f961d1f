"""`headprobe serve-plan`: which KV heads keep everything when a model is served with vLLM, and what that saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.options import GqaOption
from headprobe.commands.output import print_table, printable, stdout_console, write_json
from headprobe.commands.reading import one_length, with_geometry
from headprobe.errors import OptionError
from headprobe.evaluation.head_budgets import default_prompt_tokens
from headprobe.evaluation.serve_plan import ServePlan, plan_record, serve_plan
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.files import refuse_existing, write_atomically
from headprobe.scores.score_file import newest_score_file

GIB = 2**30


def serve_plan_command(
    scores: Annotated[
        Path | None,
        typer.Argument(help="Head scores or a Duo pattern; default: the newest in scores/.", show_default=False),
    ] = None,
    full_heads: Annotated[
        float, typer.Option("--full-heads", help="Share of all KV heads that keep everything, 0 to 1.")
    ] = 0.25,
    sinks: Annotated[int, typer.Option(help="First tokens that the others keep, rounded up to whole blocks.")] = 32,
    window: Annotated[int, typer.Option(help="Latest tokens that the others keep.")] = 256,
    prefill: Annotated[
        str, typer.Option(help="How the others read a prompt: dense (all of it), streaming (sinks and window).")
    ] = "dense",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Alias, folder or GGUF file, for files that do not state their model.", show_default=False
        ),
    ] = None,
    gqa: GqaOption = "mean",
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the cache; default: as scored, else bfloat16.", show_default=False)
    ] = None,
    memory: Annotated[float, typer.Option("--memory", help="GiB for the KV cache.")] = 1.0,
    length: Annotated[
        str | None,
        typer.Option(
            help="Tokens of a request, such as 8k; default: the longest length scored, else 8192.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the plan here.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Plan two KV caches for vLLM, without loading a model. The plug-in in serving/ carries out the plan."""
    if not 0.0 < memory < 2**20:
        raise OptionError(f"a memory of {memory} GiB is out of range, need more than 0 and less than {2**20}")
    if output is not None:
        refuse_existing(output, overwrite)
    held = with_geometry(read_any(scores or newest_score_file()), model)
    plan = serve_plan(held, full_heads=full_heads, sinks=sinks, window=window, prefill=prefill, dtype=dtype, gqa=gqa)
    tokens = default_prompt_tokens(held) if length is None else one_length(length, "--length")
    record, saved = plan_record(plan, held, gqa), savings(plan, int(memory * GIB), tokens)
    if output is not None:
        write_atomically(output, _json_bytes(record), overwrite=overwrite)
    if as_json:
        write_json({"plan": record, "path": None if output is None else str(output), **saved})
    else:
        _print(held, plan, saved, output, sinks)


def savings(plan: ServePlan, memory: int, tokens: int) -> dict[str, Any]:
    """What `--json` prints of the two ways to serve: all heads alike, and the plan."""
    stock, held = plan.stock_bytes(tokens), plan.held_blocks(tokens) * plan.block_bytes
    batch = {"all": memory // stock, "plan": plan.largest_batch(memory, tokens)}
    return {
        "memory_bytes": memory,
        "tokens": tokens,
        "kv_bytes_per_token": {"all": stock / tokens, "plan": held / tokens},
        "kv_bytes_per_request": {"all": stock, "plan": held},
        "kv_bytes_while_reading": {"all": stock, "plan": plan.most_blocks(tokens) * plan.block_bytes},
        "largest_batch": batch,
        "tokens_that_fit": {name: count * tokens for name, count in batch.items()},
    }


def _json_bytes(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()


def _print(scores: AnyScores, plan: ServePlan, saved: dict[str, Any], output: Path | None, asked_sinks: int) -> None:
    console, name = stdout_console(), scores.model or scores.path.name
    rounded = f" ({asked_sinks} rounded up to whole blocks)" if asked_sinks != plan.sinks else ""
    lines = (
        f"{name}: {plan.num_full} of {plan.num_heads} KV heads keep everything, the others the first {plan.sinks} "
        f"tokens{rounded} and the last {plan.window}; prompts are read {plan.prefill}",
        f"{saved['memory_bytes'] / GIB:g} GiB of cache, requests of {saved['tokens']:,} tokens, blocks of "
        f"{plan.blocks.full} and {plan.blocks.streaming} tokens:",
        "",
    )
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False)
    columns = ("", "bytes per token", "MiB per request", "while it is read", "largest batch", "tokens that fit")
    print_table(columns, _rows(saved), right=columns[1:])
    if output is not None:
        console.print(f"\nwritten to {printable(str(output))}", soft_wrap=True, markup=False)


def _rows(saved: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            label,
            f"{saved['kv_bytes_per_token'][name]:,.0f}",
            f"{saved['kv_bytes_per_request'][name] / 2**20:,.2f}",
            f"{saved['kv_bytes_while_reading'][name] / 2**20:,.2f}",
            f"{saved['largest_batch'][name]:,}",
            f"{saved['tokens_that_fit'][name]:,}",
        )
        for name, label in (("all", "all heads alike"), ("plan", "this plan"))
    ]
