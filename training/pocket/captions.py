"""Words for a wish, in Chinese or English. Knows the vocabulary and CLDR; knows no pixels and no torch."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from training.pocket import phrases as p
from training.pocket import vocabulary as v

from danqing.engine.families.pocket_layout import HOURS, RELATIONS, SIZES, WEATHERS, Wish

CLDR = Path("/usr/share/unicode/cldr/common/annotations")
_STREWN = 0.4  # share of captions among words that mean nothing to pocket
_LEADING_COLOUR = re.compile(r"^(红|白|橘|蓝|灰|棕|red |blue)")
_SKY_GOES_WITH = ("windowsill", "meadow", "beach", "sea", "mountains", "city", "snow", "desert")


@lru_cache(maxsize=2)
def _annotations(language: str) -> dict[str, list[str]]:
    """CLDR's names and keywords of every emoji, the name first."""
    path = CLDR / f"{language}.xml"
    if not path.exists():
        return {}
    found: dict[str, list[str]] = {}
    for node in ElementTree.parse(path).iter("annotation"):
        words = [word.strip().lower() for word in (node.text or "").split("|")]
        glyph = (node.get("cp") or "").replace("\ufe0f", "")
        if node.get("type") == "tts":
            found.setdefault(glyph, []).insert(0, words[0])
        else:
            found.setdefault(glyph, []).extend(words)
    return found


@lru_cache(maxsize=2)
def names(language: str) -> tuple[tuple[str, ...], ...]:
    """Every concept's own names: ours, and CLDR's where only one concept has them."""
    annotations = _annotations(language)
    mine = [c.english if language == "en" else c.chinese for c in v.concepts()]
    taken = Counter(word for words in mine for word in words)
    taken.update(word for c in v.concepts() for word in c.leads)
    shared = Counter(word for c in v.concepts() for word in annotations.get(c.glyph, [])[:1])
    short = 3 if language == "en" else 2
    return tuple(
        words + tuple(
            word for word in annotations.get(c.glyph, [])[:1]
            if shared[word] == 1 and not taken[word] and len(word) >= short
        )
        for words, c in zip(mine, v.concepts(), strict=True)
    )  # fmt: skip


@lru_cache(maxsize=2)
def strangers(language: str) -> tuple[str, ...]:
    """Names of things that pocket cannot draw; captions with them ask for no thing."""
    known = {w for c in v.concepts() for w in (*c.english, *c.chinese, *c.leads)}
    glyphs = {c.glyph for c in v.concepts()}
    # A name that contains a word we know would teach that the known word means nothing.
    return tuple(
        words[0]
        for glyph, words in _annotations(language).items()
        if glyph not in glyphs and words and 1 < len(words[0]) < 24
        and not any(word in words[0] for word in known if len(word) > 1)
    )  # fmt: skip


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def is_chinese(word: str) -> bool:
    return any("\u4e00" <= c <= "\u9fff" for c in word)


def _name(rng: np.random.Generator, thing: int, language: str, held_out: bool) -> str:
    concept = v.concepts()[thing - 1]
    own = names(language)[thing - 1]
    leads = tuple(w for w in concept.leads if is_chinese(w) == (language == "zh"))
    # Names that only lead here (iron man -> superhero): more often, the more there are.
    if leads and not held_out and rng.random() < len(leads) / (len(leads) + len(own) + 4):
        return _pick(rng, leads)
    # The first, plainest name half of the time.
    return own[0] if rng.random() < 0.5 else _pick(rng, own)


def _plural(word: str) -> str:
    if re.search(r"(s|x|ch|sh)$", word):
        return word if word.endswith("s") else word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def _english_thing(rng: np.random.Generator, name: str, count: int, colour: int, size: int) -> str:
    words: list[str] = []
    if size:
        words.append(_pick(rng, p.EN_SIZES[SIZES[size]]))
    if rng.random() < 0.4:
        words.append(_pick(rng, p.EN_ADJECTIVES))
    if colour:
        tone = _pick(rng, v.COLOURS[v.COLOUR_KEYS[colour]][1])
        words.insert(int(rng.integers(len(words) + 1)), tone)
    words.append(_plural(name) if count > 1 else name)
    phrase = " ".join(words)
    if count > 1:
        return f"{_pick(rng, p.EN_COUNTS[count])} {phrase}"
    kind = rng.random()
    if kind < 0.75:
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    return f"one {phrase}" if kind < 0.83 else phrase if kind < 0.92 else f"the {phrase}"


def _chinese_thing(
    rng: np.random.Generator, name: str, measure: str, count: int, colour: int, size: int
) -> str:
    parts: list[str] = []
    if size:
        parts.append(_pick(rng, p.ZH_SIZES[SIZES[size]]))
    if rng.random() < 0.4:
        parts.append(_pick(rng, p.ZH_ADJECTIVES))
    if colour:
        tone = _pick(rng, v.COLOURS[v.COLOUR_KEYS[colour]][2])
        parts.insert(int(rng.integers(len(parts) + 1)), tone)
    phrase = "".join(parts) + name
    unit = measure if rng.random() < 0.75 else "个"
    if count > 1:
        number = _pick(rng, p.ZH_COUNTS[count])
        return f"{number}{'' if number == '俩' else unit}{phrase}"
    kind = rng.random()
    return f"一{unit}{phrase}" if kind < 0.7 else phrase if kind < 0.92 else f"{unit}{phrase}"


def _thing(
    rng: np.random.Generator, thing: int, count: int, colour: int, size: int, language: str,
    held_out: bool,
) -> str:  # fmt: skip
    name = _name(rng, thing, language, held_out)
    if colour:
        name = _LEADING_COLOUR.sub("", name) or name  # not "a green red apple"
    if language == "en":
        return _english_thing(rng, name, count, colour, size)
    return _chinese_thing(rng, name, v.concepts()[thing - 1].measure, count, colour, size)


def _things(rng: np.random.Generator, wish: Wish, language: str, held_out: bool) -> str:
    first = _thing(rng, wish.thing, wish.count, wish.colour, wish.size, language, held_out)
    if not wish.second:
        return first
    second = _thing(rng, wish.second, 1, wish.second_colour, 0, language, held_out)
    patterns = p.EN_RELATIONS if language == "en" else p.ZH_RELATIONS
    return _pick(rng, patterns[RELATIONS[wish.relation]]).format(a=first, b=second)


def _scene(rng: np.random.Generator, scene: int, language: str, held_out: bool) -> str:
    words = v.scenes()[scene]
    own = words.english if language == "en" else words.chinese
    leads = tuple(w for w in words.leads if is_chinese(w) == (language == "zh"))
    if leads and not held_out and rng.random() < 0.15:
        lead = _pick(rng, leads)
        return f"in the {lead}" if language == "en" else lead
    return _pick(rng, own)


def _air(rng: np.random.Generator, wish: Wish, language: str, scene: str) -> tuple[str, str]:
    """(the scene's phrase with hour and weather, what is said of them after a comma)."""
    keys = [HOURS[wish.hour]] * (wish.hour > 0) + [WEATHERS[wish.weather]] * (wish.weather > 0)
    tail = ""
    for key in keys:
        words = v.airs()[key]
        if language == "en":
            phrase = _pick(rng, words.english)
            if rng.random() < 0.7:
                scene = f"{scene} {phrase}"
            else:
                tail += f", {phrase}"
        elif rng.random() < 0.6:
            scene = _pick(rng, words.before) + scene.removeprefix("坐在").removeprefix("在")
        else:
            tail += "，" + _pick(rng, words.chinese)
    return scene, tail


def _strewn(rng: np.random.Generator, text: str, language: str) -> str:
    """The caption with words before and after it that mean nothing to pocket."""
    noise = p.EN_NOISE if language == "en" else p.ZH_NOISE
    gap = " " if language == "en" else ""
    for _ in range(int(rng.integers(1, 4))):
        words = gap.join(_pick(rng, noise) for _ in range(int(rng.integers(1, 5))))
        text = f"{words}{gap}{text}" if rng.random() < 0.6 else f"{text}{gap}{words}"
    return text


def caption(rng: np.random.Generator, wish: Wish, language: str, held_out: bool = False) -> str:
    """One way to ask for the wish. Held-out captions use patterns that training never shows."""
    english = language == "en"
    key = v.scenes()[wish.scene].key
    said = wish.scene > 0 or rng.random() < 0.06
    scene = _scene(rng, wish.scene, language, held_out) if said else ""
    scene, air_tail = _air(rng, wish, language, scene)
    if english:
        bare, placed = (p.EN_BARE_HELD, p.EN_PLACED_HELD) if held_out else (p.EN_BARE, p.EN_PLACED)
        alone, verbs, tails = p.EN_SCENE_ONLY, p.EN_VERBS, p.EN_TAILS
    else:
        bare, placed = (p.ZH_BARE_HELD, p.ZH_PLACED_HELD) if held_out else (p.ZH_BARE, p.ZH_PLACED)
        alone, verbs, tails = p.ZH_SCENE_ONLY, p.ZH_VERBS, p.ZH_TAILS
    if wish.thing:
        things = _things(rng, wish, language, held_out)
    elif said and rng.random() < 0.5 and not held_out:
        return _pick(rng, alone).format(s=scene) + air_tail
    else:
        stranger = _pick(rng, strangers(language) or ("?",))
        things = ("a " if english else "一个") + stranger if rng.random() < 0.7 else stranger
    pattern = _pick(rng, placed if said else bare)
    if not english and scene.startswith(("坐", "在")):
        scene = scene[1:] if scene.startswith("在") else scene.removeprefix("坐在")
    text = pattern.format(x=things, s=scene, v=_pick(rng, verbs))
    text += air_tail
    if key in _SKY_GOES_WITH and not (wish.hour or wish.weather) and rng.random() < 0.12:
        text += _pick(rng, p.SKY_TOO[language])
    if rng.random() < 0.2:
        text += _pick(rng, tails)
    if not held_out and rng.random() < _STREWN:
        text = _strewn(rng, text, language)
    return text[0].upper() + text[1:] if english and rng.random() < 0.5 else text
