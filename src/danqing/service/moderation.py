"""Text moderation by word lists: folded text, many patterns at once, a level for each role. Draws nothing, asks nobody.

Levels are Zhipu's (wire facts 2.1): 0 the worst, 3 nothing found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from danqing.service.wordlists import (
    NOTHING_ALONE,
    NUMERALS,
    Entry,
    Rule,
    checked,
    read_allowed,
    read_list,
    written_out,
)

Role = Literal["user", "assistant", "history"]

LEVEL_NONE = 3


class TextModerator:
    """Finds the worst listed term of a text. Immutable: a reload makes a new one."""

    def __init__(
        self,
        paths: Iterable[Path] = (),
        *,
        entries: Iterable[Entry] = (),
        rules: Iterable[Rule] = (),
        allow_paths: Iterable[Path] = (),
        allowed: Iterable[str] = (),
        block_level: int = 1,
    ) -> None:
        """`block_level`: what is found at this level or worse is refused; -1 refuses nothing.

        A term within a phrase of the allow-lists is no hit. Raises ValueError naming the file and the
        lines of a list that cannot be read, or a rule's category that no list has a term of.
        """
        listed, joint = list[Entry](), list(rules)
        for path in paths:
            its_entries, its_rules = read_list(path)
            listed += its_entries
            joint += its_rules
        listed += [checked(entry) for entry in entries]
        phrases = [phrase for path in allow_paths for phrase in read_allowed(path)]
        phrases += [checked(Entry(phrase, LEVEL_NONE, "")).term for phrase in allowed]
        self.block_level = block_level
        self.terms_count, self.allowed_count = len(listed), len(phrases)
        self.rules_count = len(joint)
        self._rules = _Rules(joint, {entry.category for entry in listed})
        self._terms = _Terms([*listed, *self._rules.own_terms])
        self._allowed = _Terms([Entry(phrase, LEVEL_NONE, "") for phrase in phrases])
        self._apart = kept_apart(fold(one) for phrase in phrases for one in written_out(phrase))

    def find(self, text: str) -> Entry | None:
        """What of the worst level occurs in the text; None when there is nothing. Of a rule, the terms that made it true."""
        folded = fold(text)
        spaced = tuple(word_readings(folded, self._apart))
        squeezed = tuple(squeezed_readings(folded))
        found = self._terms.found(spaced, squeezed, self._allowed)
        if not found:
            return None
        alone = (entry for entry in found if entry.level < NOTHING_ALONE)
        return min([*alone, *self._rules.met(found)], key=lambda entry: entry.level, default=None)

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


class _Rules:
    """What is something together only."""

    def __init__(self, rules: Sequence[Rule], categories: set[str]) -> None:
        """Raises ValueError naming the rule that has a category of no term."""
        self._by_first: dict[str, list[tuple[Rule, tuple[str, ...]]]] = {}
        self.own_terms = list[Entry]()
        """Of the rules' parts those that are terms themselves."""
        for rule in rules:
            keys = list[str]()
            for part in rule.parts:
                # No category begins with a blank.
                key = part[1:].strip() if part.startswith("@") else f" {part}"
                keys.append(key)
                if not part.startswith("@"):
                    self.own_terms.append(Entry(part, NOTHING_ALONE, key))
                elif key not in categories:
                    raise ValueError(
                        f"{rule.where}: no list has a term of the category '{key}', of which {part} speaks"
                    )
            self._by_first.setdefault(keys[0], []).append((rule, tuple(keys)))

    def met(self, found: Iterable[Entry]) -> Iterator[Entry]:
        """The rules that these terms make true."""
        if not self._by_first:
            return
        terms = dict[str, str]()
        for entry in found:
            terms.setdefault(entry.category, entry.term)
        for key in terms:
            for rule, keys in self._by_first.get(key, ()):
                if all(one in terms for one in keys):
                    yield Entry(" + ".join(terms[one] for one in keys), rule.level, rule.category)


class _Terms:
    """All terms at once, or the phrases of the allow-lists."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        # Those that read alike are one pattern: many of them cost the automaton the square of their number.
        words, parts = dict[str, list[Entry]](), dict[str, list[Entry]]()
        counted = set[str]()
        for entry in dict.fromkeys(entries):
            spellings = written_out(entry.term)
            its_words, its_parts = set[str](), set[str]()
            for folded in map(fold, spellings):
                if is_unspaced(folded):
                    its_parts.add(squeeze(folded))
                else:
                    its_words.update(word_patterns(folded))
            for pattern in its_words:
                words.setdefault(pattern, []).append(entry)
            for pattern in its_parts:
                parts.setdefault(pattern, []).append(entry)
            if len(spellings) > 1:
                counted |= its_parts
        self._words, self._of_words = AhoCorasick(list(words)), list(words.values())
        self._parts, self._of_parts = AhoCorasick(list(parts)), list(parts.values())
        self._counted = frozenset(at for at, pattern in enumerate(parts) if pattern in counted)

    def found(
        self, spaced: Sequence[str], squeezed: Sequence[str], allowed: _Terms
    ) -> dict[Entry, None]:
        """The terms in any of the readings that no allowed phrase has around them."""
        words, parts = dict[int, None](), dict[int, None]()
        for text in spaced:
            for at, _, _ in _uncovered(self._words, text, allowed._words):
                words[at] = None
        for text in squeezed:
            for at, start, end in _uncovered(self._parts, text, allowed._parts):
                if at not in self._counted or _is_whole_number(text, start, end):
                    parts[at] = None
        found = dict[Entry, None]()
        for entries in (
            *map(self._of_words.__getitem__, words),
            *map(self._of_parts.__getitem__, parts),
        ):
            found |= dict.fromkeys(entries)
        return found


def _is_whole_number(text: str, start: int, end: int) -> bool:
    """Whether no greater number goes on where one stands at an end of text[start:end]: "2岁" is not in "32岁"."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (
        (text[start] in NUMERALS and before in NUMERALS)
        or (text[end - 1] in NUMERALS and after in NUMERALS)
    )


def _uncovered(
    terms: AhoCorasick, text: str, allowed: AhoCorasick
) -> Sequence[tuple[int, int, int]]:
    """Index, start and end of each term that occurs in the text outside of every allowed phrase."""
    hits = terms.find_matches_as_indexes(text, overlapping=True)
    if not hits:
        return hits
    spans = sorted(span for _, *span in allowed.find_matches_as_indexes(text, overlapping=True))
    if not spans:
        return hits
    starts = [start for start, _ in spans]
    ends = list(accumulate((end for _, end in spans), max))

    def is_covered(start: int, end: int) -> bool:
        before = bisect_right(starts, start)
        return before > 0 and ends[before - 1] >= end

    return [hit for hit in hits if not is_covered(hit[1], hit[2])]
