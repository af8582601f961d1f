from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import FileFormatError, OptionError
from headprobe.probes.needle import Needle, NeedleSet, load_needles
from headprobe.spans import Span

LINE: dict[str, Any] = {
    "id": "n1", "kind": "retrieval", "relation": "habit", "facts": ["Ada sings.", "Bo hums."], "answer": "Bo hums.",
    "distractor": "Ada sings.", "question": "What does Bo do?",
}  # fmt: skip
Write = Callable[..., Path]


def test_text_joins_the_facts_and_spans_point_into_it(make_needle: Callable[..., Needle]) -> None:
    needle = make_needle()
    assert needle.text == "Ada is 41 years old. Bo is 17 years old. Ada keeps a red hen. Bo keeps two black cats."
    assert needle.answer_characters == Span(41, 61)
    assert needle.distractor_characters == Span(62, 86)
    assert needle.text[41:61] == needle.answer


def test_a_needle_without_distractor_has_no_distractor_span(make_needle: Callable[..., Needle]) -> None:
    assert make_needle(distractor=None).distractor_characters is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "Ada keeps a blue hen."}, "answer 'Ada keeps a blue hen.' does not occur in the facts"),
        ({"answer": "years old"}, "answer 'years old' occurs more than once"),
        ({"distractor": "keeps"}, "distractor 'keeps' occurs more than once"),
        ({"distractor": "a red hen."}, "answer and distractor overlap"),
        ({"facts": ()}, "at least one sentence"),
        ({"facts": ("Ada keeps a red hen.", " ")}, r"facts\[1\] is empty"),
        ({"question": "What\nnow?"}, "question holds a line break"),
        ({"question": " What now?"}, "question holds a line break or needless spaces"),
        ({"id": "n\x001"}, "id holds a character that cannot be printed"),
        ({"relation": "\ud800"}, "relation holds a character that cannot be printed"),
        ({"kind": "riddle"}, "kind 'riddle' is none of retrieval, reasoning, nonliteral"),
    ],
)
def test_a_needle_that_cannot_be_planted_is_refused(
    make_needle: Callable[..., Needle], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_needle(**changes)


def test_a_set_refuses_the_same_id_twice(make_needle: Callable[..., Needle]) -> None:
    with pytest.raises(ValueError, match="'n1' is used more than once"):
        NeedleSet("mine", "", (make_needle(), make_needle()))


def test_a_file_gives_its_needles_its_stem_and_the_sha256_of_its_bytes(write_needles: Write) -> None:
    path = write_needles(LINE, "", {**LINE, "id": "n2", "distractor": None, "language": "de"})
    loaded = load_needles(path)
    assert loaded.name == "mine"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(n.id, n.distractor, n.language) for n in loaded.needles] == [
        ("n1", "Ada sings.", "en"),
        ("n2", None, "de"),
    ]
    assert len(loaded) == 2


def test_whitespace_is_normalised_and_windows_files_are_read(tmp_path: Path) -> None:
    line = {**LINE, "facts": [" Ada  sings.", "Bo\thums.\n"], "answer": "Bo hums. "}
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line).encode() + b"\r\n\r\n")
    assert load_needles(str(path)).needles[0].text == "Ada sings. Bo hums."


def test_a_line_separator_inside_a_string_does_not_end_the_line(write_needles: Write) -> None:
    line = json.dumps({**LINE, "question": "What\u2028does Bo do?"}, ensure_ascii=False)
    assert load_needles(write_needles(line)).needles[0].question == "What does Bo do?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ('{"id": 1} x', "not JSON: Extra data"),
        ("[]", "a needle is a JSON object, not list"),
        ("3", "a needle is a JSON object, not int"),
        ('{"id": "a", "id": "b"}', "a field is given twice"),
        ({**LINE, "distracter": "Ada sings."}, "unknown field 'distracter'; the fields are id, kind"),
        ({**LINE, "facts": "Ada sings."}, "facts must be a list of strings"),
        ({**LINE, "facts": ["Bo hums.", 3]}, "facts must be a list of strings"),
        ({**LINE, "id": 7}, "id must be a string, got 7"),
        ({**LINE, "answer": None}, "answer must be a string, got null"),
        ({**LINE, "kind": "riddle"}, "kind 'riddle' is none of"),
        ({**LINE, "answer": "Bo sings."}, "answer 'Bo sings.' does not occur in the facts"),
        ({**LINE, "answer": "  "}, "answer is empty"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_bad_line_is_reported_with_file_line_and_reason(write_needles: Write, line: Any, message: str) -> None:
    path = write_needles(LINE, "", line)
    with pytest.raises(FileFormatError, match=message) as caught:
        load_needles(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize("name", ["id", "kind", "relation", "answer", "question"])
def test_a_missing_field_is_named(write_needles: Write, name: str) -> None:
    line = {key: value for key, value in LINE.items() if key != name}
    with pytest.raises(FileFormatError, match=f":1: field '{name}' is missing"):
        load_needles(write_needles(line))


def test_bytes_that_are_not_utf8_are_reported_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\n")
    with pytest.raises(FileFormatError, match=":2: not UTF-8: invalid start byte at byte 0"):
        load_needles(path)


def test_a_repeated_id_names_both_lines(write_needles: Write) -> None:
    with pytest.raises(FileFormatError, match=":3: id 'n1' was used in line 1 already"):
        load_needles(write_needles(LINE, {**LINE, "id": "n2"}, LINE))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_needles_is_refused(write_needles: Write, text: str) -> None:
    with pytest.raises(FileFormatError, match=r"mine\.jsonl: holds no needle"):
        load_needles(write_needles(text))


def test_an_unknown_name_lists_the_sets_that_exist() -> None:
    with pytest.raises(OptionError, match="'retreival'; there are retrieval, reasoning, nonliteral"):
        load_needles("retreival")


def test_a_folder_is_no_needle_set(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no needle set and no file"):
        load_needles(tmp_path)


def test_a_file_that_cannot_be_read_says_why(write_needles: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write_needles(LINE)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FileFormatError, match=r"mine\.jsonl: cannot be read: Permission denied"):
        load_needles(path)
