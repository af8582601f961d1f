"""`headprobe compress`: let a model answer from a compressed cache, and see what it kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from headprobe.commands.observed import observed
from headprobe.commands.options import (
    AttentionOption,
    BetaOption,
    ChatTemplateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    GqaOption,
    KvCacheDtypeOption,
    LayerChunkOption,
    ModelOption,
    PolicyOption,
    PoolOption,
    QuantizationOption,
    QueryAgnosticOption,
    SinksOption,
    TensorParallelOption,
    WindowOption,
)
from headprobe.commands.output import print_table, printable, stdout_console, tell, write_json
from headprobe.commands.placed import placed
from headprobe.commands.policy_files import PolicyFileOption, named_policy, scores_of, tell_other_model
from headprobe.commands.reading import one_length, prompt_name, read_text
from headprobe.compression.budgets import Ints
from headprobe.compression.decoding import Sampler
from headprobe.compression.kv_cache_dtypes import AUTO, parse_kv_cache_dtypes
from headprobe.compression.policies import DEFAULT_POLICY, Policy, make_policy, make_policy_with
from headprobe.errors import OptionError
from headprobe.evaluation.known_scores import window_note, with_recommended_window
from headprobe.evaluation.questions import (
    CompressedAnswer,
    CompressionOptions,
    Question,
    compressed_answers,
    needle_question,
    own_question,
)
from headprobe.models.loading import LoadedModel, PlacementOptions, load_model
from headprobe.pictures.budget_map import print_budget_map
from headprobe.pictures.style import told_bytes
from headprobe.profiling.ranks import Ranks
from headprobe.scores.any_scores import read_any
from headprobe.scores.files import refuse_one_place
from headprobe.stages import stage_record

# What `headprobe compress` prints.

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
            f"entries kept by each KV head under {first.name}, {mean:,.0f} on average:", soft_wrap=True,
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
        "kv_cache_dtype": given.kv_cache_dtype,
        "budget": answer.budget,
        "prompt": question.source,
        "prompt_tokens": given.prompt_tokens,
        "answer": answer.answer,
        "expected": question.expected,
        "correct": answer.correct,
        "f1": answer.f1,
        "kv_entries": given.kv_entries,
        "kv_bytes": given.kv_bytes,
        "kv_scale_bytes": given.kv_scale_bytes,
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
        "fused_layers": given.fused_refusal is None,
        "fused_layers_refusal": given.fused_refusal,
        "sampling": None if given.sampler is None else asdict(given.sampler),
        "notes": list(answer.remarks),
        "stages": stage_record(),
    }


def _row(answer: CompressedAnswer) -> list[object]:
    given = answer.generation
    return [
        answer.name,
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


DEFAULT_BUDGET = 256


@observed
def compress_command(
    context: typer.Context,
    budget: Annotated[
        int | None,
        typer.Option(
            help=f"Mean entries per KV head, window and sinks included; default {DEFAULT_BUDGET}.", show_default=False
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="The budget as a share of the prompt, such as 0.05.", show_default=False)
    ] = None,
    model: ModelOption = "demo",
    scores: Annotated[
        Path | None,
        typer.Option(help="Score file, native or foreign; default: the model's newest in scores/.", show_default=False),
    ] = None,
    policy: PolicyOption = DEFAULT_POLICY,
    policy_file: PolicyFileOption = None,
    compare: Annotated[
        str | None, typer.Option(help="More policies for the same prompt, such as full,snapkv.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Text to read (- is stdin); default: a fresh needle prompt.", show_default=False
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What to ask about the text of --prompt.", show_default=False)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put --prompt into the model's chat template.")] = False,
    chat_template: ChatTemplateOption = True,
    length: Annotated[
        str | None,
        typer.Option(help="Tokens of the needle prompt; default: the window, at most 32k.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of the answer in tokens.")] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample tokens instead of taking the most likely; 0: the most likely.", show_default=False),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the N most likely tokens.", show_default=False)] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the most likely tokens that together reach this probability.", show_default=False
        ),
    ] = None,
    query_agnostic: QueryAgnosticOption = False,
    beta: BetaOption = None,
    window: WindowOption = None,
    pool: PoolOption = None,
    sinks: SinksOption = None,
    value_aware: Annotated[
        bool | None,
        typer.Option(
            "--value-aware/--no-value-aware", help="Weigh importance by value norms (VATP).", show_default=False
        ),
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option(help="headkv, pyramidkv: round budgets as that code does.", show_default=False),
    ] = None,
    gqa: GqaOption = "mean",
    attention: AttentionOption = "auto",
    prefill_chunk: LayerChunkOption = None,
    kv_cache_dtype: KvCacheDtypeOption = AUTO,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    tensor_parallel: TensorParallelOption = False,
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    seed: Annotated[int, typer.Option(help="Which needle, where its haystack begins, what is sampled.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (a list of them with --compare).")
    ] = False,
) -> None:
    """Answer a long prompt from a cache that keeps a different number of entries for each head."""
    if budget is not None and ratio is not None:
        raise OptionError(f"--budget {budget} and --ratio {ratio} set the same thing: give only one")
    own = {"budget": budget, "ratio": ratio, "beta": beta, "window": window, "pool": pool, "sinks": sinks}
    decided: dict[str, tuple[object, object]] = {f"--{name}": (value, None) for name, value in own.items()}
    decided |= {"--value-aware": (value_aware, None), "--compat": (compat, None)}
    decided |= {"--policy": (policy, DEFAULT_POLICY), "--gqa": (gqa, "mean")}
    chosen = named_policy(policy_file, decided)
    ranks = Ranks.of_environment()
    placement: PlacementOptions = {
        "tensor_parallel": tensor_parallel, "device_map": device_map, "quantization": quantization,
    }  # fmt: skip
    context.with_resource(placed(ranks, placement))
    sampler = _sampler(temperature, top_k, top_p, seed)
    refuse_one_place({}, {"--prompt": None if prompt == "-" else prompt, "--scores": scores})
    text = None if prompt is None else read_text(prompt)
    _check_prompt_options(prompt, question, chat, length)
    if chat and not chat_template:
        raise OptionError("--chat and --no-chat-template contradict each other: give one")
    first = make_policy(
        policy, beta=beta, window=window, pool=pool, sinks=sinks, value_aware=value_aware, compat=compat
    )
    if chosen is not None:
        first, budget, ratio, gqa = chosen.policy, chosen.budget, chosen.ratio, chosen.gqa
        window, pool = chosen.policy_options.window, chosen.policy_options.pool
        scores = next(iter(scores_of(chosen, None if scores is None else [scores])), None)
    policies = list(dict.fromkeys([first, *_others(compare, window, pool)]))
    notes = _without_effect(policies, budget, ratio, scores)
    options = CompressionOptions(
        budget=DEFAULT_BUDGET if budget is None and ratio is None else budget,
        ratio=ratio,
        scores=scores,
        gqa=gqa,
        attention=attention,
        prefill_chunk=prefill_chunk,
        kv_cache_dtypes=parse_kv_cache_dtypes(kv_cache_dtype),
        max_new_tokens=max_new_tokens,
        query_agnostic=query_agnostic,
        sampler=sampler,
    )
    if length is not None:
        one_length(length, "--length")
    if query_agnostic and text is not None and question is None:
        raise OptionError("the context can be compressed alone only where the question is separate: give --question")
    if scores is not None:
        read_any(scores)
    loaded = load_model(model, device=device if ranks is None else ranks.device(device), dtype=dtype, **placement)
    is_first = ranks is None or ranks.rank == 0
    tell_other_model(chosen, loaded)
    recommended = window_note(loaded, window, pool)
    if recommended is not None:
        notes.append(recommended)
    for note in notes if is_first else ():
        tell(f"note: {note}")
    policies = [with_recommended_window(loaded, chosen, window, pool) for chosen in policies]
    if text is None:
        asked = _fresh_needle(loaded, length, seed, chat_template)
    else:
        asked = own_question(loaded, text, question, chat=chat, new_tokens=max_new_tokens, name=prompt_name(prompt))
    answers = compressed_answers(loaded, asked, policies, options, on_answer=_tell if is_first else None)
    if is_first:
        print_answers(loaded.name, asked, answers, as_json)


def _sampler(temperature: float | None, top_k: int | None, top_p: float | None, seed: int) -> Sampler | None:
    """What draws the tokens: nothing, unless one of the options asks for it."""
    given = {"--top-k": top_k, "--top-p": top_p}
    named = [f"{name} {value}" for name, value in given.items() if value is not None]
    if temperature == 0 and named:
        raise OptionError(f"--temperature 0 takes the most likely token: leave out {named[0]}")
    if temperature == 0 or (temperature is None and not named):
        return None
    return Sampler(
        temperature=1.0 if temperature is None else temperature,
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )


def _others(compare: str | None, window: int | None, pool: int | None) -> list[Policy]:
    """The policies of `--compare`; those with a window get the same window and pool, for a fair comparison."""
    names = [name.strip() for name in compare.split(",")] if compare else []
    return [make_policy_with(name, {"window": window, "pool": pool}) for name in names]


def _without_effect(
    policies: Sequence[Policy], budget: int | None, ratio: float | None, scores: Path | None
) -> list[str]:
    """What is given and read by no policy of the run, in words: a script may give it to each policy in turn."""
    names = ", ".join(policy.name for policy in policies)
    found = []
    if all(policy.keeps_all for policy in policies):
        given = {"--budget": budget, "--ratio": ratio}
        found += [
            f"{name} {value} has no effect: {names} keeps all entries"
            for name, value in given.items()
            if value is not None
        ]
    if scores is not None and not any(policy.needs_scores for policy in policies):
        found.append(f"--scores {scores} has no effect: {names} takes no head scores")
    return found


def _check_prompt_options(prompt: str | None, question: str | None, chat: bool, length: str | None) -> None:
    if prompt is None and question is not None:
        raise OptionError(f"--question {question!r} needs a text: name it with --prompt")
    if prompt is None and chat:
        raise OptionError("--chat is for --prompt; needle prompts use the chat template automatically")
    if prompt is not None and length is not None:
        raise OptionError(f"--length {length} is for the needle prompt: leave it out with --prompt")


def _fresh_needle(loaded: LoadedModel, length: str | None, seed: int, chat: bool) -> Question:
    tokens = min(loaded.window, 32 * 1024) if length is None else one_length(length, "--length", loaded.window)
    return needle_question(loaded, tokens, seed=seed, chat=chat)


def _tell(answer: object) -> None:
    """Progress and remarks, on stderr."""
    assert isinstance(answer, CompressedAnswer)
    took = f"first token after {answer.generation.ttft_s:.2f} s"
    tell(f"{answer.name}: {took}")
    for remark in answer.remarks:
        tell(f"note: {remark}")
