"""A haystack: background prose in paragraphs, cycled through for as long a text as is wanted."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from headprobe.errors import FileFormatError, OptionError, refuse_empty
from headprobe.home import shipped_haystacks
from headprobe.probes.markdown import plain_text

PARAGRAPH_BREAK = "\n\n"
SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Haystack:
    """Paragraphs without line breaks. `sha256` is that of the paragraphs in file order, joined by empty lines."""

    name: str
    sha256: str
    paragraphs: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.paragraphs:
            raise ValueError("a haystack needs at least one paragraph")

    @property
    def text(self) -> str:
        """All paragraphs, once."""
        return PARAGRAPH_BREAK.join(self.paragraphs)

    @property
    def num_words(self) -> int:
        """Words of all paragraphs, by spaces."""
        return sum(len(paragraph.split()) for paragraph in self.paragraphs)

    def rotated(self, seed: int) -> Haystack:
        """The same paragraphs, starting at another one that `seed` decides; 0 changes nothing. Keeps `sha256`.

        >>> Haystack("h", "", ("a", "b")).rotated(1).paragraphs
        ('b', 'a')
        """
        if seed == 0 or len(self.paragraphs) == 1:
            return self
        digest = hashlib.sha256(str(seed).encode()).digest()
        start = 1 + int.from_bytes(digest[:8], "big") % (len(self.paragraphs) - 1)
        return replace(self, paragraphs=self.paragraphs[start:] + self.paragraphs[:start])

    def stretch(self, num_characters: int) -> tuple[str, float]:
        """The shortest run of whole paragraphs with at least `num_characters` characters, and how often it repeats.

        Paragraphs are joined by empty lines; none is repeated before all have been used. The second value is the run's
        characters over those of the whole haystack: up to 1.0 nothing is repeated.

        >>> Haystack("h", "", ("ab", "cd")).stretch(7)
        ('ab\\n\\ncd\\n\\nab', 1.6666666666666667)
        """
        if num_characters <= 0:
            return "", 0.0
        once = self.text
        rounds = num_characters // (len(once) + len(PARAGRAPH_BREAK))
        parts, length = [once] * rounds, rounds * (len(once) + len(PARAGRAPH_BREAK)) - len(PARAGRAPH_BREAK)
        following = cycle(self.paragraphs)
        while length < num_characters:
            parts.append(next(following))
            length += len(PARAGRAPH_BREAK) + len(parts[-1])
        text = PARAGRAPH_BREAK.join(parts)
        return text, len(text) / len(once)


def load_haystack(name_or_path: str | Path) -> Haystack:
    """A shipped haystack by its name (`all` for all of them), else the file or folder of that path.

    Files are `.txt`, `.md` (headings, code blocks and marks are dropped) or `.jsonl` (text in the field `text`, else
    `context`); a folder gives all such files in it, sorted by name, but for `README.md`. A shipped name takes
    precedence over a path of the same name (write `./essays` for the folder). Raises `OptionError` for an unknown name,
    `FileFormatError` for what cannot be read or holds no text.
    """
    refuse_empty({"haystack": name_or_path})
    shipped = shipped_haystacks()
    name, path = str(name_or_path), Path(name_or_path)
    if name == "all":
        files = [file for folder in shipped.values() for file in _files(folder)]
    elif name in shipped:
        files = _files(shipped[name])
    elif path.is_dir():
        name, files = path.resolve().name, _files(path)
    elif path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise OptionError(f"haystack {name!r} ends in none of {', '.join(SUFFIXES)}")
        name, files = path.stem, [path]
    else:
        raise OptionError(f"no haystack and no file or folder {name!r}; there are {', '.join([*shipped, 'all'])}")
    read = [(file, _paragraphs(file)) for file in files]
    paragraphs = tuple(paragraph for _, found in read for paragraph in found)
    if not paragraphs:
        raise FileFormatError("holds no text", name_or_path)
    digest = hashlib.sha256(PARAGRAPH_BREAK.join(paragraphs).encode()).hexdigest()
    return Haystack(name, digest, paragraphs, tuple(f"{file.parent.name}/{file.name}" for file, found in read if found))


def _files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()]
    files = sorted(file for file in files if file.name.lower() != "readme.md" and not file.name.startswith("."))
    if not files:
        raise FileFormatError(f"the folder holds no {', '.join(SUFFIXES)} file", folder)
    return files


def _paragraphs(file: Path) -> list[str]:
    text = _read(file)
    if file.suffix.lower() == ".jsonl":
        texts = [_record_text(line, file, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        texts = [plain_text(text) if file.suffix.lower() == ".md" else text]
    split = [" ".join(part.split()) for text in texts for part in re.split(r"\n[ \t]*\n", text)]
    return [paragraph for paragraph in split if paragraph]


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror}", file) from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"not UTF-8: {error.reason} at byte {error.start}", file) from error
    if "\x00" in text:
        raise FileFormatError(f"not a text file: a zero byte at character {text.index(chr(0))}", file)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record_text(line: str, file: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise FileFormatError("nested too deep", file, number) from error
    except ValueError as error:
        raise FileFormatError(f"not JSON: {error}", file, number) from error
    text = next((record[key] for key in ("text", "context") if key in record), None) if type(record) is dict else None
    if not isinstance(text, str):
        raise FileFormatError("needs a string in the field 'text' or 'context'", file, number)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FileFormatError(f"half of a surrogate pair at character {error.start}", file, number) from error
    return text
