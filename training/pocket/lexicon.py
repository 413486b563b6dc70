"""The words that pocket was taught, for its reader: words.json of the weights. Knows the vocabulary and CLDR; no torch.

The text network answers every prompt, also one of strange words. So the reader takes an answer only where a word stands for it:
`python -m training.pocket.lexicon`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from training.pocket import captions
from training.pocket import phrases as p
from training.pocket import vocabulary as v

from danqing.engine.families.pocket_layout import HOURS, WEATHERS

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "src/danqing/engine/families/pocket_weights"
_LEADING = re.compile(
    r"^(?:坐在|在|飞在|(?:floating in|deep in|at the bottom of|at|on|in front of|in|under|by|among|against|surrounded by|with"
    r"|while it)\s+(?:an?\s+|the\s+)?)"
)
_TRAILING = re.compile(r"(?<=.)(?:里|上|下|中|前|边|间|的)+$")
# Words of scenes that other scenes have too, or that say nothing of a place.
_SAYS_NOTHING = frozenset(
    ["with", "and", "the", "of", "in", "on", "at", "a", "an", "by", "to", "front", "behind", "top", "blue", "white", "green", "red", "golden", "wooden", "bright", "modern", "cozy", "sunny", "simple", "under", "deep", "clear", "late", "it", "day", "background", "dining", "field", "clouds"]
)  # fmt: skip


def _places() -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, list[int]]]:
    """(phrases that are places; that only lead to one; words one of which must be there where that place is meant)."""
    whole: dict[str, list[int]] = {}
    leads: dict[str, list[int]] = {}
    signs: dict[str, list[int]] = {}

    def add(to: dict[str, list[int]], word: str, number: int) -> None:
        if word and number not in to.setdefault(word, []):
            to[word].append(number)

    for number, scene in enumerate(v.scenes()):
        for phrase in (*scene.english, *scene.chinese, *scene.leads):
            bare = phrase if scene.key == "underwater" else _LEADING.sub("", phrase)
            to = leads if phrase in scene.leads else whole
            add(to, phrase, number)
            add(to, bare, number)
            if len(short := _TRAILING.sub("", bare)) > 1:
                add(to, short, number)
            if captions.is_chinese(phrase):
                for part in bare.split("的"):
                    add(signs, _TRAILING.sub("", part) or part, number)
                    add(signs, part, number)
            else:
                for word in re.findall(r"[a-z-]+", bare):
                    if word not in _SAYS_NOTHING:
                        add(signs, word, number)
        for word in scene.read:
            add(whole, word, number)
            add(signs, word, number)
    return whole, leads, signs


def _airs() -> tuple[dict[str, int], dict[str, int]]:
    """Phrases of hours and of weathers, by their numbers."""
    hours: dict[str, int] = {}
    weathers: dict[str, int] = {}
    for key, air in v.airs().items():
        for phrase in (*air.english, *air.before, *air.chinese):
            to, number = (
                (hours, HOURS.index(key)) if key in HOURS else (weathers, WEATHERS.index(key))
            )
            to[phrase] = number
            to[_LEADING.sub("", phrase)] = number
        for word in air.read:
            to.setdefault(word, number)
    return hours, weathers


def _taught() -> list[str]:
    """Every English word and Chinese character of the training's sentences that is no name."""
    texts: list[str] = [*p.EN_BARE, *p.EN_PLACED, *p.EN_SCENE_ONLY, *p.EN_TAILS, *p.EN_ADJECTIVES,
                        *p.EN_VERBS, *p.ZH_BARE, *p.ZH_PLACED, *p.ZH_SCENE_ONLY, *p.ZH_TAILS,
                        *p.ZH_ADJECTIVES, *p.ZH_VERBS]  # fmt: skip
    for table in (
        p.EN_RELATIONS,
        p.ZH_RELATIONS,
        p.EN_SIZES,
        p.ZH_SIZES,
        p.EN_COUNTS,
        p.ZH_COUNTS,
        p.SKY_TOO,
    ):
        texts += [text for found in table.values() for text in found]
    for _, english, chinese in v.COLOURS.values():
        texts += [*english, *chinese]
    for words in (*v.scenes(), *v.airs().values()):
        texts += [
            *words.english,
            *words.chinese,
            *getattr(words, "before", ()),
            *getattr(words, "leads", ()),
        ]
    texts += [c.measure for c in v.concepts()]
    plain = re.sub(r"\{\w\}", " ", " ".join(texts).lower())
    return sorted(set(re.findall(r"[a-z']+|[0-9]+|[^\W\d_a-z]", plain)))


def _beside() -> list[str]:
    """Words in which another word is not meant: there is no love in "可爱"."""
    found = [*p.EN_ADJECTIVES, *p.ZH_ADJECTIVES, *p.ZH_VERBS, *p.SKY_TOO["en"], *p.SKY_TOO["zh"],
             *(word for word in p.ZH_NOISE if len(word) > 1),
             *(word for table in (p.EN_SIZES, p.ZH_SIZES) for words in table.values() for word in words)]  # fmt: skip
    return sorted({word.strip("，, ").removesuffix("的") for word in found})


def _kin(taught: set[str]) -> tuple[dict[str, int], dict[str, int]]:
    """(words that stand for another thing's name; those that do only where nothing else is named)."""
    numbers = {concept.key: number for number, concept in enumerate(v.concepts(), 1)}
    certain: dict[str, int] = {}
    vague: dict[str, int] = {}
    for file in ("kin.tsv", "wordnet.tsv"):  # the first is by hand
        for line in (HERE / file).read_text("utf-8").splitlines():
            key, *cells = line.split("\t")
            for cell in cells:
                to = vague if cell.startswith("?") else certain
                for word in cell.removeprefix("?").split(","):
                    if word and word not in taught:
                        to.setdefault(word, numbers[key])
    return certain, {word: thing for word, thing in vague.items() if word not in certain}


def description() -> dict[str, Any]:
    """words.json: names by thing, places, hours, weathers and colours by number, and what else was taught."""
    own: dict[str, int] = {}
    leads: dict[str, int] = {}
    for thing, concept in enumerate(v.concepts(), 1):
        for language in ("en", "zh"):
            for name in captions.names(language)[thing - 1]:
                own.setdefault(name, thing)
        own.setdefault(concept.glyph.replace("\ufe0f", ""), thing)
        for name in concept.leads:
            leads.setdefault(name, thing)
    measures = sorted({c.measure for c in v.concepts()} | {"个"})
    certain, vague = _kin({*own, *leads, *measures, *p.EN_NOISE, *p.ZH_NOISE})
    spoken = [[c.english[0], c.chinese[0]] for c in v.concepts()]
    places, hints, signs = _places()
    hours, weathers = _airs()
    colours = {word: number for number, (_, english, chinese) in enumerate(v.COLOURS.values(), 1)
               for word in (*english, *chinese)}  # fmt: skip
    return {
        "notice": (HERE / "WORDNET-LICENSE.txt").read_text("utf-8"),
        "names": own, "leads": leads, "kin": certain, "vague": vague, "spoken": spoken, "places": places, "hints": hints, "signs": signs, "hours": hours,
        "weathers": weathers, "colours": colours, "measures": measures, "taught": _taught(), "beside": _beside(),
    }  # fmt: skip


def write(folder: Path) -> None:
    """Make words.json of the weights in this folder."""
    part = folder / "words.part"
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for key, value in description().items()
    )
    part.write_text("{" + lines + "}\n", "utf-8")
    os.replace(part, folder / "words.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder of the weights")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
