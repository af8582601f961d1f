"""The report's section on whether heads matter: what switching them off cost, as plain HTML without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from headprobe.pictures.style import printable
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.causal import Result, causal_results

LONGEST_VERDICT = 600
HEADS = (
    "Heads off",
    "Answered without the best",
    "95 %",
    "Without random ones",
    "95 %",
    "Plain text loses",
    "with random ones",
)
LEAD = "What is still answered when the best heads of the file are off, and when as many random ones are."


def causal_section(files: Sequence[AnyScores], names: Sequence[str]) -> str:
    """The section as HTML, empty where no file holds a result; every text of a file is escaped."""
    held = [(name, result) for name, file in zip(names, files, strict=True) for result in causal_results(file.native)]
    if not held:
        return ""
    blocks = "".join(_block(name if len(files) > 1 else None, result) for name, result in held)
    return f'<section id="causal"><h2>Do the heads matter?</h2><p class="lead">{LEAD}</p>{blocks}</section>'


def causal_link(section: str) -> str:
    """The link to the section, where there is one."""
    return '<a href="#causal">Knockout</a>' if section else ""


def _block(name: str | None, result: Result) -> str:
    told = f"{result['num_prompts']:,} prompts, heads off by {printable(result['mode'])}"
    title = told if name is None else f"{name}: {told}"
    rows = "".join(_row(step, result["whole"]) for step in result["steps"])
    heads = "".join(f"<th scope=col>{head}</th>" for head in HEADS)
    return (
        f"<h3>{escape(title)}</h3><p>{escape(printable(result['verdict'], LONGEST_VERDICT))}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="quiet">With all heads on: {_share(result["whole"].get("answered"))} answered, loss on plain text '
        f"{_number(result['whole'].get('text_loss'))} nats per token.</p>"
    )


def _row(step: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    top, random = step["top"], step["random"] or {}
    cells = (
        _share(top.get("answered")), _ends(top.get("answered")), _share(random.get("answered")),
        _ends(random.get("answered")), _change(top.get("text_loss"), whole), _change(random.get("text_loss"), whole),
    )  # fmt: skip
    return f"<tr><th scope=row>{step['k']:,}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _share(found: Mapping[str, Any] | None) -> str:
    return "–" if not found or found["mean"] is None else f"{100 * found['mean']:.0f} %"


def _number(found: Mapping[str, Any] | None) -> str:
    return "–" if not found or found["mean"] is None else f"{found['mean']:.2f}"


def _ends(found: Mapping[str, Any] | None) -> str:
    if not found or found["low"] is None or found["high"] is None:
        return "–"
    return f"{100 * found['low']:.0f} to {100 * found['high']:.0f}"


def _change(found: Mapping[str, Any] | None, whole: Mapping[str, Any]) -> str:
    start = whole.get("text_loss")
    if not found or not start or found["mean"] is None or start["mean"] is None:
        return "–"
    change = round(found["mean"] - start["mean"], 2)
    return f"{change or 0.0:+.2f}"
