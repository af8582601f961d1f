from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from headprobe.errors import FileFormatError, OptionError
from headprobe.probes.haystack import Haystack, load_haystack


def haystack(*paragraphs: str) -> Haystack:
    return Haystack("mine", "0" * 64, paragraphs)


@pytest.mark.parametrize("name", ["essays", "stories", "handbook"])
def test_a_shipped_haystack_has_prose_and_its_sources(name: str) -> None:
    loaded = load_haystack(name)
    assert loaded.name == name
    assert loaded.num_words > 6_000
    assert all(source.startswith(f"{name}/") and source.endswith(".txt") for source in loaded.sources)
    assert loaded.sha256 == hashlib.sha256(loaded.text.encode()).hexdigest()


def test_all_is_the_shipped_haystacks_one_after_another() -> None:
    whole = load_haystack("all")
    parts = [load_haystack(name) for name in ("essays", "handbook", "stories")]
    assert whole.paragraphs == tuple(p for part in parts for p in part.paragraphs)
    assert whole.num_words >= 20_000


def test_no_paragraph_of_the_shipped_text_comes_twice() -> None:
    paragraphs = load_haystack("all").paragraphs
    assert len(set(paragraphs)) == len(paragraphs)


def test_text_files_are_split_at_empty_lines_and_spaces_are_normalised(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfOne\r\ntwo  three.\r\n \t\r\n\r\nFour.\r\n")
    loaded = load_haystack(file)
    assert loaded.paragraphs == ("One two three.", "Four.")
    assert loaded.name == "a"
    assert loaded.num_words == 4


def test_the_same_text_has_the_same_sha256_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.txt").write_text("A b.\n\nC d.\n", encoding="utf-8")
    (tmp_path / "y.txt").write_text("A  b.\n\n\nC d.", encoding="utf-8")
    assert load_haystack(tmp_path / "one").sha256 == load_haystack(tmp_path / "y.txt").sha256


def test_markdown_loses_its_marks(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(
        "---\ntitle: x\n---\n# Heading\nThe *first* **bold** `code` [link](http://x.y) text.\n\n"
        "Under\n=====\n\n```python\nsecret()\n```\n\n> Quoted text.\n\n- an item\n- another\n\n***\n"
        "<!-- note -->![picture](a.png)Last snake_case_word, _slanted_, 3 * 4 * 5.\n",
        encoding="utf-8",
    )
    assert load_haystack(file).paragraphs == (
        "The first bold code link text.",
        "Quoted text.",
        "an item",
        "another",
        "Last snake_case_word, slanted, 3 * 4 * 5.",
    )


def test_jsonl_takes_text_or_else_context(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [{"text": "One.\n\nTwo.", "context": "no"}, {"context": "Three."}]
    file.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    assert load_haystack(file).paragraphs == ("One.", "Two.", "Three.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON: Expecting property name"),
        ('{"body": "x"}', ":2: needs a string in the field 'text' or 'context'"),
        ('{"text": 3}', ":2: needs a string"),
        ("[1]", ":2: needs a string"),
        ("[" * 100_000, ":2: nested too deep"),
        ('{"text": "\\ud800"}', ":2: half of a surrogate pair"),
    ],
)
def test_a_bad_jsonl_line_is_reported_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line, encoding="utf-8")
    with pytest.raises(FileFormatError, match=message):
        load_haystack(file)


def test_a_folder_gives_its_files_by_name_without_readme_and_hidden_ones(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "B.",
        "a.md": "A.",
        "c.jsonl": '{"text": "C."}',
        "README.md": "no",
        ".d.txt": "no",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "e.pdf").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    loaded = load_haystack(tmp_path)
    assert loaded.paragraphs == ("A.", "B.", "C.")
    assert loaded.sources == tuple(f"{tmp_path.name}/{name}" for name in ("a.md", "b.txt", "c.jsonl"))
    assert loaded.name == tmp_path.name


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    latin, binary = tmp_path / "latin.txt", tmp_path / "binary.txt"
    latin.write_bytes(b"caf\xe9 noir")
    binary.write_bytes(b"a\x00b")
    with pytest.raises(FileFormatError, match=r"latin\.txt: not UTF-8: .* at byte 3"):
        load_haystack(latin)
    with pytest.raises(FileFormatError, match=r"binary\.txt: not a text file: a zero byte at character 1"):
        load_haystack(binary)


def test_empty_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileFormatError, match=r"a\.txt: holds no text"):
        load_haystack(tmp_path / "a.txt")
    with pytest.raises(FileFormatError, match=r"none: the folder holds no \.txt, \.md, \.jsonl file"):
        load_haystack(tmp_path / "none")


def test_unknown_names_and_kinds_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(OptionError, match="'novels'; there are essays, handbook, stories, all"):
        load_haystack("novels")
    with pytest.raises(OptionError, match=r"a\.pdf' ends in none of \.txt, \.md, \.jsonl"):
        load_haystack(tmp_path / "a.pdf")


def test_stretch_uses_every_paragraph_before_one_comes_again() -> None:
    text, repeats = haystack("aa", "bbb", "c").stretch(20)
    assert text == "aa\n\nbbb\n\nc\n\naa\n\nbbb\n\nc"
    assert repeats == pytest.approx(22 / 10)


def test_stretch_is_the_shortest_run_of_paragraphs_that_is_long_enough() -> None:
    random.seed(2)
    for _ in range(200):
        paragraphs = ["x" * random.randint(1, 9) for _ in range(random.randint(1, 5))]
        wanted = random.randint(0, 80)
        parts: list[str] = []
        while len("\n\n".join(parts)) < wanted:
            parts.append(paragraphs[len(parts) % len(paragraphs)])
        text, repeats = haystack(*paragraphs).stretch(wanted)
        assert text == "\n\n".join(parts)
        assert repeats == len(text) / len("\n\n".join(paragraphs))


def test_longer_stretches_begin_with_the_shorter_ones() -> None:
    loaded = load_haystack("essays")
    assert loaded.stretch(200_000)[0].startswith(loaded.stretch(30_000)[0])


def test_rotation_keeps_paragraphs_order_and_sha256() -> None:
    loaded = load_haystack("essays")
    assert loaded.rotated(0) is loaded
    starts = set()
    for seed in range(1, 30):
        turned = loaded.rotated(seed)
        start = loaded.paragraphs.index(turned.paragraphs[0])
        assert start > 0
        assert turned.paragraphs == loaded.paragraphs[start:] + loaded.paragraphs[:start]
        assert turned.sha256 == loaded.sha256
        starts.add(start)
    assert len(starts) > 10


def test_a_single_paragraph_cannot_be_rotated() -> None:
    assert haystack("a").rotated(5).paragraphs == ("a",)


def test_a_haystack_without_paragraphs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one paragraph"):
        haystack()


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("One.", encoding="utf-8")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(FileFormatError, match=r"a\.txt: cannot be read: Permission denied"):
        load_haystack(tmp_path / "a.txt")
