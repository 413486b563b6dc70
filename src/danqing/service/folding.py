"""One text for its many spellings: case, width, accents, separators, invisible signs, lookalike letters. Knows no list.

What Unicode itself calls compatible (full width, mathematical letters, ligatures) NFKD unfolds. The rest is
tables (lookalikes.py): letters that only look Latin, traditional Chinese, signs and digits that stand for letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cache
from string import ascii_lowercase

import numpy as np
import numpy.typing as npt

from danqing.service.lookalikes import (
    SIGNS,
    SIGNS_BETWEEN,
    Table,
    high_letters,
    latin,
    others,
    simplified,
)

TEXT_CHARS_MAX = 100_000
"""Of a longer text the end is looked at: no prompt is that long, and a history's end matters most."""

# Scripts written without blanks between words: there, a term may begin and end anywhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003347f"
)
_ANY_UNSPACED = re.compile(f"[{_UNSPACED}]")
_NO_WORD = re.compile(r"[\W_]+")
_NO_SPACED_WORD = re.compile(rf"[\W_{_UNSPACED}]+")
_SPELLED = re.compile(r"(?<= )(?:\w ){2,}\w(?= )")

_SPELLED_CHARS_MAX = 60
# But for white space and the separators, these show nothing.
_CONTROLS = "\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
_CONTROL = re.compile(f"[{_CONTROLS}]")
# ASCII, Chinese characters and their punctuation: nothing to unfold.
_COMMON = re.compile("[\t-\r\x1c-\x7e\u3001\u3002\u4e00-\u9fff！（），：；？“”]*")

_DIGITS = {
    ord(digit): letter
    for digit, letter in {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t"}.items()
}
_LETTER = r"[^\W\d_]"
# Only from the first of a run on, and the whole of it: anything else costs the square of its length.
_BESIDE = "".join(SIGNS)
_SIGN = re.compile(
    rf"(?<={_LETTER})[{_BESIDE}]++|(?<![{_BESIDE}])[{_BESIDE}]++(?={_LETTER})"
    rf"|(?<={_LETTER})[{''.join(SIGNS_BETWEEN)}](?={_LETTER})"
)
_ANY_SIGN = re.compile(f"[{_BESIDE}{''.join(SIGNS_BETWEEN)}]")
_SIGN_LETTERS = str.maketrans(SIGNS | SIGNS_BETWEEN)
_ANY_DIGIT = re.compile("[013457]")
_ASCII_LETTER = re.compile("[a-z]")
# Words with two letters at least; from their first letter on, for the same reason.
_WORD_WITH_DIGIT = re.compile(r"(?<!\w)(?=\w*[03457])(?=\w*?[a-z]\w*?[a-z])\w++")
_WORD_WITH_ONE = re.compile(r"(?<!\w)(?=\w*1)(?=\w*?[a-z]\w*?[a-z])\w++")
_WORD_NOT_ASCII = re.compile(r"(?<!\w)(?=\w*[^\W\x00-\x7f])\w++")

# Parts of words with signs between them and no blank: "bo-mb", "re*tire".
_PART = rf"[^\W_{_UNSPACED}]"
_TIGHT = re.compile(rf"[\W_](?<!\s)(?<={_PART}.)(?:_|[^\w\s]){{0,2}}{_PART}", re.DOTALL)
_CUT = re.compile(rf"(?<!{_PART}){_PART}++(?:(?:_|[^\w\s]){{1,3}}{_PART}++)+")
_PARTS = re.compile(f"{_PART}+")
# One letter of a word hidden, as one writes what one does not write out: "b*mb". Signs that stand for nothing else there.
_MASK = re.compile("[*#•∗✱](?<=[a-z].)(?=[a-z])")
_MASKED_BEFORE = re.compile(rf"(?<!{_PART})[a-z]+$")
_MASKED_AFTER = re.compile(rf"[a-z]++(?!{_PART})")
_MASKED_PART_MAX = 24  # letters to either side
_MASKED_SEEN_MIN = 3  # letters: two and a sign are as good as any word
_MASKED_MAX = 16  # words, each of which is tried with every letter
# An apostrophe before the end of a contraction, and of the text around; what is before it `_contracted` looks at.
_APOSTROPHE = re.compile(rf"['’](?=(ll|re|ve|[dmst])(?!(?:_|[^\w\s]){{0,3}}{_PART}))")
_WORD_BEFORE = re.compile(rf"(?:^|[\s{_UNSPACED}])(?:_|[^\w\s])*+([a-z]+)$")
_BEFORE_CHARS_MAX = 16  # the longest word of _CONTRACTED, three signs and a letter before them
_PERSONS = "i you he she it we they who "
_OTHERS = "that this there here what where when why how "
_CONTRACTED = {
    ending: frozenset(before.split())
    for ending, before in {
        "ll": _PERSONS + _OTHERS,
        "re": "you we they who these those " + _OTHERS,
        "ve": "i you we they who would could should might must not " + _OTHERS,
        "d": _PERSONS + _OTHERS,
        "m": "i",
        "s": "he she it who let one " + _OTHERS,
        "t": "can won don isn aren wasn weren doesn didn hasn haven hadn couldn shouldn wouldn mustn needn shan ain",
    }.items()
}
"""What English contracts, by the ending: all else with an apostrophe may be a word that was cut up."""
_WINDOW_MAX = 4
"""Of a word cut up beside others ("x-bo-m-b-x"), the parts that are tried together."""


def fold(text: str) -> str:
    """The text without case, width, accents and invisible characters (NFKD, marks removed, NFC), in simplified Chinese.

    At most the last TEXT_CHARS_MAX characters, also of what one character may unfold to.
    """
    if text.isascii():
        return _CONTROL.sub("", text[-TEXT_CHARS_MAX:]).lower()
    if _COMMON.fullmatch(text, max(0, len(text) - TEXT_CHARS_MAX)):
        return _simplified(text[-TEXT_CHARS_MAX:].lower())
    # Marks go first too: ordering a long run of them would cost the square of its length.
    unfolded = unicodedata.normalize("NFKD", _bare(text[-TEXT_CHARS_MAX:]))[-TEXT_CHARS_MAX:]
    bare = _any_of(latin).sub(lambda match: latin()[ord(match[0])], _bare(unfolded.casefold()))
    return _simplified(unicodedata.normalize("NFC", bare))


def is_unspaced(folded: str) -> bool:
    """Whether the text has any letter of a script without blanks between its words."""
    return _ANY_UNSPACED.search(folded) is not None


def is_blank(folded: str) -> bool:
    """Whether nothing of the text is a letter or digit."""
    return not _NO_WORD.sub("", folded)


def words(folded: str) -> str:
    """The words of spaced scripts, one blank around each: " make a bomb "."""
    return f" {_NO_SPACED_WORD.sub(' ', folded).strip()} "


def word_patterns(folded: str) -> Iterator[str]:
    """What a term looks like in `word_readings`; one of several words also as one that was spelled out."""
    plain = words(folded)
    yield plain
    if plain.count(" ") > 2:
        yield _whole(plain.replace(" ", ""))


def squeeze(folded: str) -> str:
    """Letters and digits alone, as terms of unspaced scripts are looked for."""
    return _NO_WORD.sub("", folded)


def kept_apart(phrases: Iterable[str]) -> frozenset[str]:
    """Folded phrases of several words, none of which is a word that was cut up: "re-tire" is no "retire"."""
    plain = [words(phrase).strip() for phrase in phrases]
    several = [phrase for phrase in plain if " " in phrase]
    return frozenset(several) | {phrase.replace(" ", "") for phrase in several}


def word_readings(folded: str, apart: Set[str] = frozenset()) -> Iterator[str]:
    """What the words may be read as: as they stand, spelled out or cut up and joined ("a-b-c", "ab-c"), lookalikes as Latin.

    `apart`: what stays apart though nothing but a sign is between its parts, as `kept_apart` has it.
    """
    plain = words(folded)
    yield plain
    joined = _respelled(folded, plain, apart)
    if joined != plain:
        yield joined
    signed = folded
    if _ANY_SIGN.search(folded) is not None:
        signed = _SIGN.sub(lambda match: match[0].translate(_SIGN_LETTERS), folded)
    if signed == folded and plain.isascii() and _ANY_DIGIT.search(plain) is None:
        return
    base = joined if signed == folded else _respelled(signed, words(signed), apart)
    seen = base if base.isascii() else _latin(base)
    lettered = _WORD_WITH_DIGIT.sub(lambda match: match[0].translate(_DIGITS), seen)
    if "1" not in base:
        if lettered != joined:
            yield lettered
        return
    for one in "il":
        yield _WORD_WITH_ONE.sub(lambda match, one=one: match[0].replace("1", one), lettered)


def squeezed_readings(folded: str) -> Iterator[str]:
    """The same for unspaced scripts; their terms may have Latin letters in them."""
    if folded.isascii() or not is_unspaced(folded):
        return
    squeezed = squeeze(folded)
    yield squeezed
    if _any_of(others).search(squeezed) is not None:
        yield _mapped(squeezed, others)


def _respelled(folded: str, plain: str, apart: Set[str]) -> str:
    return _joined(plain) + _mended(folded, apart)


def _mended(folded: str, apart: Set[str]) -> str:
    """The text once more with what was cut up put together, and what may be a word within it; nothing where nothing was.

    All must stand together without a blank: who writes "pen is" means two words, and who writes "he'll" no "hell".
    """
    if _TIGHT.search(folded) is None:
        return ""
    folded = _APOSTROPHE.sub(_contracted, folded)
    windows = _unmasked(folded, apart)

    def join(match: re.Match[str]) -> str:
        parts = _PARTS.findall(match[0])
        whole = "".join(parts)
        if len(whole) == len(parts):
            return match[0]  # letter by letter: `_joined` has it
        for size in range(2, min(_WINDOW_MAX + 1, len(parts))):
            columns = [parts[at:] for at in range(size)]
            seen = list(map("".join, zip(*columns, strict=False)))
            if not apart.isdisjoint(seen):
                runs = zip(*columns, strict=False)
                seen = [
                    word
                    for word, run in zip(seen, runs, strict=True)
                    if word not in apart or " ".join(run) not in apart
                ]
            windows.append(" ".join(seen))  # thousands of strings kept at once are slow to make
        if whole in apart and " ".join(parts) in apart:
            return match[0]
        if len(whole) <= _SPELLED_CHARS_MAX:
            windows.append(f"\0{whole}\0")  # it may be several words
        return whole

    mended = _CUT.sub(join, folded)
    if mended == folded and not windows:
        return ""
    whole = words(mended)
    return f"{whole} {' '.join(windows)} " if windows else whole


def _unmasked(folded: str, apart: Set[str]) -> list[str]:
    """What the words with a masked letter may be; a text with many has its first ones read."""
    found: set[tuple[str, str]] = set()
    for mask in _MASK.finditer(folded):
        at, end = mask.span()
        before = _MASKED_BEFORE.search(folded, max(0, at - _MASKED_PART_MAX), at)
        after = _MASKED_AFTER.match(folded, end, end + _MASKED_PART_MAX)
        if before is None or after is None or len(before[0] + after[0]) < _MASKED_SEEN_MIN:
            continue
        if f"{before[0]} {after[0]}" not in apart:
            found.add((before[0], after[0]))
            if len(found) == _MASKED_MAX:
                break
    return [f"{before}{letter}{after}" for before, after in found for letter in ascii_lowercase]


def _contracted(match: re.Match[str]) -> str:
    """A blank for the apostrophe of a contraction that stands alone: "he'll", but neither "s'he'll" nor "ki'll"."""
    before = match.string[max(0, match.start() - _BEFORE_CHARS_MAX) : match.start()]
    word = _WORD_BEFORE.search(before)
    return match[0] if word is None or word[1] not in _CONTRACTED[match[1]] else " "


def _joined(spaced: str) -> str:
    """Words that were spelled out, joined; at the end once more without the letters that may be no part of them ("a b-o-m-b")."""
    parts: list[str] = []

    def join(match: re.Match[str]) -> str:
        word = match[0].replace(" ", "")
        if len(word) <= _SPELLED_CHARS_MAX:
            shorter = (word[1:], word[:-1], word[1:-1])
            parts.extend(shorter)
            parts.extend(_whole(part).strip() for part in (word, *shorter))
        return word

    joined = _SPELLED.sub(join, spaced)
    return f"{joined}{' '.join(parts)} " if parts else joined


def _whole(spelled: str) -> str:
    """A spelled-out run: it may be several words ("t-h-e-s-e t-w-o"), which no word of a text is taken for."""
    return f" \0{spelled}\0 "


def _latin(spaced: str) -> str:
    """Words of lookalikes as Latin ones. A word that is whole in another alphabet stays in a text of that alphabet."""
    whole = _mapped(spaced, others)
    if whole.isascii():
        return whole

    table = others()

    def read(match: re.Match[str]) -> str:
        word = match[0]
        seen = word.translate(table)
        return seen if seen.isascii() and _ASCII_LETTER.search(word) else word

    return _WORD_NOT_ASCII.sub(read, spaced)


def _simplified(text: str) -> str:
    return text if _any_of(simplified).search(text) is None else _mapped(text, simplified)


def _mapped(text: str, table: Callable[[], Table]) -> str:
    """`text.translate` by a table of single letters below U+10000, in a tenth of its time: a text has thousands."""
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)
    return _units(table)[units].tobytes().decode("utf-16-le", "surrogatepass")


@cache
def _units(table: Callable[[], Table]) -> npt.NDArray[np.uint16]:
    units = np.arange(0x10000, dtype=np.uint16)
    for code, letter in table().items():
        units[code] = ord(letter)
    return units


def _bare(text: str) -> str:
    low, high = _marks()
    text = low.sub("", text)
    if not text or max(text) <= "\uffff":
        return text
    return high.sub("", text).translate(high_letters())


@cache
def _any_of(table: Callable[[], Table]) -> re.Pattern[str]:
    return re.compile("[" + "".join(map(chr, table())) + "]")


@cache
def _marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Combining marks, format characters (zero-width joiners and the like) and blank letters.

    Two patterns, to U+FFFF and above: a set within the first plane is looked up in one step.
    """

    def pattern(*planes: range) -> re.Pattern[str]:
        found = [
            re.escape(char)
            for plane in planes
            for char in map(chr, plane)
            if unicodedata.category(char) in ("Mn", "Me", "Cf") or unicodedata.combining(char)
        ]
        return re.compile("[" + "".join(found) + "\u115f\u1160\u3164\uffa0" + _CONTROLS + "]+")

    return pattern(range(0x10000)), pattern(range(0x10000, 0x20000), range(0xE0000, 0xE0200))
