"""Pocket's tokenizer: a prompt -> rows of hashed features. Pure Python; knows no network and no vocabulary."""

from __future__ import annotations

import re
import unicodedata
import zlib

CHARACTERS_MAX = 256  # nothing beyond is looked at, however long the prompt
TOKENS_MAX = 96
FEATURES = 16384  # rows of the embedding; row 0 is "nothing here"
FEATURES_PER_TOKEN = 3

# Clauses that say how to draw and not what. They are read past, as if they were not there.
_MANNERS = frozenset(
    "vivid colours,vivid colors,dramatic lighting,rich detail,natural colours,natural colors,natural light,"
    "fine texture,high quality,best quality,masterpiece,highly detailed,4k,8k,"
    "明快的色调,明亮的光线,细节丰富,素雅的色调,光线柔和,细节真实,高清,超高清,高质量,"
    "鮮やかな色彩,印象的な光,豊かなディテール,自然な色合い,柔らかな光,リアルな質感,"
    "선명한색감,극적인빛,풍부한디테일,자연스러운색감,부드러운빛,사실적인질감".replace(
        " ", ""
    ).split(",")
)
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\W_]|[^\w\s,.;:!?，。；：！？、]", re.UNICODE)
_BREAK = re.compile(r"[,.;:!?，。；：！？、\n]")
_LATIN = re.compile(r"[a-z]")

# What is not wanted: the words that say so, and how far they reach.
_STOPS = (
    r"and\s+(?:an?|the|one|some|two|three|four|five|with)|but|just|only|instead|i|with|in|on|at|under|beside|near|next"
    "|by|behind|above|over|below|inside|outside|from|to|while|where|when|that|which|who|is|are|has|have|no|without"
    "|(?:sit|stand|play|run|sleep|walk|look|smile|eat|wait|float|jump|hold|wear|ride|swim)s|dances|lies|flies"
    "|(?:sitt|stand|play|runn|sleep|rest|walk|ly|look|smil|danc|eat|wait|float|jump|hold|wear|rid|fly|swimm)ing"
    r"(?=\s*(?:$|[^\w\s]|(?:in|on|at|by|under|near|next|around|along|through|across|over|with|to|down|up|and)\b))"
)
_SAYINGS = (  # "no more than two cats", "there is no place like home", "a no parking sign"
    "more|less|fewer|longer|matter|doubt|one|idea|problem|parking|smoking|entry|place|way|wonder|movie|country|to"
    "|only|just|so|very|too|even|yet|sure|quite|really|necessarily|bad|far|in|on|at|sitting|standing|looking|included|pictured"
)
_DENIED = re.compile(
    rf"""
    (?:\b(?:with|there\s+(?:is|are)|(?:(?:that|which|who)\s+)?(?:is|are)|and|but)\s+)?
    (?:\b(?:(?<!\bsay\s)(?<!\bsays\s)(?<!\bsaid\s)(?<!\bsaying\s)(?<!\bdr\.\s)(?<!\bdr\s)no|without
    |free\s+of|instead\s+of|rather\s+than|(?:anything|everything|all)\s+(?:but|except)|except(?:\s+for)?|(?<!\bis\sit\s)not|(?:that|which|it|he|she)['’]s\s+not|(?:is|are)n['’]t|(?:do\s+not|don['’]?t|never)\s+(?:draw|include|show|add|put|want))
    \s+(?!(?:an?\s+)?(?:{_SAYINGS})\b|[0-9]|[a-z]+['’]s\b|(?:[a-z]+\s+){{1,2}}allowed\b)
    (?:(?:any|an?|the)\s+)?
    (?P<en>[^\W_](?:(?!\s(?:{_STOPS})\b)[^,.;:!?，。；：！？、\n()])*))
    | (?:也|并且?|而且?|又|还|但)?
    (?:(?<![有要])(?:没有|沒有|不要(?![紧緊忘脸臉命]|[有画畫]?[个個])|(?<![是可要])不是(?![很太特吗])|不画|别画|除了|除去|而非|并非|不想要|不需要|不带|不含)|(?<![埋淹沉出隐])没(?=[云太]))
    (?:画|畫|出现|出現|加|有)?(?:任何|一[丝点片朵个只])?
    (?P<zh>(?:(?:[红橙黄绿青蓝紫粉棕黑白灰]色?|多余|其他|其它|[大小])的)*
    (?:(?!但|而|只|[在坐站我要])[^的,.;:!?，。；：！？\n()\s])+)的?
    | \b(?P<less>cloud|sun)less\b | (?:万里无|萬里無|无(?=云)|無(?=雲))(?P<no>[云雲])的?
    """,
    re.VERBOSE,
)  # fmt: skip
_AND = re.compile(r"\s*(?:\band\b|\bor\b|&|和|与|與|及|或者?|、)\s*")
_SKY = {
    "sun": re.compile(r"\b(?:sun|suns|sunshine|sunlight)\b|太阳|太陽"),
    "moon": re.compile(r"\bmoons?\b|月亮|明月|圆月|弯月|月牙"),
    "cloud": re.compile(r"\b(?:clouds?|cloudy|overcast)\b|云|雲"),
}


def apart(prompt: str) -> tuple[str, tuple[str, ...]]:
    """(the prompt without what it says is not wanted, each thing that is not): "a cat, no clouds or birds"."""
    whole = folded(prompt)
    denied: list[str] = []

    def taken(found: re.Match[str]) -> str:
        if found["less"]:
            denied.append(found["less"] + "s")
        else:
            said = found["en"] or found["zh"] or found["no"]
            denied.extend(part for word in _AND.split(said) if (part := word.strip()))
        return ""

    wanted = _DENIED.sub(taken, whole)
    return (wanted, tuple(denied)) if denied else (prompt, ())


def phrases(negative: str) -> tuple[str, ...]:
    """A negative prompt's phrases, each by itself."""
    parts = (
        part.strip() for clause in _BREAK.split(folded(negative)) for part in _AND.split(clause)
    )
    return tuple(part for part in parts if part)


def sky_of(said: tuple[str, ...]) -> str:
    """Which of the sun, the moon and the clouds the phrases name: "", "sun", "cloud", "sun moon cloud"."""
    return " ".join(kind for kind, words in _SKY.items() if any(words.search(p) for p in said))


def folded(prompt: str) -> str:
    return unicodedata.normalize("NFKC", prompt[:CHARACTERS_MAX]).lower()[:CHARACTERS_MAX]


def _feature(kind: str, text: str) -> int:
    return 1 + zlib.crc32(f"{kind}:{text}".encode()) % (FEATURES - 1)


def stem(word: str) -> str:
    """The word without a plural ending, so that cats and cat share a feature."""
    for ending, instead in (
        ("ies", "y"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("xes", "x"),
        ("ves", "f"),
    ):
        if len(word) > len(ending) + 1 and word.endswith(ending):
            return word[: -len(ending)] + instead
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su" else word


def split(prompt: str) -> list[list[str]]:
    """The prompt's clauses as lists of words (Latin) and single characters (everything else)."""
    clauses = [_TOKEN.findall(clause) for clause in _BREAK.split(folded(prompt))]
    return [clause for clause in clauses if clause and "".join(clause) not in _MANNERS]


def tokenize(prompt: str) -> list[list[int]]:
    """At most 96 tokens; each is itself, itself with the next, and (a stem | the next two)."""
    tokens: list[list[int]] = []
    for clause in split(prompt):
        stems = [stem(word) for word in clause]
        for i, word in enumerate(stems):
            pair = _feature("2", " ".join(stems[i : i + 2])) if i + 1 < len(stems) else 0
            if _LATIN.match(word):
                third = _feature("w", clause[i])
            else:
                third = _feature("3", "".join(stems[i : i + 3])) if i + 2 < len(stems) else 0
            tokens.append([_feature("1", word), pair, third])
            if len(tokens) == TOKENS_MAX:
                return tokens
    return tokens or [[0] * FEATURES_PER_TOKEN]
