"""The words pocket knows: concepts, scenes, colours and relations. Knows no drawing and no torch."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
# key: (RGB, English words, Chinese words)
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...], tuple[str, ...]]] = {
    "red": ((226, 38, 38), ("red", "scarlet", "crimson"), ("红色的", "红", "大红色的")),
    "orange": ((250, 130, 20), ("orange", "orange-coloured"), ("橙色的", "橘色的", "橘红色的")),
    "yellow": ((250, 212, 30), ("yellow", "golden"), ("黄色的", "黄", "金色的", "金黄色的")),
    "green": ((50, 170, 60), ("green", "emerald"), ("绿色的", "绿", "翠绿色的")),
    "cyan": ((30, 195, 200), ("cyan", "turquoise", "teal"), ("青色的", "青绿色的")),
    "blue": ((40, 95, 225), ("blue", "navy"), ("蓝色的", "蓝", "天蓝色的")),
    "purple": ((140, 60, 200), ("purple", "violet"), ("紫色的", "紫")),
    "pink": ((250, 130, 180), ("pink", "rosy"), ("粉色的", "粉红色的", "粉")),
    "brown": ((130, 80, 45), ("brown", "chocolate-coloured"), ("棕色的", "褐色的", "咖啡色的")),
    "black": ((45, 45, 50), ("black", "jet-black"), ("黑色的", "黑")),
    "white": ((245, 245, 245), ("white", "snow-white"), ("白色的", "白", "雪白的")),
    "grey": ((140, 145, 150), ("grey", "gray", "silver"), ("灰色的", "灰", "银色的")),
}
COLOUR_KEYS: tuple[str, ...] = ("none", *COLOURS)


@dataclass(frozen=True)
class Concept:
    """One thing to draw: its glyph, and the words that name it or only lead to it."""

    glyph: str
    key: str
    measure: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    leads: tuple[str, ...]


@dataclass(frozen=True)
class SceneWords:
    """One background: the phrases that ask for it; words that only the reader knows."""

    key: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    leads: tuple[str, ...]
    read: tuple[str, ...]


@dataclass(frozen=True)
class AirWords:
    """An hour or a weather: phrases after a place (English), before one, and alone (Chinese); words that only the reader knows."""

    key: str
    english: tuple[str, ...]
    before: tuple[str, ...]
    chinese: tuple[str, ...]
    read: tuple[str, ...]


# Places under an open sky, over which hours and weathers lie.
OPEN_AIR = ("meadow", "beach", "sea", "city", "windowsill", "forest", "desert", "mountains",
            "flowers", "farm", "autumn")  # fmt: skip


def _rows(name: str) -> list[list[str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in reader if not row[0].startswith("#")]


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in cell.split(",") if word.strip())


@lru_cache(maxsize=1)
def concepts() -> tuple[Concept, ...]:
    """All concepts, in the order the network numbers them."""
    return tuple(
        Concept(row[0], row[1], row[2], _words(row[3]), _words(row[4]), _words(row[5]))
        for row in _rows("concepts.tsv")
    )


@lru_cache(maxsize=1)
def scenes() -> tuple[SceneWords, ...]:
    """All scenes, in the order the network numbers them; the first one is plain."""
    return tuple(SceneWords(row[0], *map(_words, row[1:])) for row in _rows("scenes.tsv"))


@lru_cache(maxsize=1)
def airs() -> dict[str, AirWords]:
    """Hours and weathers by their keys."""
    found = (AirWords(r[0], *map(_words, r[1:])) for r in _rows("airs.tsv"))
    return {air.key: air for air in found}


@lru_cache(maxsize=1)
def open_air() -> tuple[int, ...]:
    """The scenes under an open sky, by number."""
    return tuple(i for i, scene in enumerate(scenes()) if scene.key in OPEN_AIR)
