"""What a prompt itself says of its picture's shape and of how many it wants, in Chinese and English. Pure; knows no dialect.

A small reader of set phrases, no language model: what it finds is what stands there, and all else is
None. docs/dialects/ark.md lists the phrases.
"""

from __future__ import annotations

import re

_NOUN = r"(?: (?:shot|angle|format|image|picture|photo|view|crop)|(?=\s*(?:[,.;，。；]|\Z)))"
# "wide eyes" and "a town square" say nothing of a picture's shape. Where two begin at one place the
# first in this table counts.
_PHRASES: tuple[tuple[str, str, str], ...] = (
    ("21:9", "超宽屏?|宽银幕|全景|横幅", r"ultra-?\s?wide|panorama|panoramic|banner"),
    (
        "9:16",
        "手机壁纸|手机屏保|锁屏|竖屏|竖版|竖幅|竖向|竖构图|竖图|纵向",
        r"(?:phone|mobile) (?:wallpaper|screen)|vertical|portrait (?:mode|orientation|format)",
    ),
    ("3:4", "肖像", "portrait"),
    (
        "16:9",
        "电脑壁纸|桌面壁纸|横屏|横版|横向|横构图|横图|宽屏|宽幅",
        r"(?:desktop|computer) (?:wallpaper|background)|horizontal|wide-?\s?screen"
        rf"|landscape (?:mode|orientation|format)|wide{_NOUN}",
    ),
    ("1:1", "正方形|方形构图|方图", rf"square{_NOUN}"),
)
_WORDS = re.compile(
    "|".join(
        rf"(?P<p{index}>{chinese}|(?<![A-Za-z])(?:{english})(?![A-Za-z]))"
        for index, (_, chinese, english) in enumerate(_PHRASES)
    ),
    re.IGNORECASE,
)
# Not a time of day (10:16:9) and not a decimal (1.16:9).
_RATIO = re.compile(r"(?<![\d.:：])(\d{1,2})\s?[:：比]\s?(\d{1,2})(?![\d:：]|\.\d)")

_CHINESE = {
    "一": 1,
    "两": 2,
    "二": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
}
_ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"]  # fmt: skip
_KINDS = "不同|连续|连贯|关联|系列|一致|高清|风格|场景|角度|季节|动作|表情|的"
_PICTURES = "图|插画|照片|画|海报|壁纸|分镜|头像|表情包"
_NUMBER = r"(?<!第)(?:[一两二三四五六七八九十]{1,3}|(?<!\d)\d{1,3})"
# What 张 and 幅 count beside pictures. A clause that comes to one of these before it ends counts things.
_FLAT = (
    "桌(?!面)|椅|凳|床|沙发|茶几|草席|凉席|地毯|毛毯|挂毯|被单|(?<![壁剪折])纸|邮票|车票|门票|电影票|钞|扑克|纸牌|塔罗牌"
    "|麻将|卡片|名片|明信片|脸|面孔|嘴|弓|渔网|古琴|画布|大饼|煎饼|烙饼|唱片|光盘|旗帜|锦旗|国旗|窗帘|对联|标语"
)
_WISH = "画|绘|绘制|生成|制作|创作|设计|做|作|出|来|给我|要|拍|输出|产出"
_COUNT = re.compile(
    # 张 and 幅 also count tables and flags: a picture must be named, or nothing at all; or somebody wishes for
    # so many of what is none of those ("画3张猫").
    rf"(?:\A|[。！!？?；;\n]|{_WISH})\s?(?:我|出|一组|一共|总共|共)?\s?(?:[一两二三四五六七八九\d]{{1,2}}\s?[到至~～-]\s?)?(?P<wished>{_NUMBER})\s?[张幅](?=\s?\w)(?![^，。,.;；、！!？?\n和与在旁]{{0,16}}?(?:{_FLAT}))"
    rf"|(?P<chinese>{_NUMBER})\s?(?:[个种款]\s?版本|[张幅](?:(?:{_KINDS})*(?:{_PICTURES})|[^\s，。,.;；、]{{1,12}}的(?:{_PICTURES})|(?=\s*(?:[，。,.;；、！!]|\Z))))"
    rf"|(?<![A-Za-z\d])(?P<english>{'|'.join(_ENGLISH)}|\d{{1,3}})\s(?:(?:different|separate|consistent|related|connected|unique|more)\s){{0,2}}(?:[a-z]+\s)?"
    r"(?:images|pictures|illustrations|photos|drawings|posters|wallpapers|versions|variations|variants)(?![A-Za-z])",
    re.IGNORECASE,
)

_CLAUSE = re.compile(r"[，。,.;；：:、！!？?\n]|(?<![A-Za-z])but(?![A-Za-z])|而是", re.IGNORECASE)
_DENIED = re.compile(
    r"(?<![分特区性级类个识辨告离])别|不[要用必想需画得能是许准]|勿|(?<![A-Za-z])(?:not|never|avoid|instead of|don['’]?t|doesn['’]?t)(?![A-Za-z])",
    re.IGNORECASE,
)
_VERB = re.compile(
    rf"(?:{_WISH})(?:我|出)?\s?\Z|(?<![油漫动国水版壁图书字插])画(?![面家框廊布])|绘制|生成|制作|创作|设计|给我|来(?![自])|输出|产出|[我想需]要"
    r"|(?<![A-Za-z])(?:draw|generate|make|create|give|paint|produce|render|design|want|need|like)(?![A-Za-z])",
    re.IGNORECASE,
)
_SCENE = re.compile(
    r"[墙挂贴摆]|[有拿](?=[^的]*\Z)|[着里上中这那](?=\s*\Z)"
    r"|(?<![A-Za-z])(?:on|walls?|hold(?:s|ing)?|hanging|full of|covered|showing|these|those|where|(?:with|ha[sd]|have|having)(?!.* in\s*\Z))(?![A-Za-z])",
    re.IGNORECASE,
)
"""Between the verb and a number: so many are in the picture."""
_HUNG = re.compile(
    r"[挂贴摆]在|(?<![A-Za-z])on (?:[a-z]+ ){1,3}(?:wall|walls|door|fridge|desk)(?![A-Za-z])",
    re.IGNORECASE,
)
_THING = re.compile(
    r"照片|海报|(?<![A-Za-z])(?:posters|photos|drawings)(?![A-Za-z])", re.IGNORECASE
)
"""Pictures that are as often things in one."""
_LEAD = re.compile(
    r"\s*(?:请|帮我|我要|一[组套]|[一总]?共|大概|约|(?:please|an?|the|set of|series of)(?![A-Za-z])|[一两二三四五六七八九\d]{1,2}\s?[到至~～-]|\s)*",
    re.IGNORECASE,
)


def read_ratio(prompt: str) -> str | None:
    """The ratio a prompt asks for ("16:9"): figures before words, the first of each; None = it says none.

    Figures count where they are some provider's ratio; "3:7" is left to the picture.
    """
    for match in _RATIO.finditer(prompt):
        ratio = f"{int(match[1])}:{int(match[2])}"
        if ratio in RATIOS:
            return ratio
    found = _WORDS.search(prompt)
    if found is None:
        return None
    assert found.lastgroup is not None
    return _PHRASES[int(found.lastgroup[1:])][0]


RATIOS = frozenset({"1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9"})
"""What the providers' tables have."""


def read_count(prompt: str) -> int | None:
    """How many pictures a prompt asks for ("四张图", "a set of 4 images"); the first number that it asks with counts.

    It asks at its beginning and behind a verb of drawing; where it does nowhere, a clause may name pictures
    alone ("一只猫，四张图"). What it denies or puts into the scene is no number of pictures, nor is zero. None = it
    says none.
    """
    named = None
    for match in _COUNT.finditer(prompt):
        count, is_asked = _number(match), _is_asked(prompt, match)
        if count > 0 and is_asked:
            return count
        if count > 0 and is_asked is not None and named is None:
            named = count
    return named


def _is_asked(prompt: str, match: re.Match[str]) -> bool | None:
    """Whether a number is what the prompt asks for; False where it merely names pictures, None where it is another's."""
    start = match.start(match.lastgroup or 0)
    clauses = _CLAUSE.split(prompt[:start])
    before, behind = clauses[-1], _CLAUSE.split(prompt[start:])[0]
    verbs = list(_VERB.finditer(before))
    if _DENIED.search(before) or _SCENE.search(before, verbs[-1].end() if verbs else 0):
        return None
    if not verbs and _HUNG.search(behind):
        return None
    if verbs or (not any(map(str.strip, clauses[:-1])) and _LEAD.fullmatch(before)):
        return True
    return None if _THING.search(behind) else False


def _number(match: re.Match[str]) -> int:
    text = match["wished"] or match["chinese"] or match["english"]
    if text.isdecimal():
        return int(text)
    return _ENGLISH.index(text.lower()) + 1 if match["english"] else _chinese(text)


def _chinese(text: str) -> int:
    """一 to 九十九; what is no number ("一二") is 0."""
    tens, ten, ones = text.rpartition("十")
    if not ten:
        return _CHINESE.get(text, 0)
    high, low = _CHINESE.get(tens, 0) if tens else 1, _CHINESE.get(ones, 0) if ones else 0
    return 0 if (tens and not high) or (ones and not low) else high * 10 + low
