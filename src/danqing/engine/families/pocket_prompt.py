"""What a prompt and a negative prompt ask for. Knows words and the text network, no pixels.

A prompt is put in plain words (pocket_plain.py), the text network says what they ask for, and an answer counts only where a
word stands for it (pocket_ground.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_ground import Answers, grounded
from danqing.engine.families.pocket_plain import plain
from danqing.engine.families.pocket_sky import Sky
from danqing.engine.families.pocket_text import (
    CHARACTERS_MAX,
    apart,
    phrases,
    sky_of,
    split,
    tokenize,
)
from danqing.engine.families.pocket_words import Words, tokens

CACHED_PROMPTS_MAX = 512


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a prompt and a negative prompt ask for together."""

    wish: layout.Wish
    understood: bool
    without: str = ""
    """What the sky is to be clear of (`sky_of`)."""
    nowhere: frozenset[int] = frozenset()
    """Scenes that are not to be chosen."""


class Prompts:
    """`answer`: tokens (1, n, features) -> the text network's answers."""

    def __init__(
        self, answer: Callable[[npt.NDArray[np.int64]], Answers], words: Words, sky: Sky
    ) -> None:
        self._answer = answer
        self._words = words
        self._sky = sky
        self._wishes: OrderedDict[str, layout.Wish] = OrderedDict()

    def asked(self, prompt: str, negative: str) -> Conditioning:
        """The prompt, less what it or the negative prompt says is not wanted."""
        wanted, denied = apart(prompt)
        if denied and not split(wanted) and not all(map(self._knows, denied)):
            wanted, denied = prompt, ()  # a title or a saying, and no denial
        wish = self.read(wanted)
        more, most = apart(negative)
        denied += (*phrases(more), *most)
        unwanted = [self._denied(phrase) for phrase in denied]
        for each in unwanted:
            wish = layout.less(wish, each)
        nowhere = frozenset(each.scene for each in unwanted if each.scene and not each.thing)
        return Conditioning(wish, bool(wish.thing or wish.scene), sky_of(denied), nowhere)

    def _denied(self, phrase: str) -> layout.Wish:
        """What is not to be there. Without clouds a sky is one still, so that what is above names no place."""
        said = self._sky.said(self.read(phrase))
        return replace(said, scene=0, hour=0, weather=0) if sky_of((phrase,)) else said

    def _knows(self, phrase: str) -> bool:
        """Whether it names something that can be left out."""
        said = self.read(phrase)
        return bool(said.thing or said.scene or said.colour or sky_of((phrase,)))

    def read(self, prompt: str) -> layout.Wish:
        """What the prompt asks for, whatever it says is not wanted."""
        key = prompt[:CHARACTERS_MAX]
        if key in self._wishes:
            self._wishes.move_to_end(key)
            return self._wishes[key]
        said = plain(key, self._words)
        wish = self._heard(said)
        if not wish.thing and (loosely := plain(key, self._words, vague=True)) != said:
            wish = self._heard(loosely)
        self._wishes[key] = wish
        if len(self._wishes) > CACHED_PROMPTS_MAX:
            self._wishes.popitem(last=False)
        return wish

    def _heard(self, said: str) -> layout.Wish:
        """What plain words ask for."""
        answers = self._answer(np.array([tokenize(said)], dtype=np.int64))
        return self._sky.settled(grounded(answers, tokens(said), self._words, self._sky))
