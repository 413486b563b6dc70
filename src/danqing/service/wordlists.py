"""Reading the operator's word lists and allow-lists: plain text, each bad line named. Matches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from danqing.service import plain_files
from danqing.service.folding import fold, is_blank

TERM_CHARS_MAX = 100
_FAULTS_SHOWN = 10


class Entry(NamedTuple):
    """One line of a word list."""

    term: str
    level: int
    category: str


def read_list(path: Path) -> list[Entry]:
    """Read a word list: UTF-8 lines `term<TAB>level<TAB>category`; `#` begins a comment line.

    Raises ValueError naming the file and its bad lines.
    """
    entries = list[Entry]()
    faults = list[str]()
    for number, line in _lines(path, "word list"):
        fields = [field.strip() for field in line.split("\t")]
        try:
            if len(fields) != 3 or fields[1] not in ("0", "1", "2", "3"):
                raise ValueError("a line is term<TAB>level 0-3<TAB>category")
            entries.append(checked(Entry(fields[0], int(fields[1]), fields[2])))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    _require_none(faults, path)
    return entries


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
    return entry


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
