"""Two outputs in one place, or an output in the place of an input, lose a file; both are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from headprobe.errors import OptionError
from headprobe.scores.files import refuse_one_place, same_place


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.json", "a.json"),
        ("a.json", "./x/../a.json"),
        ("a.json", "A.JSON"),
        ("a.json", "link.json"),
        ("new/a.json", "folder/a.json"),
        ("caf\u00e9.json", "cafe\u0301.json"),
    ],
)
def test_spellings_of_one_file_are_seen_through(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "link.json").symlink_to("a.json")
    (tmp_path / "folder").symlink_to("new")
    assert same_place(first, second)
    with pytest.raises(OptionError) as caught:
        refuse_one_place({"-o": first, "--dump-prompts": second, "--other": None})
    assert str(caught.value) == f"-o {first} and --dump-prompts {second} are the same file: give each its own name"


def test_different_files_go_through() -> None:
    outputs = {"-o": "a.json", "--dump-prompts": "b.json"}
    assert refuse_one_place(outputs, {"--needles": "a.jsonl", "--haystack": None}) is None
    with pytest.raises(OptionError, match=r"--dump-prompts b.json and --needles b.json are the same file"):
        refuse_one_place(outputs, {"--needles": "b.json", "--haystack": None})


def test_an_output_in_the_place_of_an_input_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^-o x/../a.json and IN a.json are the same file: the input would be lost$"):
        refuse_one_place({"-o": "x/../a.json"}, {"IN": "a.json"})
