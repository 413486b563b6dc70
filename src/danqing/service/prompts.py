"""Rule-based prompt extension: adds words on colour, light and detail in the prompt's language. Pure text.

The words name no thing, count or colour, and none that pocket takes for one: it draws the same picture with
them (tests/engine/test_extension.py). A prompt that speaks of its colours, light or detail itself gets no word on them.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Script = Literal["zh", "ja", "ko", "latin", "other"]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f]")
_KANA = re.compile("[\u3040-\u30ff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_LETTER = re.compile(r"[^\W\d_]")
_END = " \t\r\n,.;:!?，。；：！？、…"
_STYLE_DEFAULT = "vivid"


class _Words(NamedTuple):
    """By facet (colour, light, detail): what is added, by style; and what brings between them."""

    comma: str
    vivid: tuple[str, str, str]
    natural: tuple[str, str, str]


_WORDS: dict[Script, _Words] = {
    "zh": _Words(
        "，", ("明快的色调", "明亮的光线", "细节丰富"), ("素雅的色调", "光线柔和", "细节真实")
    ),
    "ja": _Words(
        "、",
        ("鮮やかな色彩", "印象的な光", "豊かなディテール"),
        ("自然な色合い", "柔らかな光", "リアルな質感"),
    ),
    "ko": _Words(
        ", ",
        ("선명한 색감", "극적인 빛", "풍부한 디테일"),
        ("자연스러운 색감", "부드러운 빛", "사실적인 질감"),
    ),
    "latin": _Words(
        ", ",
        ("vivid colours", "dramatic lighting", "rich detail"),
        ("natural colours", "natural light", "fine texture"),
    ),
}
# What a prompt says of a facet itself.
_SAID = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"colou?r|monochrom|black[ -]and[ -]white|gr[ea]yscale|sepia|pastel|palette|\btones?\b|line ?art"
        r"|色调|色彩|配色|单色|黑白|水墨|素描|线稿|灰度|淡彩|色合い|モノクロ|白黒|색감|색조|흑백",
        r"light|\blit\b|shadow|dark|night|sunset|sunrise|\bdawn|\bdusk|neon|glow"
        r"|光|影|暗|夜|黄昏|日落|日出|黎明|傍晚|夕|朝焼け|빛|조명|밤|노을|어두",
        r"detail|minimal|\bflat\b|simple|abstract|blur|texture"
        r"|细节|极简|简约|简单|扁平|抽象|模糊|质感|ディテール|質感|シンプル|디테일|질감|미니멀|단순",
    )
)
_ENDINGS = tuple(word for words in _WORDS.values() for word in (*words.vivid, *words.natural))


def is_chinese(text: str) -> bool:
    """True when the text has any Han character."""
    return _HAN.search(text) is not None


def script_of(text: str) -> Script:
    """The language as far as its letters tell: Japanese by its kana, Korean, Chinese, else what most letters are."""
    if _KANA.search(text):
        return "ja"
    if _HANGUL.search(text):
        return "ko"
    if _HAN.search(text):
        return "zh"
    letters = _LETTER.findall(text)
    latin = _LATIN.findall(text)
    return "latin" if letters and 2 * len(latin) >= len(letters) else "other"


def extend(prompt: str, style: str | None, chars_max: int) -> str:
    """The prompt with words on colour, light and detail at its end; its own words come first.

    Deterministic, and extending twice adds nothing. A prompt that would pass `chars_max` characters, one in
    a language that has no words here, and one that already ends in such words are given back as they are.
    """
    own = prompt.rstrip(_END)
    words = _WORDS.get(script_of(own))
    if words is None or own.endswith(_ENDINGS):
        return prompt
    chosen = words.natural if (style or _STYLE_DEFAULT) == "natural" else words.vivid
    added = [word for word, said in zip(chosen, _SAID, strict=True) if said.search(own) is None]
    extended = words.comma.join([own, *added])
    return extended if added and len(extended) <= chars_max else prompt
