"""Which of the text network's answers a prompt has words for. Knows mentions and wishes; no network, no pixels.

The network answers every prompt, a strange word too. So the likeliest answer counts of those that a word stands for, and what is named
in plain words and was not heard counts all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_sky import Sky
from danqing.engine.families.pocket_words import Mention, Words

Answers = Mapping[str, npt.NDArray[np.float32]]
"""One vector of probabilities a slot."""
SURE_ENOUGH = 0.3  # a thing this likely is drawn even where "no thing" is likelier
SIDE_BY_SIDE = layout.RELATIONS.index("beside")
SOME = 3
"""How many "cats" are, where nobody says."""
_NUMBERS = {"one": 1, "two": 2, "couple": 2, "pair": 2, "three": 3, "four": 4, "five": 5,
            "2": 2, "3": 3, "4": 4, "5": 5, "二": 2, "两": 2, "俩": 2, "三": 3, "四": 4, "五": 5}  # fmt: skip
_SINGLE = frozenset(("a", "an", "one", "1", "一", "the", "this", "that"))
_ENDS = frozenset(("and", "with", "on", "in", "of", "under", "behind", "和", "与", "跟", "、", "在", "有", "是", "着", "拿",
                   "骑", ",", "|"))  # fmt: skip
"""Words before which other things stand."""
_PLACED = frozenset(
    (
        "on",
        "top",
        "riding",
        "above",
        "under",
        "below",
        "beneath",
        "underneath",
        "front",
        "before",
        "behind",
        "back",
    )
)
_BEFORE_NOUNS = frozenset(("a", "an", "the", "one", "and", "with", "2", "3", "4", "5", "two", "three", "four", "five",
                           ",", "|"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Named:
    """A thing that the prompt names. `start` and `end` count tokens."""

    thing: int
    start: int
    end: int
    is_certain: bool
    """Whether the words can mean nothing else."""
    count: int
    """0 where nobody says."""
    is_plural: bool
    is_done: bool
    """A word like "fishing", that may be no thing at all."""
    colour: int


def grounded(answers: Answers, said: list[str], words: Words, sky: Sky) -> layout.Wish:
    """The likeliest answers of which the prompt has the words."""
    mentions = words.mentions(said)
    named = _named(mentions, said, words)
    scene, hour, weather = _setting(answers, mentions, words.scenes(said), sky, bool(named))
    first, second = _things(answers, named, bool(scene or hour or weather))
    if first is None:
        return layout.Wish(
            0,
            1,
            _colours(answers, mentions, said, None, None)[0],
            scene=scene,
            hour=hour,
            weather=weather,
        )
    count = first.count or (SOME if first is named[0] and first.is_plural else 1)
    colour, second_colour = _colours(answers, mentions, said, first, second)
    size = int(np.argmax(answers["size"]))
    if second is None:
        return layout.Wish(first.thing, count, colour, 0, 0, scene, 0, size, hour, weather)
    relation = _relation(answers, mentions, said, first, second)
    as_said = (
        first.start < second.start or not said[first.start].isascii()
    )  # Chinese turns some round
    if not as_said and first.is_certain and second.is_certain and relation == SIDE_BY_SIDE:
        first, second, count, size = second, first, second.count or 1, 0
        colour, second_colour = second_colour, colour
    if count == 1 and second.count > 1:  # only the first can be several
        first, second, count, size = second, first, second.count, 0
        colour, second_colour = second_colour, colour
    if count > 1:
        relation = SIDE_BY_SIDE
        count = min(count, layout.COUNT_MAX - 1)
    return layout.Wish(
        first.thing,
        count,
        colour,
        second.thing,
        relation,
        scene,
        second_colour,
        size,
        hour,
        weather,
    )


def _colours(
    answers: Answers,
    mentions: list[Mention],
    said: list[str],
    first: _Named | None,
    second: _Named | None,
) -> tuple[int, int]:
    """The first thing's colour and the second's. A colour right before a thing is its own."""
    if any(each and each.colour for each in (first, second)):
        return first.colour if first else 0, second.colour if second else 0
    told = [m for m in mentions if m.number("colour") is not None and m.number("name") is None]
    allowed = {0, *(number for m in told for number in m.numbers("colour"))}
    colour = _likeliest(answers["colour"], allowed)
    if second is not None:
        return colour, _likeliest(answers["second_colour"], allowed)
    after = [
        m
        for m in told
        if first and m.start >= first.end and said[m.end : m.end + 1] in ([], [","], ["|"])
    ]
    if len(told) == 1 and after:  # "the cat is black"
        colour = told[0].number("colour") or colour
    return colour, 0


def _relation(
    answers: Answers, mentions: list[Mention], said: list[str], first: _Named, second: _Named
) -> int:
    """How two things stand. In English what says it is between them, and after any place: not "on a hill with a bat"."""
    relation = int(np.argmax(answers["relation"])) or SIDE_BY_SIDE
    between = range(min(first.end, second.end), max(first.start, second.start))
    if relation == SIDE_BY_SIDE or not between or not said[between[-1]].isascii():
        return relation
    begin = max(
        (m.end for m in mentions if m.start in between and m.end - 1 in between and m.is_somewhere),
        default=between[0],
    )
    return relation if _PLACED.intersection(said[begin : between[-1] + 1]) else SIDE_BY_SIDE


def _likeliest(probabilities: npt.NDArray[np.float32], allowed: set[int]) -> int:
    return max(sorted(allowed), key=lambda number: float(probabilities[number]))


def _things(
    answers: Answers, named: list[_Named], has_place: bool
) -> tuple[_Named | None, _Named | None]:
    """The thing and the second thing, where there are any."""
    likely, also = answers["thing"], answers["second"]
    certain = [each for each in named if each.is_certain]
    if len(certain) > 2:  # of many the first two
        named = certain = certain[:2]
    elif len(certain) == 2:  # "fishing" beside two things is what is done
        named = [each for each in named if each.is_certain or not each.is_done]
    if not named:
        return None, None
    first = max(
        named,
        key=lambda each: (float(likely[each.thing]), each.is_certain, each.count > 0, -each.start),
    )
    if likely[0] > likely[first.thing] and likely[first.thing] < SURE_ENOUGH:
        if not certain:
            return (None, None) if has_place else (first, None)
        first = max(certain, key=lambda each: (float(likely[each.thing]), -each.start))
    others = [
        each
        for each in named
        if each is not first and (each.is_certain or each.thing != first.thing)
    ]
    second = max(others, key=lambda each: float(also[each.thing]), default=None)
    if second is not None and also[0] > also[second.thing]:
        second = next(
            (each for each in certain if each in others and each.thing != first.thing), None
        )
    if second is not None and second.thing == first.thing and second.start < first.start:
        first, second = second, first
    return first, second


def _named(mentions: list[Mention], said: list[str], words: Words) -> list[_Named]:
    """Every thing that is named, in order."""
    found: list[_Named] = []
    for i, mention in enumerate(mentions):
        own = mention.number("name")
        thing = own if own is not None else mention.number("lead")
        if thing is None or _is_adjective(mention, mentions[i + 1 :], said):
            continue
        before = said[mention.start - 1] if mention.start else ""
        is_certain = (
            own is not None
            and {kind for kind, _ in mention.readings} == {"name"}
            and (not before.isascii() or _is_noun(mention, mentions, said))
        )
        count, colour = _told(mentions, i, said)
        name = said[mention.start : mention.end]
        is_plural = name[-1].isascii() and name[-1].endswith("s") and not words.is_name(name)
        found.append(
            _Named(
                thing,
                mention.start,
                mention.end,
                is_certain,
                count,
                is_plural,
                name[-1].endswith("ing"),
                colour,
            )
        )
    return found


def _is_noun(mention: Mention, mentions: list[Mention], said: list[str]) -> bool:
    """Whether an English word stands where nouns do: after an article, a number or an adjective."""
    ends = {
        m.end for m in mentions if m.number("colour") is not None or m.number("beside") is not None
    }
    before = said[mention.start - 1] if mention.start else ","
    return before in _BEFORE_NOUNS or before.endswith("ing") or mention.start in ends


def _is_adjective(mention: Mention, after: list[Mention], said: list[str]) -> bool:
    """Whether English words that may name a thing say what the next one is like: "an orange cat", "the lazy dog"."""
    if not after or after[0].start != mention.end or after[0].number("name") is None:
        return False
    may_be = mention.number("name") is None or mention.number("colour") is not None
    return may_be and said[mention.start].isascii()


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
        elif word in _NUMBERS and said[at + 1] != "的":  # "十五的月亮" is no five moons
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
    scene = _likeliest(likely, set(places) or signs)
    if not scene and heard["hint"] and not has_thing:
        scene = _likeliest(likely, set(heard["hint"]))
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
