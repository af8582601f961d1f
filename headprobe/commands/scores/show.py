"""`headprobe scores show`: what a score file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, stdout_console, write_json
from headprobe.commands.reading import StatedModel, stated_model
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.causal import causal_results
from headprobe.scores.provenance import STEPS_RULE
from headprobe.scores.score_file import newest_score_file
from headprobe.scores.summary import ScoreSummary, summarize

BAR_WIDTH = 40


def show_command(
    scores: Annotated[
        Path | None,
        typer.Argument(help="The score file, native or foreign; default: the newest in scores/.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many heads to list.")] = 10,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose scores these are, for files that do not say: an alias, id or folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show what a score file holds: model, method, trials, top heads, and how the scores spread."""
    held = read_any(scores or newest_score_file())
    summary, stated = summarize(held, top), stated_model(held, model)
    if as_json:
        write_json(show_record(held, summary, stated))
        return
    _print_facts(held, summary, stated)
    _print_pass_rates(held)
    _print_top_heads(held, summary)
    _print_layers(held, summary)
    _print_causal(held)


def show_record(scores: AnyScores, summary: ScoreSummary, stated: StatedModel | None) -> dict[str, Any]:
    """What `--json` prints. A value that the file does not state is null."""
    geometry = None if stated is None else stated.geometry
    return {
        "path": str(scores.path),
        "format": scores.format,
        "sha256": scores.sha256,
        "model": scores.model,
        "stated_model": None if stated is None else {"name": stated.name, "source": stated.source},
        "method": scores.method,
        "bound": scores.bound,
        "is_ranking": scores.is_ranking,
        "heads": scores.heads,
        "num_layers": scores.num_layers,
        "num_heads": scores.num_heads,
        "num_key_value_heads": None if geometry is None else geometry.num_key_value_heads,
        "num_trials": summary.num_trials,
        "num_passed": summary.num_passed,
        "num_distinct_trials": summary.num_distinct_trials,
        "sum_of_means": summary.sum_of_means,
        "max": summary.max,
        "zero_fraction": summary.zero_fraction,
        "half_mass_heads": summary.half_mass_heads,
        "top_heads": [_head_record(head) for head in summary.top_heads],
        "layer_means": list(summary.layer_means),
        "pass_rates": _pass_records(scores),
        "causal": causal_results(scores.native),
        "provenance": _provenance(scores),
        "notes": list(scores.notes),
    }


def _head_record(head: Any) -> dict[str, Any]:
    low, high = head.interval or (None, None)
    names = {"layer": head.layer, "head": head.head, "score": head.score}
    return names | {"low": low, "high": high, "share": head.share}


def _pass_records(scores: AnyScores) -> list[dict[str, Any]] | None:
    if scores.native is None:
        return None
    cells = scores.native.pass_rates().items()
    return [{"length": n, "depth": d, "passed": passed, "total": total} for (n, d), (passed, total) in cells]


def _provenance(scores: AnyScores) -> dict[str, Any] | None:
    if scores.native is None:
        return None
    origin, method = scores.native.provenance, scores.native.method
    return {
        "created_at": origin.created_at,
        "model": {name: value for name, value in vars(origin.model).items() if name != "extra"},
        "method": {
            "name": method.name,
            "formula": method.formula,
            "version": method.version,
            "parameters": dict(method.parameters),
        },
        "probes": dict(origin.probes),
        "environment": dict(origin.environment),
    }


def _print_facts(scores: AnyScores, summary: ScoreSummary, stated: StatedModel | None) -> None:
    rows = [
        ("file", str(scores.path)),
        ("format", _format(scores)),
        ("model", _model(scores, stated)),
        ("method", _method(scores)),
        *_rules(scores),
        ("heads", _heads(scores, stated)),
        ("trials", _trials(scores, summary)),
        *_origin(scores),
    ]
    if not scores.is_ranking:
        count = scores.mean.size
        rows += [
            ("sum of means", f"{summary.sum_of_means:.4f}"),
            ("largest mean", f"{summary.max:.4f}{_bound(scores, summary)}"),
            ("zero heads", f"{summary.zero_fraction:.1%}"),
            ("half of the mass", f"in {summary.half_mass_heads} of {count:,} heads"),
        ]
    rows += [("note", note) for note in scores.notes]
    print_table(("", ""), rows)


def _format(scores: AnyScores) -> str:
    return f"{scores.format}, a ranking without scores" if scores.is_ranking else scores.format


def _model(scores: AnyScores, stated: StatedModel | None) -> str:
    if stated is None:
        return scores.model or "not stated"
    return stated.name if stated.source == "the file" else f"{stated.name} (by {stated.source})"


def _method(scores: AnyScores) -> str:
    formula = None if scores.native is None else scores.native.method.formula
    return (scores.method or "not stated") + ("" if not formula else f": {formula}")


def _rules(scores: AnyScores) -> list[tuple[str, str]]:
    """Which trials count, by a native file's method."""
    gate = None if scores.native is None else scores.native.method.parameters.get("gate")
    if scores.native is None or not isinstance(gate, dict) or "metric" not in gate:
        return []
    told = f"{gate['metric']} above {gate.get('threshold')}, version {scores.native.method.version} of the method"
    steps = scores.native.method.parameters.get(STEPS_RULE)
    return [("gate", told if steps is None else f"{told}, {steps} steps")]


def _heads(scores: AnyScores, stated: StatedModel | None) -> str:
    told = f"{scores.num_layers} layers x {scores.num_heads} {'KV' if scores.heads == 'kv' else 'query'} heads"
    if scores.is_ranking and scores.native is None:
        told += " at least"
    if stated is not None and scores.heads == "query":
        told += f", {stated.geometry.num_key_value_heads} KV heads"
    return told


def _trials(scores: AnyScores, summary: ScoreSummary) -> str:
    if summary.num_trials is None:
        return "none in the file"
    distinct = "" if summary.num_distinct_trials is None else f" ({summary.num_distinct_trials} distinct)"
    if scores.native is None:
        return f"{summary.num_trials}{distinct}"
    return f"{summary.num_passed} of {summary.num_trials} passed{distinct}"


def _bound(scores: AnyScores, summary: ScoreSummary) -> str:
    if scores.bound is None:
        return ""
    return f" ({'above the bound of' if summary.max > scores.bound + 1e-6 else 'of at most'} {scores.bound:g})"


def _origin(scores: AnyScores) -> list[tuple[str, str]]:
    if scores.native is None:
        return []
    origin = scores.native.provenance
    probes, model, version = origin.probes, origin.model, origin.environment.get("headprobe")
    parts = [f"{kind} {probes[kind].get('name')}" for kind in ("needles", "haystack") if kind in probes]
    parts += [f"{len(probes[kind])} {kind}" for kind in ("lengths", "depths") if kind in probes]
    source = probes.get("converted_from")
    rows = [
        ("probes", ", ".join(parts)),
        ("model facts", ", ".join(filter(None, (model.architecture, model.dtype, model.attn_implementation)))),
        ("revision", model.revision or ""),
        ("gguf", _gguf(model.gguf)),
        ("quantization", _quantization(model.quantization)),
        ("made", f"{origin.created_at}" + (f", headprobe {version}" if isinstance(version, str) else "")),
        ("converted from", str(source.get("format")) if isinstance(source, dict) else ""),
    ]
    return [(name, text) for name, text in rows if text]


def _gguf(stated: Mapping[str, Any] | None) -> str:
    """The GGUF file behind the weights: its name, types of its tensors and the start of its hash."""
    if stated is None:
        return ""
    types = ", ".join(f"{name} {count}" for name, count in stated["types"].items())
    packages = stated.get("packages")
    return f"{stated['file']} ({types}), sha256 {stated['sha256'][:12]}" + (f", of {packages}" if packages else "")


def _quantization(stated: Mapping[str, Any] | None) -> str:
    """The method, and what else is said of it."""
    if stated is None:
        return ""
    said = {name: value for name, value in stated.items() if name != "quant_method" and value not in (None, False)}
    more = [f"{name} {value}" for name, value in said.items()]
    return ", ".join([str(stated["quant_method"]), *more])


def _print_pass_rates(scores: AnyScores) -> None:
    if scores.native is None or "placeholders" in scores.native.provenance.probes:
        return
    rates = scores.native.pass_rates()
    lengths, depths = sorted({n for n, _ in rates}), sorted({d for _, d in rates})
    columns = ("tokens", *(f"{depth:.0f}" for depth in depths))
    cells = {key: f"{passed}/{total}" for key, (passed, total) in rates.items()}
    stdout_console().print("\npassed, by tokens (rows) and depth in percent (columns):\n")
    print_table(columns, [(str(n), *(cells.get((n, d), "") for d in depths)) for n in lengths], right=columns)


def _print_top_heads(scores: AnyScores, summary: ScoreSummary) -> None:
    if not summary.top_heads:
        return
    if scores.is_ranking:
        names = ((str(rank), f"{head.layer}-{head.head}") for rank, head in enumerate(summary.top_heads, 1))
        stdout_console().print("\nthe ranking:\n")
        print_table(("rank", "head"), names, right=("rank", "head"))
        return
    rows = [
        (str(rank), f"{head.layer}-{head.head}", f"{head.score:.4f}", _interval(head.interval), f"{head.share:.1%}")
        for rank, head in enumerate(summary.top_heads, 1)
    ]
    stdout_console().print(f"\ntop {'KV ' if scores.heads == 'kv' else ''}heads (layer-head):\n")
    columns = ("rank", "head", "score", "95 % interval", "share")
    print_table(columns, rows, right=columns)


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _print_layers(scores: AnyScores, summary: ScoreSummary) -> None:
    most = max(summary.layer_means)
    if scores.is_ranking or most <= 0.0:
        return
    stdout_console().print("\nmean score of each layer:\n")
    bars = (
        (str(i), f"{mean:.4f}", "#" * round(BAR_WIDTH * max(mean, 0.0) / most))
        for i, mean in enumerate(summary.layer_means)
    )
    print_table(("layer", "mean", ""), bars, right=("layer", "mean"))


def _print_causal(scores: AnyScores) -> None:
    """What switching the best heads off cost, where the file says so (`headprobe knockout --write`)."""
    results = causal_results(scores.native)
    if not results:
        return
    stdout_console().print("\ndo the heads matter? (switched off by, on how many prompts):\n", markup=False)
    rows = [(result["mode"], f"{result['num_prompts']:,}", result["effect"], result["verdict"]) for result in results]
    print_table(("mode", "prompts", "effect", "verdict"), rows, right=("prompts",))
