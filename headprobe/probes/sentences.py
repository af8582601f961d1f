"""Where sentences end in a text."""

from __future__ import annotations

import re

from headprobe.probes.scripts import GREEK, TERMINALS, UNSPACED

# All repetitions are possessive, and a run of stops is tried from its beginning only: the time is linear.
_CLOSERS = "\"'”’»)\\]"
_STOP = re.compile(
    rf"(?<![.?!…])(?P<stop>[.?!…]++)[{_CLOSERS}]*+(?=\s|\Z)"
    rf"|(?<=[{UNSPACED}])[.?!]++[{_CLOSERS}]*+(?=[{UNSPACED}])"
    rf"|(?<=[{GREEK}])[;\u037e][{_CLOSERS}]*+(?=\s|\Z)"
    rf"|(?:(?![.?!．])[{TERMINALS}]|．(?!\d))++[」』”’）】〉》»]*+(?:[{_CLOSERS}]++(?=\s|\Z))?"
)
_PARAGRAPH = re.compile(r"(?<=\S)[ \t]*+\n[ \t]*+\n")
_LOWER = re.compile(r"[ \t]*+(?:\n[ \t]*+)?[\"'“‘(]?([^\W\d_])")
_LAST_WORD = re.compile(r"[\w.]*\Z")
_TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Rev|Hon|Gen|Col|Capt|Lt|Sgt|Mt|vs|cf|viz|ca|approx|e\\.g|i\\.e"
_ABBREVIATION = re.compile(rf"{_TITLES}|(?:[A-Z]\.)*[A-HJ-Z]")
_BEFORE_NUMBER = re.compile(r"[Nn]os?|[Ff]igs?|[Vv]ol|[Cc]h|pp?|[Ee]q|[Ss]ec")


def sentence_ends(text: str) -> list[int]:
    """Positions right behind the sentences of `text` (behind a closing quote), ascending; its own end is among them.

    A sentence ends at ., ?, ! or an ellipsis before a space, unless the next word begins in lower case or the stop
    belongs to a common abbreviation or an initial; at every other mark that Unicode calls a sentence terminal (full-
    width stops, danda, Arabic full stop, ...), with or without a space; and at the end of a paragraph.

    >>> sentence_ends('Dr. Ray paid 3.50. "Why?" he asked. Gone')
    [18, 35, 40]
    >>> sentence_ends("वह आया। फिर गया।")
    [7, 16]
    """
    ends = {m.end() for m in _STOP.finditer(text) if not (m["stop"] and _goes_on(text, m))}
    ends |= {match.start() for match in _PARAGRAPH.finditer(text)}
    return sorted((ends | {len(text.rstrip())}) - {0})


def _goes_on(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence goes on behind this stop."""
    following = _LOWER.match(text, match.end())
    if following and following[1].islower():
        return True
    if match["stop"] != ".":
        return False
    found = _LAST_WORD.search(text[max(0, match.start() - 24) : match.start()])
    word = found[0] if found else ""
    before_number = text[match.end() : match.end() + 2].strip().isdigit()
    return bool(_ABBREVIATION.fullmatch(word) or (before_number and _BEFORE_NUMBER.fullmatch(word)))
