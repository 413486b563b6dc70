"""A prompt in the plain words that pocket was taught: courtesy, frames and strange words left out, numbers up to five.

Knows words, no network. "Could you please make me a birthday card with seven fluffy glorbnak cats?" -> "five fluffy cats".
"""

from __future__ import annotations

import re
from functools import partial

from danqing.engine.families.pocket_text import folded
from danqing.engine.families.pocket_words import BREAK, Mention, Words, tokens

# What a picture may be printed on or made as. "A poster of a fox" is a fox.
_MADE_AS = (
    "posters?|postcards?|(?:(?:christmas|birthday|greeting|valentine|holiday|thank you|new year) )?cards?|stickers?|logos?|icons?"
    "|banners?|wallpapers?|illustrations?|artworks?|prints?|invitations?|flyers?|paintings?|drawings?|sketch(?:es)?|pictures?"
    "|photos?|photographs?|images?|portraits?|renders?|renderings?|avatars?|stamps?|murals?|tattoos?|comics?|cartoons?|cliparts?"
    "|doodles?|watercolou?rs?|close-?ups?|shots?|scenes?|views?|graphics?|vectors?|patterns?|pics?|covers?"
    "|(?:[a-z'-]+ )?(?:design|art|page|cover|print)s?"
)
_EN_FRAME = re.compile(
    rf"(?:(?<=^)|(?<=[,.;:!?\n]))\s*(?:(?!(?:and|with|in|on|at|near|next|beside|by|under|behind|holding|of)\b)[a-z0-9'’-]+\s+){{0,7}}?"
    rf"(?:{_MADE_AS})\s+(?:of|with|showing|depicting|featuring|about|(?:that|which)\s+(?:shows?|has)|for)\s+"
)
_EN_WHOSE = re.compile(
    r"\b(?:my|our|his|her)\s+[a-z]+(?:\s+[a-z]+)?\s+(?:(?:really|just)\s+)?(?:loves?|likes?|wants?|adores?|needs?|asked\s+for|wishe?[sd]?\s+for)\s+"
)
_EN_MANNER = re.compile(
    r",\s*(?:[a-z'’-]+\s+){0,4}(?:art|style|illustration|painting|drawing|render|rendering|photography|design|print|vector|look)\s*(?=$|[,.;!?])"
    r"|\bin\s+(?:the\s+)?(?:[a-z'-]+\s+){0,2}(?:style|manner)(?:\s+of\s+[^,.;:!?]*)?"
)
_ZH_MADE_AS = (
    "明信片|海报|绘本插图|绘本插画|绘本封面|绘本|插画|插图|贺卡|生日卡|圣诞卡|卡片|壁纸|贴纸|头像|表情包|图标|封面|油画|水彩画?|素描|国画"
    "|水墨画|剪纸|照片|图片|画作|画像|邮票|漫画|卡通画|简笔画|横幅|图案|背景图|儿童画|宣传画|手绘|logo|彩铅画|版画|动漫图"
)
_ZH_FRAME = re.compile(
    rf"(?:(?:请|麻烦你?|帮忙|帮我|给我|我?想要|想看看?|看看)*(?:画|做|生成|设计|制作|来|要|创作)?(?:一下)?)?"
    rf"(?:(?:一|这|那)?(?:张|幅|份|个|套|款|枚|组)[^,.;:!?，。；：！？、的\s]{{0,6}}?)?(?:{_ZH_MADE_AS})"
    rf"(?:上面?|里面?|中)?(?:的?(?:画着|印着|画有|印有|画的是|内容是|主题是|主题为|展示了?|描绘了?|上?有)|的是?|[,:，：])"
)
_ZH_FRAMED = re.compile(
    rf"的?(?:卡通|手绘|水彩|生日|圣诞|新年|节日|复古|儿童|旅行|电影|宣传|可爱|精美|简约|彩色){{0,2}}(?:{_ZH_MADE_AS})(?=$|[,.;:!?，。；：！？、\s])"
)
_ZH_MAKE = re.compile(
    r"(?:画|做|生成|设计|制作|来|要|创作)(?:一)?(?:张|幅|份|套|款)(?=[^,.;:!?，。；：！？、]*$)"
)
_OVER_WATER = re.compile(
    r"\b(?:over|above|across)\s+(?=(?:the\s+|a\s+)?(?:[a-z]+\s+)?(?:sea|ocean|water|waves)\b)"
)
_EN_MANY = re.compile(
    r"\b(?:(?:an?|many|several|some)\s+)?(?:(?:couple|few)\s+)?(?:dozens?|hundreds?|thousands?|millions?|flocks?|herds?|swarms?|crowds?|packs?"
    r"|groups?|lots?|tons?|loads?|plenty|handfuls?|school(?=\s+of\s+\w*fish)|half\s+a\s+dozen)(?:\s+(?:of|and)\b)?"
    r"(?=\s+[a-z])|\b(?:too\s+|so\s+|very\s+)?many(?=\s+[a-z])|\b(?:numerous|countless|innumerable)\b"
    r"|\b(?:six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:[\s-](?:one|two|three|four|five|six|seven|eight|nine))?\b"
    r"|\b(?:[6-9]|[1-9][0-9]+)(?=\s+(?!(?:years?|days?|hours?|mm|cm|px|am|pm|percent|degrees|k|d)\b)[a-z])"
)
_EN_FEW = re.compile(r"\b(?:a\s+few|several|some)\b(?=\s+[a-z]+)")
_EN_PAIRED = re.compile(
    r"\b(a|two|three|four|five)\s+pairs?\s+of\s+(?=(?:[a-z]+\s+)?(?:glasses|sunglasses|spectacles|scissors|jeans|trousers|pants"
    r"|gloves|mittens|socks|headphones|eyes|skates|shorts)\b)"
)
_ZH_NUMBER = re.compile(
    r"(?<![第0-9])([0-9]+|[一二两三四五六七八九十百千万几数]+)(?=[多几来]?(?:[^\W\d_]))"
)
_ZH_MANY = re.compile(
    r"(?:[许很好]多|无数|众多|大量|满地的?|成群的|成千上万的?|数不清的?|一?大?群|一大?堆|一打|若干|一排排?|好几)"
)
_ZH_FEW = re.compile(r"一些|有些")
_ARTICLES = frozenset(
    ["a", "an", "my", "your", "his", "her", "their", "our", "its", "another", "each", "every"]
)
_BEFORE = frozenset(
    [
        "is",
        "are",
        "of",
        "me",
        "draw",
        "paint",
        "want",
        "see",
        "with",
        "for",
        "and",
        "sketch",
        "make",
    ]
)
_BEFORE_VERBS = frozenset(
    ("to", "i", "you", "we", "they", "can", "could", "will", "would", "who", "not", "let", "don't")
)
_MORE_THAN_FIVE = re.compile(r"[十百千万六七八九]")


def plain(prompt: str, words: Words, vague: bool = False) -> str:
    """The prompt as its words that mean something and those that join them, one space between.

    Words of a kind with a thing that pocket knows become that thing's name ("a beagle"); with `vague`, loosely too ("a blacksmith").
    """
    said = _counted(_OVER_WATER.sub("on ", folded(prompt)), words)
    said = _EN_MANNER.sub("", _EN_FRAME.sub(" ", _EN_WHOSE.sub("", said)))
    said = _ZH_FRAMED.sub("", _ZH_FRAME.sub("", said))
    clauses: list[list[str]] = [[]]
    for token in tokens(said):
        if token == BREAK:
            clauses.append([])
        else:
            clauses[-1].append(token)
    kinds = ("kin", "vague") if vague else ("kin",)
    kept = (_kept(_renamed(clause, words, kinds), words) for clause in clauses)
    return ", ".join(" ".join(clause) for clause in kept if clause)


def _counted(said: str, words: Words) -> str:
    """With five instead of every larger number, and for what is only said to be many."""
    said = _EN_PAIRED.sub(lambda m: f"{m[1]} ", said)
    said = _EN_FEW.sub("three", _EN_MANY.sub("five", said))
    said = _ZH_FEW.sub("三个", said)
    said = _ZH_MANY.sub("五个", said)
    return _ZH_NUMBER.sub(partial(_number, words=words), said)


def _number(found: re.Match[str], words: Words) -> str:
    """A Chinese number before a measure word, five at most."""
    after = found.string[found.end() :].lstrip("多几来")[:1]
    if after not in words.measures:
        return found[0]
    said = found[0]
    if said.isdigit():
        return said if int(said[:9]) <= 5 else "五"
    if said in ("几", "数"):
        return "三"
    return "五" if _MORE_THAN_FIVE.search(said) or len(said) > 1 else said


def _renamed(clause: list[str], words: Words, kinds: tuple[str, ...]) -> list[str]:
    """A clause with known names in place of words of their kind, where those stand as nouns do."""
    if not any(mention.is_something for mention in words.mentions(clause)):
        clause = [token.removesuffix("'s") for token in clause]  # "a lion's head"
    named = list(clause)
    for mention in reversed(words.mentions(clause)):
        thing = next((number for kind, number in mention.readings if kind in kinds), None)
        if thing is not None and _is_noun(clause, mention, words):
            last = clause[mention.end - 1]
            named[mention.start : mention.end] = words.spoken(thing, last)
    return named


def _is_noun(clause: list[str], mention: Mention, words: Words) -> bool:
    """Whether nothing speaks against it: a verb's place in English, or one character of a longer word in Chinese."""
    if not mention.start:
        return clause[0].isascii() or mention.end - mention.start > 1 or mention.end == len(clause)
    before = clause[mention.start - 1]
    if before.isascii():
        return before not in _BEFORE_VERBS
    return mention.end - mention.start > 1 or before in words.measures or before in "的和与跟、"


def _kept(clause: list[str], words: Words) -> list[str]:
    """A clause without strange words, and in English without what is said before its first thing and after its last."""
    found = words.mentions(clause)
    meant = [mention for mention in found if mention.is_something]
    if not meant:
        return []
    first, end = 0, len(clause)
    if clause[0].isascii():
        first, end = _first(clause, meant[0]), meant[-1].end
    named = {at for mention in found for at in range(mention.start, mention.end)}
    return [
        "a" if token in _ARTICLES else token
        for at, token in enumerate(clause[:end])
        if at >= first
        and (at in named or words.knows(token) or token in _ARTICLES or token.endswith("ing"))
    ]


def _first(clause: list[str], mention: Mention) -> int:
    """Where the words that belong to the first mention begin."""
    at = mention.start
    while at and (
        clause[at - 1] not in _BEFORE or clause[at - 2 : at - 1] in (["pair"], ["couple"])
    ):
        at -= 1
        if clause[at] in _ARTICLES or clause[at] in ("the", "one", "there"):
            break
    return at
