"""Markdown without its marks, in one pass over the lines and one over the characters of each paragraph."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Each is matched once, at the beginning of a line or at one place, and cannot be tried in two ways: the time is linear.
_FENCE = re.compile(r"[ \t]*(?P<marks>`{3,}|~{3,})(?P<rest>[^\n]*)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
_QUOTE = re.compile(r"[ \t]*(?:>[ \t]?)+")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+")
_MARK = re.compile(r"\\.|!\[|\[|\]|`+|\*+|_+", re.DOTALL)
_ESCAPABLE = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_RULES = frozenset("-*_")
_LONGEST_RUN = 2  # of * or _: one slants, two make bold; longer runs are taken in twos and ones


def plain_text(markdown: str) -> str:
    """The prose of `markdown`; paragraphs are apart by an empty line, and every list item is one.

    Front matter, code blocks, comments, headings, rules, pictures and the targets of links are dropped, marks of bold,
    italics, code and quotes are taken off. The time is linear in the length. Line breaks must be `\\n`.

    >>> plain_text("# Title\\nThe *first* **bold** [link](http://x.y).\\n- an item")
    'The first bold link.\\n\\nan item'
    """
    paragraphs: list[list[str]] = [[]]
    for line in _prose_lines(_without_front_matter(markdown)):
        is_underline = bool(line and paragraphs[-1] and _UNDERLINE.match(line))
        if is_underline:
            paragraphs[-1].pop()  # the line above it was a heading
        if not line or is_underline or not line.strip() or _HEADING.match(line) or _is_rule(line):
            _begin(paragraphs)
        else:
            _add(paragraphs, line)
    return "\n\n".join(_without_marks("\n".join(lines)) for lines in paragraphs if lines)


def _begin(paragraphs: list[list[str]]) -> None:
    if paragraphs[-1]:
        paragraphs.append([])


def _add(paragraphs: list[list[str]], line: str) -> None:
    """A line of prose to the last paragraph; an item of a list begins one of its own."""
    quote = _QUOTE.match(line)
    line = line[quote.end() :] if quote else line
    item = _ITEM.match(line)
    if item or not line.strip():
        _begin(paragraphs)
    if line.strip():
        paragraphs[-1].append(line[item.end() :] if item else line)


def _without_front_matter(text: str) -> str:
    end = text.find("\n---\n", 3) if text.startswith("---\n") else -1
    return text[end + 5 :] if end >= 0 else text


def _is_rule(line: str) -> bool:
    marks = line.replace(" ", "").replace("\t", "")
    return (
        len(marks) >= 3 and marks[0] in _RULES and marks == marks[0] * len(marks) and len(line) - len(line.lstrip()) < 4
    )


def _prose_lines(text: str) -> Iterator[str]:
    """The lines outside of code blocks, without comments."""
    fence, commenting, last_end = "", False, text.rfind("-->")
    place = 0
    for line in text.split("\n"):
        begin, place = place, place + len(line) + 1
        if not line:
            yield from () if commenting else ("",)
        elif fence:
            fence = "" if _closes(line, fence) else fence
        elif not commenting and (opening := _opens(line)):
            fence = opening
            yield ""
        else:
            prose, commenting = _without_comments(line, commenting, last_end - begin)
            if prose:
                yield prose


def _opens(line: str) -> str:
    """The fence of a code block that begins here; backticks with others behind them are a code span."""
    found = _FENCE.match(line)
    is_span = found is not None and found["marks"][0] == "`" and "`" in found["rest"]
    return "" if found is None or is_span else found["marks"]


def _closes(line: str, fence: str) -> bool:
    bare = line.strip(" \t")
    return len(bare) >= len(fence) and bare == fence[0] * len(bare)


def _without_comments(line: str, commenting: bool, last_end: int) -> tuple[str, bool]:
    """The line without comments, and whether one goes on behind it; a comment that nothing ends is text."""
    kept: list[str] = []
    place = 0
    while True:
        found = line.find("-->" if commenting else "<!--", place)
        if commenting:
            if found < 0:
                return "".join(kept), True
            place, commenting = found + 3, False
        elif found < 0 or found + 4 > last_end:
            return "".join([*kept, line[place:]]), False
        else:
            kept.append(line[place:found])
            place, commenting = found + 4, True


# -- inside a paragraph ---------------------------------------------------------------------------------------------


class _Inline:
    """One pass over a paragraph: `parts` is what is kept; an open mark is a part of its own, emptied once closed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.parts: list[str] = []
        self.open: dict[str, list[int]] = {}  # by mark, the parts that opened it
        self.brackets: list[tuple[int, bool]] = []  # the part, and whether it is a picture's
        self.last_round = text.rfind(")")
        self.runs = _last_runs(text)

    def read(self) -> str:
        place = 0
        while found := _MARK.search(self.text, place):
            self.parts.append(self.text[place : found.start()])
            place = self._mark(found)
        self.parts.append(self.text[place:])
        return "".join(self.parts)

    def _mark(self, found: re.Match[str]) -> int:
        """Deal with a mark; gives where to go on."""
        mark = found[0]
        if mark[0] == "\\":
            self.parts.append(mark[1:] if mark[1] in _ESCAPABLE else mark)
        elif mark[0] == "`":
            return self._code(mark, found.end())
        elif mark in ("[", "!["):
            self.brackets.append((len(self.parts), mark == "!["))
            self.parts.append(mark)
        elif mark == "]":
            return self._bracket(found.end())
        else:
            self._stress(mark, found.start())
        return found.end()

    def _code(self, mark: str, place: int) -> int:
        """A code span ends at the next run of as many backticks; without one the marks are text."""
        if place <= self.runs.get(len(mark), -1):
            for run in re.compile("`+").finditer(self.text, place):
                if len(run[0]) == len(mark):
                    self.parts.append(self.text[place : run.start()])
                    return run.end()
        self.parts.append(mark)
        return place

    def _bracket(self, place: int) -> int:
        """Close a link or picture where a target in round brackets follows."""
        opened = self.brackets.pop() if self.brackets else None
        if opened and self.text.startswith("(", place) and place < self.last_round:
            part, is_picture = opened
            if is_picture:
                self._drop_from(part)
            else:
                self.parts[part] = ""
            return self.text.index(")", place) + 1
        self.parts.append("]")
        return place

    def _drop_from(self, part: int) -> None:
        """Forget the parts from this one on, and the marks that were opened in them."""
        del self.parts[part:]
        for opened in self.open.values():
            while opened and opened[-1] >= part:
                opened.pop()

    def _stress(self, run: str, start: int) -> None:
        """Bold or slanted: a mark opens before a word and closes behind one; `_` not inside a word."""
        before, after = self.text[start - 1 : start], self.text[start + len(run) : start + len(run) + 1]
        inside = run[0] == "_" and before.isalnum() and after.isalnum()
        closes, opens = bool(before.strip()) and not inside, bool(after.strip()) and not inside
        if run[0] == "_":
            closes, opens = closes and not after.isalnum(), opens and not before.isalnum()
        while run:
            mark = run[:_LONGEST_RUN]
            if closes and not self.open.get(mark) and len(mark) == 2 and self.open.get(mark[0]):
                mark = mark[0]
            run = run[len(mark) :]
            if closes and self.open.get(mark):
                self.parts[self.open[mark].pop()] = ""
                continue
            if opens:
                self.open.setdefault(mark, []).append(len(self.parts))
            self.parts.append(mark)


def _without_marks(paragraph: str) -> str:
    return _Inline(paragraph).read()


def _last_runs(text: str) -> dict[int, int]:
    """By length of a run of backticks, where the last one begins."""
    return {len(run[0]): run.start() for run in re.finditer("`+", text)}
