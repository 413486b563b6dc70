"""Text moderation by word lists: folded text, many patterns at once, a level for each role. Draws nothing, asks nobody.

Levels are Zhipu's (wire facts 2.1): 0 the worst, 3 nothing found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

from ahocorasick_rs import AhoCorasick

from danqing.domain.errors import ContentRefused
from danqing.domain.task import SafetyLevel
from danqing.service.folding import (
    fold,
    is_unspaced,
    kept_apart,
    squeeze,
    squeezed_readings,
    word_patterns,
    word_readings,
)
from danqing.service.wordlists import Entry, checked, read_allowed, read_list

Role = Literal["user", "assistant", "history"]

LEVEL_NONE = 3


class TextModerator:
    """Finds the worst listed term of a text. Immutable: a reload makes a new one."""

    def __init__(
        self,
        paths: Iterable[Path] = (),
        *,
        entries: Iterable[Entry] = (),
        allow_paths: Iterable[Path] = (),
        allowed: Iterable[str] = (),
        block_level: int = 1,
    ) -> None:
        """`block_level`: what is found at this level or worse is refused; -1 refuses nothing.

        A term within a phrase of the allow-lists is no hit. Raises ValueError naming the file and the
        lines of a list that cannot be read.
        """
        listed = [entry for path in paths for entry in read_list(path)]
        listed += [checked(entry) for entry in entries]
        phrases = [phrase for path in allow_paths for phrase in read_allowed(path)]
        phrases += [checked(Entry(phrase, LEVEL_NONE, "")).term for phrase in allowed]
        self.block_level = block_level
        self.terms_count, self.allowed_count = len(listed), len(phrases)
        self._all = _Terms(listed)
        self._levels = [
            _Terms([entry for entry in listed if entry.level == level])
            for level in sorted({entry.level for entry in listed})
        ]
        self._allowed = _Terms([Entry(phrase, LEVEL_NONE, "") for phrase in phrases])
        self._apart = kept_apart(map(fold, phrases))

    def find(self, text: str) -> Entry | None:
        """A listed term of the worst level that occurs in the text; None when there is none."""
        folded = fold(text)
        spaced = tuple(word_readings(folded, self._apart))
        squeezed = tuple(squeezed_readings(folded))
        if not self._all.occur(spaced, squeezed):  # as a rule: no need to look for each level
            return None
        for level in self._levels:
            entry = level.find(spaced, squeezed, self._allowed)
            if entry is not None:
                return entry
        return None

    def check(self, text: str, role: Role) -> SafetyLevel:
        """The text's level: that of the worst term found, else 3."""
        entry = self.find(text)
        return SafetyLevel(role, entry.level if entry else LEVEL_NONE)

    def require(
        self, texts: Mapping[Role, Sequence[str]], block_level: int | None = None
    ) -> tuple[SafetyLevel, ...]:
        """The worst level of each role that has texts.

        Raises ContentRefused, naming role and level, when a term at `block_level` (None: this
        moderator's own) or worse is found.
        """
        refused_to = self.block_level if block_level is None else block_level
        levels = list[SafetyLevel]()
        for role, role_texts in texts.items():
            found = [entry for entry in map(self.find, role_texts) if entry is not None]
            worst = min(found, key=lambda entry: entry.level, default=None)
            if worst is not None and worst.level <= refused_to:
                raise ContentRefused(role, worst.level, source="lists", category=worst.category)
            if role_texts:
                levels.append(SafetyLevel(role, LEVEL_NONE if worst is None else worst.level))
        return tuple(levels)


class _Terms:
    """Terms of one level: the first hit settles it. Or the phrases of the allow-lists."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        # The first of those that read alike: many of them cost the automaton the square of their number.
        spaced, unspaced = dict[str, Entry](), dict[str, Entry]()
        for entry in entries:
            folded = fold(entry.term)
            if is_unspaced(folded):
                unspaced.setdefault(squeeze(folded), entry)
            else:
                for pattern in word_patterns(folded):
                    spaced.setdefault(pattern, entry)
        self._spaced, self._unspaced = list(spaced.values()), list(unspaced.values())
        self._words, self._parts = AhoCorasick(list(spaced)), AhoCorasick(list(unspaced))

    def occur(self, spaced: Sequence[str], squeezed: Sequence[str]) -> bool:
        """Whether any of the terms is in any of the readings, allowed or not."""
        return any(self._words.find_matches_as_indexes(text) for text in spaced) or any(
            self._parts.find_matches_as_indexes(text) for text in squeezed
        )

    def find(self, spaced: Sequence[str], squeezed: Sequence[str], allowed: _Terms) -> Entry | None:
        """A term in one of the readings that no allowed phrase has around it."""
        for text in spaced:
            at = _uncovered(self._words, text, allowed._words)
            if at is not None:
                return self._spaced[at]
        for text in squeezed:
            at = _uncovered(self._parts, text, allowed._parts)
            if at is not None:
                return self._unspaced[at]
        return None


def _uncovered(terms: AhoCorasick, text: str, allowed: AhoCorasick) -> int | None:
    """The index of a term that occurs in the text outside of every allowed phrase."""
    hits = terms.find_matches_as_indexes(text)
    if not hits:
        return None
    spans = sorted(span for _, *span in allowed.find_matches_as_indexes(text, overlapping=True))
    if not spans:
        return hits[0][0]
    starts = [start for start, _ in spans]
    ends = list(accumulate((end for _, end in spans), max))
    # A hit that is allowed may hide another one that overlaps it.
    for index, start, end in terms.find_matches_as_indexes(text, overlapping=True):
        before = bisect_right(starts, start)
        if before == 0 or ends[before - 1] < end:
            return index
    return None
