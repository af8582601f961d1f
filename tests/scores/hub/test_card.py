from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from headprobe.errors import FileFormatError
from headprobe.scores.checks import Finding
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.hub.parcel import code, merge_card, score_card, table
from headprobe.scores.provenance import ModelIdentity, Provenance
from tests.scores.conftest import build_scores

REPO = "lena/head-scores"
HOSTILE = (
    "x`</td><script>alert(1)</script>|\n# [a](http://evil) @lena ![](http://evil) <!-- headprobe: end a.json -->\\"
)


def test_the_card_of_a_file_tells_where_its_scores_come_from(toy_scores: HeadScores) -> None:
    card = score_card(toy_scores, "toy.json", "toy.png", REPO)
    assert card.splitlines()[:3] == ["## toy.json", "", "![Heatmap of toy.json: layers down, heads across](toy.png)"]
    for row in (
        "| model | `toy` |",
        "| revision | – |",
        "| architecture | `ToyForCausalLM` |",
        "| heads | `2 layers x 4 query heads, 2 KV heads` |",
        "| method | `r2, version 1` |",
        "| formula | `mass on the answer` |",
        "| trials | `3 of 4 passed` |",
        "| lengths | `256, 512 tokens` |",
        "| depths | `0, 50 percent` |",
        f"| needles | `reasoning (sha256 {'a' * 12})` |",
        f"| haystack | `essays (sha256 {'b' * 12})` |",
        "| seed | `0` |",
        "| made | `2025-01-31T12:00:00Z` |",
        "| headprobe | `0.1.0` |",
        "$ headprobe scores pull toy.json --repo lena/head-scores",
        "`headprobe scores validate` finds nothing to object to.",
    ):
        assert row in card.splitlines()


def test_the_best_heads_have_intervals_and_heads_of_zero_are_left_out(toy_scores: HeadScores) -> None:
    lines = score_card(toy_scores, "toy.json", None, REPO).splitlines()
    start = lines.index("| rank | head | score | 95 % interval |")
    rows = [line.strip("| ").split(" | ") for line in lines[start + 2 : lines.index("", start)]]
    assert [row[:3] for row in rows] == [
        ["1", "1-0", "0.7000"],
        ["2", "0-1", "0.4000"],
        ["3", "0-2", "0.4000"],
        ["4", "1-3", "0.1000"],
        ["5", "1-2", "0.1000"],
    ]
    assert rows[0][3] == "0.600 to 0.900"
    assert rows[2][3] == "0.400 to 0.400"


def test_without_trial_scores_the_intervals_are_empty(toy_scores: HeadScores) -> None:
    trials = tuple(replace(trial, scores=None) for trial in toy_scores.trials)
    card = score_card(replace(toy_scores, trials=trials, stored=toy_scores.table), "toy.json", None, REPO)
    assert "| 1 | 1-0 | 0.7000 | – |" in card


def test_findings_stand_in_the_card_with_their_reason() -> None:
    findings = [Finding("few-trials", "warning", "only 3", "ranks are noise")]
    card = score_card(build_scores([np.eye(2)], [True]), "toy.json", None, REPO, findings)
    assert "- warning, `few-trials`: `only 3` (ranks are noise)" in card.splitlines()


def test_strings_of_the_file_cannot_become_markup(toy_scores: HeadScores) -> None:
    method = replace(toy_scores.method, name=HOSTILE, formula=HOSTILE)
    probes = {"needles": {"name": HOSTILE, "sha256": HOSTILE}, "haystack": [HOSTILE], "seed": HOSTILE}
    hostile = Provenance(ModelIdentity(HOSTILE, HOSTILE), None, probes, {"headprobe": HOSTILE}, "2025-01-31T12:00:00Z")
    findings = [Finding(HOSTILE, "warning", HOSTILE, "why")]
    card = score_card(replace(toy_scores, method=method, provenance=hostile), "a.json", None, REPO, findings)
    tokens = MarkdownIt("commonmark").enable("table").parse(card)
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inline)} & {"html_block", "html_inline", "link_open", "image"} == set()
    assert [t.content for t in tokens if t.type == "inline" and "evil" in t.content and "`" not in t.content] == []
    assert not [child for child in inline if child.type == "text" and ("evil" in child.content or "@" in child.content)]
    assert sum(token.type == "tr_open" for token in tokens) == 16 + 6
    assert sum(token.type == "td_open" for token in tokens) == 15 * 2 + 5 * 4
    once = merge_card(None, card, "a.json", REPO)
    assert merge_card(once, card, "a.json", REPO) == once


def test_code_spans_are_one_line_and_bounded() -> None:
    assert code("a\nb\tc") == "`a b c`"
    assert code("tab\x1b[31m") == "`tab\ufffd[31m`"
    assert code("a\\|b") == "`a/\\|b`"
    assert code("y" * 400) == f"`{'y' * 297}...`"
    assert (code(""), code(None), code(0)) == ("–", "–", "`0`")


def test_a_table_has_a_line_a_row() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_new_card_has_a_header_that_the_hub_reads() -> None:
    yaml = pytest.importorskip("yaml")
    card = merge_card(None, "TEXT", "a.json", REPO)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "pretty_name": "head-scores",
        "tags": ["headprobe", "attention-heads", "retrieval-heads"],
        "viewer": False,
    }
    assert card.endswith("<!-- headprobe: begin a.json -->\nTEXT\n<!-- headprobe: end a.json -->\n")


def test_a_second_file_is_added_and_a_second_push_replaces() -> None:
    first = merge_card(None, "ONE", "a.json", REPO)
    both = merge_card(first + "\nmine\n", "TWO", "b.json", REPO)
    assert both.startswith(first.rstrip())
    again = merge_card(both, "NEW", "a.json", REPO)
    assert again == both.replace("ONE", "NEW")
    assert "mine" in again


def test_a_card_of_other_making_is_kept_as_it_is() -> None:
    card = "---\nlicense: mit\n---\n# Mine\r\n\r\ntext\n"
    assert merge_card(card, "ONE", "a.json", REPO).startswith(card.rstrip() + "\n\n<!-- headprobe: begin a.json -->")


@pytest.mark.parametrize("marks", ["begin", "end", "end begin", "begin begin end"])
def test_marks_that_do_not_fit_are_refused(marks: str) -> None:
    card = "\n".join(f"<!-- headprobe: {mark} a.json -->" for mark in marks.split())
    with pytest.raises(FileFormatError, match=r"lena/head-scores/README.md: the marks around the section of a.json"):
        merge_card(card, "ONE", "a.json", REPO)
