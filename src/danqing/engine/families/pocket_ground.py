"""Which of the text network's answers a prompt has words for. Knows mentions and wishes; no network, no pixels.

The network answers every prompt, a strange word too. So the likeliest answer counts of those that a word stands for, and what is named
in plain words and was not heard counts all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_sky import Sky
from danqing.engine.families.pocket_words import Mention, Words

Answers = Mapping[str, npt.NDArray[np.float32]]
"""One vector of probabilities a slot."""
SURE_ENOUGH = 0.3  # a thing this likely is drawn even where "no thing" is likelier
SOME = 3
"""How many "cats" are, where nobody says."""
_NUMBERS = {"one": 1, "two": 2, "couple": 2, "pair": 2, "three": 3, "four": 4, "five": 5,
            "2": 2, "3": 3, "4": 4, "5": 5, "二": 2, "两": 2, "俩": 2, "三": 3, "四": 4, "五": 5}  # fmt: skip
_SINGLE = frozenset(("a", "an", "one", "1", "一", "the", "this", "that"))
_ENDS = frozenset(("and", "with", "on", "in", "of", "under", "behind", "和", "与", "跟", "、", "在", "有", "是", "着", "拿",
                   "骑", ",", "|"))  # fmt: skip
"""Words before which other things stand."""
_BEFORE_NOUNS = frozenset(("a", "an", "the", "one", "and", "with", "of", "2", "3", "4", "5", "two", "three", "four", "five",
                           ",", "|"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Named:
    """A thing that the prompt names."""

    thing: int
    is_certain: bool
    """Whether the words can mean nothing else."""
    count: int
    """0 where nobody says."""
    is_plural: bool
    colour: int


def grounded(answers: Answers, said: list[str], words: Words, sky: Sky) -> layout.Wish:
    """The likeliest answers of which the prompt has the words."""
    mentions = words.mentions(said)
    named = list(_named(mentions, said, words))
    scene, hour, weather = _setting(answers, mentions, words.scenes(said), sky, bool(named))
    thing, second = _things(answers, named, bool(scene or hour or weather))
    colours = {0, *(number for m in mentions for number in m.numbers("colour"))}
    relation = int(np.argmax(answers["relation"])) if second else 0
    if second and not relation:
        relation = layout.RELATIONS.index("beside")
    by_thing: dict[int, _Named] = {}
    for each in named:  # the first of the same, unless another says how many
        if each.thing not in by_thing or (each.count and not by_thing[each.thing].count):
            by_thing[each.thing] = each
    colour = _likeliest(answers["colour"], colours)
    second_colour = _likeliest(answers["second_colour"], colours) if second else 0
    if any(by_thing[k].colour for k in (thing, second) if k):  # said right before a thing: its own
        colour, second_colour = (by_thing[k].colour if k else 0 for k in (thing, second))
    count = 1
    if thing:
        count = by_thing[thing].count or (
            SOME if thing == named[0].thing and named[0].is_plural else 1
        )
    wish = layout.Wish(thing, count, colour, second, relation, scene, second_colour,
                       int(np.argmax(answers["size"])), hour, weather)  # fmt: skip
    return _several(wish, by_thing)


def _several(wish: layout.Wish, named: dict[int, _Named]) -> layout.Wish:
    """Of two things beside each other the one that there are several of comes first: only it can be."""
    if not wish.second or layout.RELATIONS[wish.relation] != "beside":
        return replace(wish, count=1) if wish.second else wish
    if wish.count == 1 and named[wish.second].count > 1:
        wish = replace(wish, thing=wish.second, second=wish.thing, count=named[wish.second].count,
                       colour=wish.second_colour, second_colour=wish.colour, size=0)  # fmt: skip
    return replace(wish, count=min(wish.count, layout.COUNT_MAX - 1))


def _likeliest(probabilities: npt.NDArray[np.float32], allowed: set[int]) -> int:
    return max(sorted(allowed), key=lambda number: float(probabilities[number]))


def _things(answers: Answers, named: list[_Named], has_place: bool) -> tuple[int, int]:
    """The thing and the second thing: 0 where there is none."""
    likely, also = answers["thing"], answers["second"]
    if not named:
        return 0, 0
    thing = max((each.thing for each in named), key=lambda k: float(likely[k]))
    certain = [each.thing for each in named if each.is_certain]
    if likely[0] > likely[thing] and likely[thing] < SURE_ENOUGH:
        if not certain:
            return (0, 0) if has_place else (thing, 0)
        thing = max(certain, key=lambda k: float(likely[k]))
    first = max((i for i, each in enumerate(named) if each.thing == thing),
                key=lambda i: (named[i].is_certain, -i))  # fmt: skip
    others = [each.thing for i, each in enumerate(named)
              if i != first and (each.is_certain or each.thing != thing)]  # fmt: skip
    if not others:
        return thing, 0
    second = max(others, key=lambda k: float(also[k]))
    if also[0] > also[second]:
        second = next((k for k in certain if k in others and k != thing), 0)
    return thing, second


def _named(mentions: list[Mention], said: list[str], words: Words) -> list[_Named]:
    """Every thing that is named, in order."""
    found: list[_Named] = []
    for i, mention in enumerate(mentions):
        own = mention.number("name")
        thing = own if own is not None else mention.number("lead")
        if thing is None or _is_colour(mention, mentions[i + 1 :]):
            continue
        before = said[mention.start - 1] if mention.start else ""
        is_certain = (
            own is not None
            and len(mention.readings) == 1
            and (not before.isascii() or _is_noun(mention, mentions, said))
        )
        count, colour = _told(mentions, i, said)
        name = said[mention.start : mention.end]
        is_plural = name[-1].isascii() and name[-1].endswith("s") and not words.is_name(name)
        found.append(_Named(thing, is_certain, count, is_plural, colour))
    return found


def _is_noun(mention: Mention, mentions: list[Mention], said: list[str]) -> bool:
    """Whether an English word stands where nouns do: after an article, a number or an adjective."""
    ends = {
        m.end for m in mentions if m.number("colour") is not None or m.number("beside") is not None
    }
    return not mention.start or said[mention.start - 1] in _BEFORE_NOUNS or mention.start in ends


def _is_colour(mention: Mention, after: list[Mention]) -> bool:
    """Whether a word that is a thing and a colour is one here: "an orange cat"."""
    if mention.number("colour") is None or not after:
        return False
    return after[0].start == mention.end and after[0].number("name") is not None


def _told(mentions: list[Mention], which: int, said: list[str]) -> tuple[int, int]:
    """(how many there are of a thing that is named, in which colour), by the words before it."""
    mention = mentions[which]
    tones = {at: m.number("colour") or 0 for m in mentions[:which] for at in range(m.start, m.end)
             if m.number("colour") is not None}  # fmt: skip
    stands = [
        m
        for m in mentions[:which]
        if m.start not in tones and {k for k, _ in m.readings} - {"lead", "beside"}
    ]
    floor = max((m.end for m in stands), default=0)
    aside = {
        at
        for m in mentions[:which]
        if m.number("beside") is not None
        for at in range(m.start, m.end)
    }
    colour = 0
    for at in (at for at in range(mention.start - 1, floor - 1, -1) if at not in aside):
        word = said[at]
        colour = colour or tones.get(at, 0)
        if word == "对":
            if at and said[at - 1] == "一":
                return 2, colour
        elif word in _NUMBERS:
            return _NUMBERS[word], colour
        if word in _SINGLE:
            return 1, colour
        if word in _ENDS and not (word == "of" and said[at - 1] in ("pair", "couple")):
            return 0, colour
    return 0, colour


def _setting(
    answers: Answers, mentions: list[Mention], signs: set[int], sky: Sky, has_thing: bool
) -> tuple[int, int, int]:
    """(place, hour, weather): those that words stand for; what is named and was not heard counts."""
    scene = _likeliest(answers["scene"], signs)
    clear = [m for m in mentions if m.number("name") is None]
    heard = {
        kind: [k for m in clear for k in m.numbers(kind)] for kind in ("hour", "weather", "hint")
    }
    places = [
        k
        for m in clear
        if {kind for kind, _ in m.readings} == {"place"}
        for k in m.numbers("place")
    ]
    likely = answers["scene"]
    if not scene and (named := places or heard["hint"] * (not has_thing)):
        scene = max(named, key=lambda k: float(likely[k]))
    alone = sky.airs_of(scene)
    hour = _likeliest(answers["hour"], {0, *heard["hour"], *(sky.airs_of(k)[0] for k in signs)})
    weather = _likeliest(
        answers["weather"], {0, *heard["weather"], *(sky.airs_of(k)[1] for k in signs)}
    )
    if any(alone) and (elsewhere := [k for k in places if not any(sky.airs_of(k))]):
        hour, weather = hour or alone[0], weather or alone[1]
        scene = max(elsewhere, key=lambda k: float(likely[k]))
    for mention in clear:  # "under the stars" may be a place or an hour
        if scene not in mention.numbers("place"):
            hour = hour or mention.number("hour") or 0
            weather = weather or mention.number("weather") or 0
    return scene, hour, weather
