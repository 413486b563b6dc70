"""Reading the operator's word lists and allow-lists: plain text, each bad line named. Matches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from danqing.service import plain_files
from danqing.service.folding import fold, is_blank, is_unspaced

TERM_CHARS_MAX = 100
PARTS_MAX = 4
"""Of what is something together only."""
NUMBERS_MAX = 100
"""That one term may stand for."""
NOTHING_ALONE = 4
"""The level of what counts in rules only: "-" in a list."""
_JOINT = " + "
_FAULTS_SHOWN = 10
_LINE = "a line is term<TAB>level 0-3<TAB>category"

_NUMBERS = re.compile(r"\{(\d{1,9})-(\d{1,9})\}")
_ENGLISH = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_CHINESE = "零一二三四五六七八九"
NUMERALS = frozenset("0123456789〇十百千两" + _CHINESE)
"""What may go on a number in Chinese."""


class Entry(NamedTuple):
    """One line of a word list."""

    term: str
    level: int
    category: str


class Rule(NamedTuple):
    """Parts, each a term or "@" and a category, that are of a level when all of them occur in one text."""

    parts: tuple[str, ...]
    level: int
    category: str
    where: str
    """File and line, for who has to mend it."""


def read_list(path: Path) -> tuple[list[Entry], list[Rule]]:
    """Read a word list: UTF-8 lines `term<TAB>level<TAB>category`; `#` begins a comment line.

    The level `-` is that of a term which counts in rules alone, `term + @category` is such a rule, and
    `{1-17}` in a term any number of these. Raises ValueError naming the file and its bad lines.
    """
    entries, rules = list[Entry](), list[Rule]()
    faults = list[str]()
    for number, line in _lines(path, "word list"):
        fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
        try:
            if len(fields) != 3 or fields[1] not in ("0", "1", "2", "3", "-"):
                raise ValueError(_LINE)
            # A blank at its end belongs to the joint.
            term = line.split("\t")[0].lstrip() if "+" in fields[0] else fields[0]
            if _JOINT in term:
                rules.append(_rule(term, fields[1], fields[2], f"{path}, line {number}"))
            else:
                entries.append(_entry(*fields))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    _require_none(faults, path)
    return entries, rules


def _entry(term: str, level: str, category: str) -> Entry:
    """Raises ValueError."""
    if term.startswith("@"):
        raise ValueError(f"a category is joined to another part: {term}{_JOINT}term")
    if level == "-" and not category:
        raise ValueError("a term of level - needs a category, by which rules have it")
    return checked(Entry(term, NOTHING_ALONE if level == "-" else int(level), category))


def _rule(term: str, level: str, category: str, where: str) -> Rule:
    """Raises ValueError."""
    parts = tuple(part.strip() for part in term.split(_JOINT))
    if not 2 <= len(parts) <= PARTS_MAX:
        raise ValueError(f"a rule joins 2 to {PARTS_MAX} parts")
    if level == "-":
        raise ValueError("a rule has a level from 0 to 3")
    for part in parts:
        checked(Entry(part.removeprefix("@"), 0, ""))
    return Rule(parts, int(level), category, where)


def read_allowed(path: Path) -> list[str]:
    """Read an allow-list: UTF-8, one phrase a line; `#` begins a comment line.

    Raises ValueError naming the file and its bad lines.
    """
    phrases = list[str]()
    faults = list[str]()
    for number, line in _lines(path, "allow-list"):
        try:
            if "\t" in line.strip():
                raise ValueError("a line is a phrase without tabs")
            phrases.append(checked(Entry(line.strip(), 3, "")).term)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    _require_none(faults, path)
    return phrases


def checked(entry: Entry) -> Entry:
    """The entry. Raises ValueError for a term that nothing could match."""
    if len(entry.term) > TERM_CHARS_MAX or is_blank(fold(entry.term)):
        raise ValueError("a term has 1 to 100 characters, letters or digits among them")
    numbers = _NUMBERS.search(entry.term)
    if numbers and not 0 <= int(numbers[2]) - int(numbers[1]) < NUMBERS_MAX:
        raise ValueError(f"{numbers[0]} is at most {NUMBERS_MAX} numbers, the least first")
    return entry


def written_out(term: str) -> Sequence[str]:
    """All that a term with a `{1-17}` stands for, in figures and in words; any other is itself alone."""
    numbers = _NUMBERS.search(term)
    if numbers is None:
        return (term,)
    before, after = term[: numbers.start()], term[numbers.end() :]
    spell = _in_chinese if is_unspaced(fold(term)) else _in_english
    found = list[str]()
    for number in range(int(numbers[1]), int(numbers[2]) + 1):
        found += [before + word + after for word in (str(number), spell(number)) if word]
    return found


def _in_english(number: int) -> str:
    return _ENGLISH[number] if number < len(_ENGLISH) else ""


def _in_chinese(number: int) -> str:
    tens, ones = divmod(number, 10)
    if tens == 0 or number > 99:
        return _CHINESE[ones] if tens == 0 else ""
    return ("" if tens == 1 else _CHINESE[tens]) + "十" + (_CHINESE[ones] if ones else "")


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """The numbered lines that are neither blank nor comments. Raises ValueError."""
    try:
        with plain_files.opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the {what} {path}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line


def _require_none(faults: list[str], path: Path) -> None:
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        shown = "; ".join(faults[:_FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{path}, {shown}")
