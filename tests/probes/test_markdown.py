from __future__ import annotations

import time

import pytest

from headprobe.probes.markdown import plain_text
from tests.linear_time import grows_linearly


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("a **bold** and ***both*** x", "a bold and both x"),
        ("line **one\nand** two", "line one\nand two"),
        ("__strong__ snake_case_name _slanted_, 3 * 4 * 5", "strong snake_case_name slanted, 3 * 4 * 5"),
        ("an *open mark", "an *open mark"),
        ("*a *b* c", "*a b c"),
        (r"\*not\* a \mark", r"*not* a \mark"),
        ("`a *b* c` and ``x ` y`` and `open", "a *b* c and x ` y and `open"),
        ("[a *b*](http://x.y) [c][1] [d] (e)", "a b [c][1] [d] (e)"),
        ("x ![a [b](c)](d) y *z*", "x  y z"),
        ("# One #\nText\n\n####### Seven", "Text\n\n####### Seven"),
        ("Heading\n---\nText\n***\nMore\n- - -\nEnd", "Text\n\nMore\n\nEnd"),
        ("text\n- one\n  two\n- three\n\n1. four", "text\n\none\n  two\n\nthree\n\nfour"),
        ("> q1\n> q2\n>\n>> q3", "q1\nq2\n\nq3"),
        ("a\n~~~\ncode\n```\nmore\n~~~\nb", "a\n\nb"),
        ("a\n````x\n```\n````\nb\n```\nnever closed", "a\n\nb"),
        ("```inline``` text", "inline text"),
        ("a <!-- x\n```\n\n--> b <!-- open", "a \n b <!-- open"),
        ("---\ntitle: x\n---\nText", "Text"),
        ("---\nno end", "no end"),
        ("", ""),
    ],
)
def test_marks_are_taken_off_and_what_is_no_prose_is_dropped(markdown: str, expected: str) -> None:
    assert plain_text(markdown) == expected


PIECES = (
        "The cat sat. ", "<!--", "<!-- a -->", "*a ", "a* ", "**a ", "_a ", "`a ", "``a`", "[", "[a](", "![", "[a](b) ",
        "](", "\n", "a\n=\n", "- ", "> ", ">", "```\n", "~~~ a\n", "\\*", "1. ", " ", "*", "a*b", "#", "---\n",
        "<!--\n-->",
)  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_the_time_is_linear_whatever_the_marks(piece: str) -> None:
    assert grows_linearly(lambda size: plain_text(piece * (size // len(piece))), 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_takes_seconds_whatever_the_marks(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    begin = time.process_time()
    plain_text(text)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(("sentences", "seconds"), [(30_000, 3), pytest.param(150_000, 15, marks=pytest.mark.slow)])
def test_a_paragraph_of_megabytes_takes_seconds(sentences: int, seconds: float) -> None:
    begin = time.process_time()
    assert len(plain_text("The *cat* sat on the `mat` again. " * sentences)) == sentences * 30
    assert time.process_time() - begin < seconds


def test_runs_of_backticks_of_all_lengths_take_seconds() -> None:
    begin = time.process_time()
    plain_text(" ".join("`" * length for length in range(1, 3000)) * 2)
    assert time.process_time() - begin < 10
