"""A report about score files, `headprobe report`: one page with style, script and data, and nothing from outside."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from itertools import combinations
from typing import Any

from headprobe._version import __version__
from headprobe.errors import OptionError
from headprobe.pictures.report.knockout import causal_link, causal_section
from headprobe.pictures.report.record import Detail, file_record, short_numbers, shortened
from headprobe.pictures.style import AT_NIGHT, BELOW_NIGHT, BELOW_ZERO, ON_PAPER, printable
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.checks import Suspect
from headprobe.scores.comparison import compare
from headprobe.scores.validation import FileReport, validate

IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z-]+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function) (\w+))", re.MULTILINE)


def bundle(modules: Mapping[str, str]) -> str:
    """The texts of modules by name, those that are imported first, as one strict script that leaves no name behind.

    Every module keeps a scope of its own, so that it has what it imports and nothing else. Imports are written as
    `import { a, b } from "./module.js";`, exports as `export const` or `export function`.

    >>> one = "export const one = 1;\\n"
    >>> print(bundle({"one": one, "two": 'import { one } from "./one.js";\\nalert(one);\\n'}))
    "use strict";
    (() => {
    const modules = {};
    modules["one"] = (() => {
    const one = 1;
    return { one };
    })();
    modules["two"] = (() => {
    const { one } = modules["one"];
    alert(one);
    return {  };
    })();
    })();
    <BLANKLINE>
    """
    return (
        '"use strict";\n(() => {\nconst modules = {};\n' + "".join(map(_closed, modules, modules.values())) + "})();\n"
    )


def _closed(name: str, text: str) -> str:
    """A module as a function that is called at once and gives what it exports."""
    body = EXPORT.sub("", IMPORT.sub(r'const \1 = modules["\2"];', text))
    return f'modules["{name}"] = (() => {{\n{body}return {{ {", ".join(EXPORT.findall(text))} }};\n}})();\n'


# The page itself: a frame, its style and script, and the data, with nothing from outside.

SCRIPTS = (
    "data", "numbers", "dom", "colours", "scores", "grid", "heads", "table", "charts", "coverage", "comparison",
    "allocation", "budgets", "page", "main",
)  # fmt: skip
NOSCRIPT_HEADS = 20


def report_document(
    files: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]], title: str, causal: str = ""
) -> str:
    """The HTML of a report about `files` (`file_record`) and their `pairs` (`pair_record`); `causal`: a section of it.

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
        "causal": causal,
        "causal-link": causal_link(causal),
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


# A report about score files: `headprobe report`.

MAX_BYTES = 1_000_000
MOST_FILES = 8
DETAIL = (
    Detail(400, 8192),
    Detail(100, 2048),
    Detail(20, 512),
    Detail(10, 128),
    Detail(10, 0),
    Detail(10, 0, digits=5),
)  # as far as the page has room


def report_html(
    files: Sequence[AnyScores], checked: Sequence[FileReport] | None = None, title: str | None = None
) -> bytes:
    """The page about `files`, below `MAX_BYTES`; the same files give the same bytes.

    `checked` is what `validate` found in them, by default by the files' own word.

    Raises `OptionError` for no file, more than `MOST_FILES`, or files so large that the page would not fit.
    """
    if not 1 <= len(files) <= MOST_FILES:
        raise OptionError(f"a report takes 1 to {MOST_FILES} files, got {len(files)}")
    names = file_names(files)
    heading = title or f"{names[0]}: head scores"
    reports = checked or validate([Suspect.of(scores) for scores in files])
    pairs = [pair_record(files, pair) for pair in combinations(range(len(files)), 2)]
    records = [file_record(*parts) for parts in zip(files, names, reports, strict=True)]
    causal = causal_section(files, names)
    size = 0
    for detail in DETAIL:
        shown = [shortened(record, detail) for record in records]
        page = report_document(shown, pairs, heading, causal).encode("utf-8")
        size = len(page)
        if size < MAX_BYTES:
            return page
    advice = "give fewer files" if len(files) > 1 else f"give fewer heads than {files[0].mean.size:,}"
    raise OptionError(f"the report would take {size:,} bytes, the limit is {MAX_BYTES:,}: {advice}")


def file_names(files: Sequence[AnyScores]) -> list[str]:
    """What the page calls the files: their names; with folder, then number, where they are the same."""
    names = [printable(scores.path.name) for scores in files]
    longer = [printable(f"{scores.path.absolute().parent.name}/{scores.path.name}") for scores in files]
    names = [long if Counter(names)[name] > 1 else name for name, long in zip(names, longer, strict=True)]
    counts = Counter(names)
    return [f"{name} ({place})" if counts[name] > 1 else name for place, name in enumerate(names, 1)]


def pair_record(files: Sequence[AnyScores], pair: tuple[int, int]) -> dict[str, Any]:
    """Two of the files side by side, as the page reads them; `refused` says why they cannot be compared."""
    first, second = (files[index] for index in pair)
    try:
        found = compare(first, second)
    except OptionError as error:
        return {"first": pair[0], "second": pair[1], "refused": printable(str(error), 400)}
    return {
        "first": pair[0],
        "second": pair[1],
        "refused": None,
        "heads": found.heads,
        "layers": int(found.first.shape[0]),
        "firstValues": None if found.first.shape == first.mean.shape else short_numbers(found.first),
        "secondValues": None if found.second.shape == second.mean.shape else short_numbers(found.second),
        "spearman": found.spearman,
        "low": found.low,
        "high": found.high,
        "overlaps": [[overlap.k, overlap.shared] for overlap in found.overlaps],
        "moved": [
            [m.layer, m.head, *short_numbers_of(m.first_score, m.second_score), m.first_rank, m.second_rank]
            for m in found.moved
        ],
        "notes": [printable(note, 400) for note in found.notes],
    }


def short_numbers_of(*values: float) -> list[float]:
    """As `short_numbers`, for single numbers."""
    return [float(f"{value:.5g}") for value in values]
