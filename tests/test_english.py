"""The words of the docs, and of the package's messages, help texts and docstrings: plain, current English."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "gpu" / "README.md",
    ROOT / "serving" / "README.md",
    ROOT / "headprobe" / "models" / "bundled" / "README.md",
]
ASSETS = sorted((ROOT / "headprobe" / "pictures" / "report" / "assets").glob("*.[hj]*"))
MODULES = sorted((ROOT / "headprobe").rglob("*.py"))

# A phrase, as a regular expression, and what to write instead.
REFUSED = {
    r"tells": "states, reports, says",
    r"(?:not|nobody) tell|(?:not|be|is|are|was|were) told(?! apart)": "does not state; reported, unknown",
    r"likeliest": "most likely",
    r"(?:at most|only the|of|than) so many": "at most N",
    r"so many (?:tokens|trials|entries|lengths|heads|words)": "N tokens, or the parameter's name",
    r"nearer 1": "closer to 1",
    r"com(?:e|es|ing) again|came again": "would be reproduced; repeated",
    r"(?:go|goes|going|went|gone) on with": "continue",
    r"put up with": "accept",
    r"forbids? to": "does not allow",
    r"(?:is|are) no (?:plain|fast|safetensors|multiples?|JSON|UTF-8|text|part)": "is not a ...",
    r"plain file": "regular file",
    r"last word": "takes precedence, decides",
    r"of one's own|of ones own": "your own",
    r"(?:is|are) there already": "already exists",
    r"stands? in (?:the|a) (?:file|facts|docs|folder)": "is in",
    r"start(?:s|ed)? anew": "start over",
    r"(?:a|one) (?:row|line|number|panel|dot|bar|tile|noun|file|page|column|character) a [a-z]+": "one ... per ...",
    r"(?:entries|tokens|heads|needles) a (?:KV head|head|layer)": "per head, per layer",
}
PATTERN = re.compile("|".join(rf"(?P<r{i}>\b(?:{phrase})\b)" for i, phrase in enumerate(REFUSED)), re.IGNORECASE)
INSTEAD = list(REFUSED.values())


def objections(text: str) -> list[str]:
    """What is wrong with a text, and what to write instead; runs of spaces and line breaks count as one space."""
    plain = re.sub(r"\s+", " ", text)
    found = [(match.group(), int(str(match.lastgroup)[1:])) for match in PATTERN.finditer(plain)]
    return [f"{phrase!r}: write {INSTEAD[number]}" for phrase, number in found]


def literals(path: Path) -> list[tuple[int, str]]:
    """The string literals of a module, docstrings and the parts of f-strings included, each with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [(node.lineno, node.value) for node in nodes if isinstance(node.value, str)]


@pytest.mark.parametrize("page", [*PAGES, *ASSETS], ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_plain_english(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    wrapped = zip(lines, [*lines[1:], ""], strict=True)  # a phrase may go over a line's end
    wrong = [(number, said) for number, pair in enumerate(wrapped, 1) for said in objections(" ".join(pair))]
    assert wrong == [], f"{page.relative_to(ROOT)}: {wrong}"


def test_the_words_of_the_package_are_plain_english() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {said}"
        for path in MODULES
        for line, text in literals(path)
        for said in objections(text)
    ]
    assert wrong == [], "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "The file tells its method.",
        "how sure the ranking is cannot be told",
        "draw from the so many likeliest tokens",
        "at most so\nmany trials",
        "nearer 1: more goes by score",
        "19.1 of the top 20 would come again",
        "it goes on with the run",
        "errors are put up with",
        "HF_HUB_OFFLINE forbids to ask the hub",
        "x is no plain file",
        "one row a policy",
        "a dot a head",
        "28 to 766 entries a head",
        "the mask has the last word",
        "scores of one's own",
    ],
)
def test_what_is_refused_is_found(text: str) -> None:
    assert objections(text) != []


@pytest.mark.parametrize(
    "text",
    [
        "The file states its method.",
        "too few to tell what is stable",
        "which facts two subjects can be told apart by",
        "one row per policy, at most 3 trials",
        "not a regular file",
        "there are so many of them",
        "a number of a kind",
    ],
)
def test_right_uses_of_the_same_words_are_not(text: str) -> None:
    assert objections(text) == []
