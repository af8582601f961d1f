"""The page itself: a frame, its style and script, and the data, with nothing from outside."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

from headprobe._version import __version__
from headprobe.pictures.colours import AT_NIGHT, BELOW_NIGHT, BELOW_ZERO, ON_PAPER
from headprobe.pictures.report.script import bundle

SCRIPTS = (
    "data", "numbers", "dom", "colours", "scores", "grid", "heads", "table", "charts", "coverage", "comparison",
    "allocation", "budgets", "page", "main",
)  # fmt: skip
NOSCRIPT_HEADS = 20


def report_document(files: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], title: str) -> str:
    """The HTML of a report about `files` (`file_record`) and their `pairs` (`pair_record`).

    Every text of a file stands in a JSON block whose `<`, `>` and `&` are escaped, and reaches the page as text; the
    content policy allows this script and this style only, and no connection to anything.
    """
    script, style = script_text(), asset("style.css")
    colours = {"paper": ON_PAPER, "below": BELOW_ZERO, "night": AT_NIGHT, "belowNight": BELOW_NIGHT}
    several = len(files) > 1
    parts = {
        "policy": content_policy(script, style),
        "version": escape(__version__),
        "title": escape(title),
        "heading": escape(str(files[0]["model"] or files[0]["name"])),
        "method": escape(str(files[0]["method"])),
        "style": style,
        "script": script,
        "data": embedded({"colours": colours, "files": files, "pairs": pairs}),
        "fallback": _fallback(files),
        "comparison": asset("comparison.html").strip() if several else "",
        "comparison-link": '<a href="#comparison">Comparison</a>' if several else "",
    }
    return re.sub(r"@([a-z-]+)@", lambda found: parts[found[1]], asset("frame.html"))


def script_text() -> str:
    """The page's one script."""
    return bundle({name: asset(f"{name}.js") for name in SCRIPTS})


def asset(name: str) -> str:
    """A part of the page that lies beside this file."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element, whatever its texts hold.

    >>> embedded({"a": "</script>&"})
    '{"a":"\\\\u003c/script\\\\u003e\\\\u0026"}'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def content_policy(script: str, style: str) -> str:
    """What the browser lets the page do: run this script, use this style, show images that it holds itself."""
    return (
        f"default-src 'none'; script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode("utf-8")).digest()).decode("ascii")


def _fallback(files: Sequence[Mapping[str, Any]]) -> str:
    """The best heads of every file, for browsers that run no script."""
    blocks = "".join(f"<h2>{escape(str(file['name']))}</h2>{_best_table(file)}" for file in files)
    return (
        f'<noscript><div class="fallback"><p>The pictures need JavaScript. The best heads:</p>{blocks}</div></noscript>'
    )


def _best_table(file: Mapping[str, Any]) -> str:
    mean, width = file["mean"], int(file["width"])
    best = sorted(range(len(mean)), key=lambda index: (-mean[index], index))[:NOSCRIPT_HEADS]
    rows = "".join(
        f"<tr><th scope=row>{rank}</th><td>{index // width}</td><td>{index % width}</td><td>{mean[index]:.4g}</td></tr>"
        for rank, index in enumerate(best, 1)
    )
    heads = "".join(f"<th scope=col>{name}</th>" for name in ("Rank", "Layer", "Head", "Score"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
