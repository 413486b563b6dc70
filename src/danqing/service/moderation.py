"""Text moderation by word lists: folded text, many patterns at once, a level for each role. Draws nothing, asks nobody.

Levels are Zhipu's (wire facts 2.1): 0 the worst, 3 nothing found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from ahocorasick_rs import AhoCorasick

from danqing.domain.errors import ContentRefused
from danqing.domain.task import SafetyLevel

Role = Literal["user", "assistant", "history"]

LEVEL_NONE = 3
TEXT_CHARS_MAX = 100_000
"""Of a longer text the end is looked at: no prompt is that long, and a history's end matters most."""
TERM_CHARS_MAX = 100

# Scripts written without blanks between words: there, a term may begin and end anywhere.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f"
    "\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003347f"
)
_ANY_UNSPACED = re.compile(f"[{_UNSPACED}]")
_NO_WORD = re.compile(r"[\W_]+")
_NO_SPACED_WORD = re.compile(rf"[\W_{_UNSPACED}]+")
_SPELLED = re.compile(r"(?<= )(?:\w ){2,}\w(?= )")


class Entry(NamedTuple):
    """One line of a word list."""

    term: str
    level: int
    category: str


class TextModerator:
    """Finds the worst listed term of a text. Immutable: a reload makes a new one."""

    def __init__(
        self, paths: Iterable[Path] = (), *, entries: Iterable[Entry] = (), block_level: int = 1
    ) -> None:
        """`block_level`: what is found at this level or worse is refused; -1 refuses nothing.

        Raises ValueError naming the file and line of a list that cannot be read.
        """
        listed = [entry for path in paths for entry in read_list(path)]
        listed += [_checked(entry) for entry in entries]
        self._block_level = block_level
        self._levels = [
            _Level([entry for entry in listed if entry.level == level])
            for level in sorted({entry.level for entry in listed})
        ]

    def find(self, text: str) -> Entry | None:
        """A listed term of the worst level that occurs in the text; None when there is none."""
        folded = fold(text)
        words = _words(folded)
        spelled = _SPELLED.sub(lambda match: match[0].replace(" ", ""), words)
        squeezed = "" if folded.isascii() else _NO_WORD.sub("", folded)
        for level in self._levels:
            entry = level.find(words, squeezed) or (spelled != words and level.find(spelled, ""))
            if entry:
                return entry
        return None

    def check(self, text: str, role: Role) -> SafetyLevel:
        """The text's level: that of the worst term found, else 3."""
        entry = self.find(text)
        return SafetyLevel(role, entry.level if entry else LEVEL_NONE)

    def require(self, texts: Mapping[Role, Sequence[str]]) -> tuple[SafetyLevel, ...]:
        """The worst level of each role that has texts.

        Raises ContentRefused, naming role and level, when a term at `block_level` or worse is found.
        """
        levels = list[SafetyLevel]()
        for role, role_texts in texts.items():
            found = [entry.level for entry in map(self.find, role_texts) if entry is not None]
            if found and min(found) <= self._block_level:
                raise ContentRefused(role, min(found))
            if role_texts:
                levels.append(SafetyLevel(role, min(found, default=LEVEL_NONE)))
        return tuple(levels)


class _Level:
    """The terms of one level. One level, one search: the first hit settles it."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._spaced = [entry for entry in entries if not _ANY_UNSPACED.search(fold(entry.term))]
        self._unspaced = [entry for entry in entries if _ANY_UNSPACED.search(fold(entry.term))]
        self._words = AhoCorasick([_words(fold(entry.term)) for entry in self._spaced])
        self._parts = AhoCorasick([_NO_WORD.sub("", fold(entry.term)) for entry in self._unspaced])

    def find(self, words: str, squeezed: str) -> Entry | None:
        for entries, automaton, text in (
            (self._spaced, self._words, words),
            (self._unspaced, self._parts, squeezed),
        ):
            matches = automaton.find_matches_as_indexes(text)
            if matches:
                return entries[matches[0][0]]
        return None


def fold(text: str) -> str:
    """The text without case, width, accents and invisible characters (NFKD, marks removed, NFC).

    At most the last TEXT_CHARS_MAX characters, also of what one character may unfold to.
    """
    if text.isascii():
        return text[-TEXT_CHARS_MAX:].lower()
    # Marks go first too: ordering a long run of them would cost the square of its length.
    unfolded = unicodedata.normalize("NFKD", _bare(text[-TEXT_CHARS_MAX:]))[-TEXT_CHARS_MAX:]
    return unicodedata.normalize("NFC", _bare(unfolded.casefold()))


def _bare(text: str) -> str:
    low, high = _marks()
    text = low.sub("", text)
    return high.sub("", text) if text and max(text) > "\uffff" else text


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
        return re.compile("[" + "".join(found) + "\u115f\u1160\u3164\uffa0]+")

    return pattern(range(0x10000)), pattern(range(0x10000, 0x20000), range(0xE0000, 0xE0200))


def _words(folded: str) -> str:
    """The words of spaced scripts, one blank around each: " make a bomb "."""
    return f" {_NO_SPACED_WORD.sub(' ', folded).strip()} "


def read_list(path: Path) -> list[Entry]:
    """Read a word list: UTF-8 lines `term<TAB>level<TAB>category`; `#` begins a comment line.

    Raises ValueError naming the file and the line.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the word list {path}: {error}") from None
    entries = list[Entry]()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        try:
            if len(fields) != 3 or fields[1] not in ("0", "1", "2", "3"):
                raise ValueError("a line is term<TAB>level 0-3<TAB>category")
            entries.append(_checked(Entry(fields[0], int(fields[1]), fields[2])))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return entries


def _checked(entry: Entry) -> Entry:
    folded = fold(entry.term)
    if len(entry.term) > TERM_CHARS_MAX or not _NO_WORD.sub("", folded):
        raise ValueError("a term has 1 to 100 characters, letters or digits among them")
    return entry
