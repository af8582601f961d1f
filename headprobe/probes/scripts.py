"""What writing systems differ in: words with and without spaces, forms of one letter, and where sentences end."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# What writing systems differ in: the marks that end a sentence, words with and without spaces, forms of one letter.

# Sentence_Terminal, Unicode 16.0 (PropList.txt), but for U+2024, a leader in rows of dots. As ranges of hex numbers.
_SENTENCE_TERMINAL = """
    0021 002E 003F 0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E
    1735-1736 17D4-17D5 1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F
    203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9
    AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89
    11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5
    1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42
    11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88
"""
_TIBETAN_SHAD = "0F0D-0F11"  # end a sentence or a clause; not in the property, and the only stops that Tibetan has

# Blocks of scripts that put no space between words: those of Line_Break=SA (Thai, Lao, Khmer, ...), Chinese, Japanese,
# Tibetan, Yi, Javanese and Balinese. Korean, Ethiopic and the scripts of India have spaces.
_UNSPACED = """
    0E00-0E7F 0E80-0EFF 0F00-0FFF 1000-109F 1780-17FF 1950-197F 1980-19FF 1A20-1AAF 1B00-1B7F 2E80-2FDF 3005-3007
    3021-3029 3031-3035 3038-303C 3040-30FF 3100-312F 31A0-31BF 31F0-31FF 3400-4DBF 4E00-9FFF A000-A4CF A980-A9FF
    AA60-AADF F900-FAFF 1AFF0-1B16F 20000-3FFFD
"""
_FORMS = ("<wide>", "<narrow>", "<vertical>", "<small>", "<initial>", "<medial>", "<final>", "<isolated>")
_INVISIBLE = "00AD 034F 061C 180B-180F 200B-200F 202A-202E 2060-206F FE00-FE0F FEFF E0100-E01EF"


def _character_class(*ranges: str) -> str:
    """Ranges of hex numbers as what stands between the brackets of a regular expression."""
    ends = [part.split("-") for text in ranges for part in text.split()]
    return "".join(re.escape(chr(int(e[0], 16))) + "-" + re.escape(chr(int(e[-1], 16))) for e in ends)


TERMINALS = _character_class(_SENTENCE_TERMINAL, _TIBETAN_SHAD)
UNSPACED = _character_class(_UNSPACED)
GREEK = _character_class("0370-037D", "037F-03FF", "1F00-1FFF")  # where a semicolon is the question mark
_terminal, _unspaced, _greek = (re.compile(f"[{ranges}]") for ranges in (TERMINALS, UNSPACED, GREEK))
_invisible = re.compile(f"[{_character_class(_INVISIBLE)}]")


def ends_sentence(text: str, place: int) -> bool:
    """Whether the character at `place` is a mark that ends sentences; a semicolon is one behind a Greek letter.

    >>> ends_sentence("है।", 2), ends_sentence("τι;", 2), ends_sentence("so;", 2)
    (True, True, False)
    """
    if text[place] in ";\u037e":
        return place > 0 and bool(_greek.match(text, place - 1))
    return bool(_terminal.match(text, place))


def is_unspaced(character: str) -> bool:
    """Whether this is a letter or mark of a script that puts no spaces between words."""
    return bool(_unspaced.match(character)) and unicodedata.category(character)[0] in "LMN"


def is_mark(character: str) -> bool:
    """Whether this belongs to the character before it: an accent, a vowel sign, a tone."""
    return unicodedata.category(character)[0] == "M"


@lru_cache(maxsize=4096)
def _plain_form(character: str) -> str:
    if unicodedata.decomposition(character).startswith(_FORMS):
        return unicodedata.normalize("NFKC", character)
    return character


def fold(text: str) -> str:
    """`text` in NFC, with full-width, half-width and positional forms as the plain letter, without invisible marks.

    Invisible are joiners (ZWJ, ZWNJ), marks of direction, soft hyphens, variation selectors.

    >>> fold("３匹！"), fold("ｶﾞ"), fold("e\\u0301") == "é", fold("می\\u200cرود") == "میرود"
    ('3匹!', 'ガ', True, True)
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(map(_plain_form, _invisible.sub("", text))))


def set_apart(text: str) -> str:
    """`text` with spaces around every character of a script that has none, so that `split` gives what to count.

    A character keeps the marks behind it.

    >>> set_apart("Adaは3匹").split(), set_apart("มีนา").split()
    (['Ada', 'は', '3', '匹'], ['มี', 'น', 'า'])
    """
    parts: list[str] = []
    was_unspaced = False
    for character in text:
        if not is_mark(character):
            unspaced = is_unspaced(character)
            parts += [" "] if unspaced or was_unspaced else []
            was_unspaced = unspaced
        parts.append(character)
    return "".join(parts)


_JOINERS = "\u200c\u200d"
_FOLLOWING_VOWELS = frozenset(
    "\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6"
)  # Thai and Lao, written as letters
_LEADING_VOWELS = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
_VIRAMA = 9  # canonical combining class: what joins a consonant to the next
_ASAT = "\u103a"  # of that class too, but ends a syllable of Burmese


def may_cut(text: str, place: int) -> bool:
    """Whether `text` may be cut before the character at `place`: not inside a letter with its marks, or an emoji.

    >>> [may_cut("กำ", 1), may_cut("क्ष", 2), may_cut("中文", 1), may_cut("e\\u0301", 1)]
    [False, False, True, False]
    """
    if not 0 < place < len(text):
        return True
    before, after = text[place - 1], text[place]
    joins = unicodedata.combining(before) == _VIRAMA and before != _ASAT and after.isalpha()
    if is_mark(after) or _invisible.match(after) or before in _JOINERS or joins:
        return False
    if after in _FOLLOWING_VOWELS or before in _LEADING_VOWELS or "\u1160" <= after <= "\u11ff":
        return False
    flags = all("\U0001f1e6" <= character <= "\U0001f1ff" for character in (before, after))
    return not flags and not "\U0001f3fb" <= after <= "\U0001f3ff"


# Where sentences end in a text.

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
