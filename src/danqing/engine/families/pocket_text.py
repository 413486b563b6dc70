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


def _feature(kind: str, text: str) -> int:
    return 1 + zlib.crc32(f"{kind}:{text}".encode()) % (FEATURES - 1)


def _stem(word: str) -> str:
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
    folded = unicodedata.normalize("NFKC", prompt[:CHARACTERS_MAX]).lower()[:CHARACTERS_MAX]
    clauses = [_TOKEN.findall(clause) for clause in _BREAK.split(folded)]
    return [clause for clause in clauses if clause and "".join(clause) not in _MANNERS]


def tokenize(prompt: str) -> list[list[int]]:
    """At most 96 tokens; each is itself, itself with the next, and (a stem | the next two)."""
    tokens: list[list[int]] = []
    for clause in split(prompt):
        stems = [_stem(word) for word in clause]
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
