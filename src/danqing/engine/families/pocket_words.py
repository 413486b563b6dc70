"""The words that pocket was taught, found in a prompt: names, places, hours, colours. Knows words.json; no network, no pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from danqing.engine.families.pocket_text import split, stem

_EMOJI_STYLE = "\ufe0f"
BREAK = "|"
"""Stands between clauses: nothing is found across it."""


@dataclass(frozen=True, slots=True)
class Mention:
    """Words that mean something to pocket. `readings`: what, as (kind, number); `start` and `end` count tokens."""

    start: int
    end: int
    readings: tuple[tuple[str, int], ...]

    @property
    def is_something(self) -> bool:
        """Whether it can be drawn at all."""
        return any(kind not in ("beside", "kin", "vague") for kind, _ in self.readings)

    @property
    def is_somewhere(self) -> bool:
        """Whether it can be a place."""
        return any(kind in ("place", "hint") for kind, _ in self.readings)

    def number(self, kind: str) -> int | None:
        return next((number for each, number in self.readings if each == kind), None)

    def numbers(self, kind: str) -> list[int]:
        return [number for each, number in self.readings if each == kind]


class Words:
    """`path`: made by training/pocket/lexicon.py, which says what is in it."""

    def __init__(self, path: Path) -> None:
        stored = json.loads(path.read_text("utf-8"))
        self._meant: dict[tuple[str, ...], list[tuple[str, int]]] = {}
        self._signs: dict[tuple[str, ...], list[int]] = {}
        kinds = (("names", "name"), ("colours", "colour"), ("hours", "hour"),
                 ("weathers", "weather"), ("places", "place"), ("hints", "hint"), ("leads", "lead"))  # fmt: skip
        for table, kind in kinds:
            for phrase, meant in stored[table].items():
                for number in meant if isinstance(meant, list) else [meant]:
                    for key in {stems(phrase), stems(phrase + "s" * phrase.isascii())}:
                        meanings = self._meant.setdefault(key, [])
                        if kind in ("name", "colour", "lead", "hint") or "name" not in dict(
                            meanings
                        ):
                            meanings.append((kind, number))
        for kind in ("kin", "vague"):
            for phrase, thing in stored[kind].items():
                for key in {stems(phrase), stems(phrase + "s" * phrase.isascii())}:
                    self._meant.setdefault(key, [(kind, thing)])
        self._spoken: list[list[str]] = stored["spoken"]
        for phrase in stored["beside"]:
            self._meant.setdefault(stems(phrase), []).append(("beside", 0))
        for phrase, scenes in stored["signs"].items():
            self._signs.setdefault(stems(phrase), []).extend(scenes)
        self._longest = max(map(len, self._meant))
        self._exact = {tuple(tokens(name)) for name in (*stored["names"], *stored["leads"])}
        self.measures: frozenset[str] = frozenset(stored["measures"])
        self._taught = frozenset(stem(word) for word in stored["taught"])

    def knows(self, token: str) -> bool:
        """Whether the training's sentences had this word, be it only to join others."""
        return stem(token) in self._taught

    def spoken(self, thing: int, instead_of: str) -> list[str]:
        """A thing's plainest name, in the language and number of a word that it stands for."""
        english, chinese = self._spoken[thing - 1]
        if not instead_of.isascii():
            return tokens(chinese)
        name = english.split()
        plural = instead_of.endswith("s") and not english.endswith("s")
        return [*name[:-1], name[-1] + "s" * plural]

    def is_name(self, words: Sequence[str]) -> bool:
        """Whether a thing is called just this, plural and all."""
        return tuple(words) in self._exact

    def mentions(self, words: Sequence[str]) -> list[Mention]:
        """From left to right, the longest first; no word is in two."""
        stemmed = [stem(word) for word in words]
        found: list[Mention] = []
        at = 0
        while at < len(stemmed):
            for end in range(min(len(stemmed), at + self._longest), at, -1):
                meant = self._meant.get(tuple(stemmed[at:end]))
                if meant:
                    found.append(Mention(at, end, tuple(meant)))
                    at = end
                    break
            else:
                at += 1
        return found

    def scenes(self, words: Sequence[str]) -> set[int]:
        """Every scene that some word stands for."""
        stemmed = [stem(word) for word in words]
        found: set[int] = {0}
        for size in range(1, 6):
            for at in range(len(stemmed) - size + 1):
                found.update(self._signs.get(tuple(stemmed[at : at + size]), ()))
        return found


def tokens(prompt: str) -> list[str]:
    """A prompt's words and characters, with a break between clauses."""
    return list(_joined(split(prompt.replace(_EMOJI_STYLE, ""))))


def stems(prompt: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in tokens(prompt))


def _joined(clauses: Iterable[Sequence[str]]) -> Iterator[str]:
    for i, clause in enumerate(clauses):
        if i:
            yield BREAK
        yield from clause
