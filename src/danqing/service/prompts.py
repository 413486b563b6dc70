"""Rule-based prompt extension: adds words on light and detail in the prompt's language. Pure text."""

from __future__ import annotations

import re

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f]")
_END = " \t\r\n,.;:!?，。；：！？、…"

# By style: Chinese words, English words. Another style than these gets the default.
_WORDS = {
    "vivid": ("色彩鲜明，光线生动，细节丰富", "vivid colours, dramatic light, rich detail"),
    "natural": ("色彩自然，光线柔和，细节真实", "natural colours, soft light, true-to-life detail"),
}
_STYLE_DEFAULT = "vivid"


def is_chinese(text: str) -> bool:
    """True when the text has any Han character."""
    return _HAN.search(text) is not None


def extend(prompt: str, style: str | None, chars_max: int) -> str:
    """The prompt with words on colour, light and detail at its end; its own words come first.

    Deterministic, and extending twice adds nothing. A prompt that would pass `chars_max` characters,
    an empty one, and one that already ends in such words are given back as they are.
    """
    own = prompt.rstrip(_END)
    if not own or any(own.endswith(words) for pair in _WORDS.values() for words in pair):
        return prompt
    chinese, english = _WORDS.get(style or "", _WORDS[_STYLE_DEFAULT])
    extended = f"{own}，{chinese}" if is_chinese(prompt) else f"{own}, {english}"
    return extended if len(extended) <= chars_max else prompt
