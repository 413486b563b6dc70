"""Sentence patterns of the captions: those trained on and those held out for the probe. Data only."""

from __future__ import annotations

from pathlib import Path

EN_COUNTS = {
    2: ("two", "2", "a pair of", "a couple of"),
    3: ("three", "3"),
    4: ("four", "4"),
    5: ("five", "5"),
}
ZH_COUNTS = {2: ("两", "2", "二", "俩"), 3: ("三", "3"), 4: ("四", "4"), 5: ("五", "5")}

EN_ADJECTIVES = (
    "cute", "little", "happy", "beautiful", "lovely", "fluffy", "adorable", "funny",
    "cartoon", "pretty", "magical", "smiling", "sleepy", "brave", "chubby",
    "very cute", "delicious", "shiny", "old", "new", "young", "fresh", "friendly",
)  # fmt: skip
ZH_ADJECTIVES = (
    "可爱的", "快乐的", "美丽的", "漂亮的", "毛茸茸的", "胖乎乎的", "萌萌的", "有趣的",
    "卡通", "开心的", "非常可爱的", "超级可爱的", "帅气的", "神奇的", "好看的", "微笑的", "呆萌的", "勇敢的",
    "新鲜的", "闪闪发光的", "调皮的", "温柔的", "年轻的", "憨态可掬的",
)  # fmt: skip
EN_SIZES = {"small": ("small", "tiny", "very small", "miniature", "mini"),
            "big": ("big", "huge", "giant", "large", "enormous", "very big")}  # fmt: skip
ZH_SIZES = {"small": ("小小的", "很小的", "迷你的", "微小的", "袖珍"),
            "big": ("大大的", "巨大的", "很大的", "超大的", "庞大的")}  # fmt: skip
EN_VERBS = (
    "sitting", "standing", "playing", "running", "sleeping", "resting", "walking", "lying",
    "looking around", "smiling", "dancing", "eating", "waiting", "floating",
)  # fmt: skip
ZH_VERBS = ("坐", "站", "躺", "趴", "走", "玩耍", "睡", "停", "跳舞", "奔跑", "漂浮", "放")

# {x}: the things with their words; {s}: a scene phrase that begins with its preposition (English).
EN_BARE = (
    "{x}", "a picture of {x}", "draw {x}", "please draw {x} for me", "{x}, digital art",
    "an illustration of {x}", "generate an image of {x}", "i want {x}", "a drawing of {x}",
    "create a cartoon picture of {x}", "can you draw {x}?", "{x}, flat style, simple",
    "a photo of {x}", "could you please paint {x}", "{x} emoji", "there is {x}", "show me {x}",
)  # fmt: skip
EN_PLACED = (
    "{x} {s}", "{x} {v} {s}", "{x}, {s}", "{s}, {x}", "a picture of {x} {s}", "draw {x} {s}",
    "please draw {x} {v} {s}", "{s} there is {x}", "an illustration of {x} {s}",
    "generate an image of {x} {v} {s}", "{x} {v} happily {s}, 4k, high quality", "{x} that is {v} {s}",
    "a cartoon of {x} {v} {s}", "{x} {v}, the background is {s}", "a photo of {x} {s}",
    "i would like to see {x} {s}", "{s}, we can see {x} {v}", "paint {x} {s}, bright colours",
)  # fmt: skip
EN_SCENE_ONLY = (
    "{s}",
    "a beautiful view {s}",
    "a landscape {s}",
    "draw a scene {s}",
    "an empty place {s}",
)
ZH_BARE = (
    "{x}", "画{x}", "请画{x}", "请帮我画{x}", "帮我画一张{x}的图片", "生成{x}", "生成一张{x}的图", "一幅画，画的是{x}",
    "我想要{x}", "给我画{x}吧", "{x}，卡通风格", "{x}，高清，细节丰富", "来{x}", "麻烦你帮我画{x}，谢谢",
    "画一个{x}", "{x}的插画", "请生成一张关于{x}的图片", "{x}的照片", "有{x}", "能不能画{x}",
)  # fmt: skip
ZH_PLACED = (
    "{x}在{s}", "{s}的{x}", "{s}有{x}", "画{x}在{s}", "{x}{v}在{s}", "{x}，背景是{s}", "在{s}，{x}", "请帮我画{x}，{v}在{s}",
    "请画{x}{v}在{s}", "{x}，{v}在{s}，高清，插画风格", "生成一张{x}在{s}的图片", "{s}，{x}", "{x}正{v}在{s}", "一张图片：{s}，有{x}",
    "我想要一张{s}有{x}的画", "{x}，{s}", "画一幅画：{x}在{s}{v}", "{x}，场景是{s}，温馨可爱",
)  # fmt: skip
ZH_SCENE_ONLY = (
    "{s}",
    "画{s}",
    "一片{s}",
    "美丽的{s}",
    "请画{s}的风景",
    "{s}的风景画",
    "一张{s}的图片",
)

EN_RELATIONS = {
    "beside": ("{a} and {b}", "{a} next to {b}", "{a} beside {b}", "{a} with {b}", "{a} holding {b}",
               "{a} near {b}", "{a} together with {b}", "{a} looking at {b}", "{a} playing with {b}"),
    "on": ("{a} on {b}", "{a} on top of {b}", "{a} sitting on {b}", "{a} standing on {b}", "{a} riding {b}",
           "{a} above {b}"),
    "under": ("{a} under {b}", "{a} below {b}", "{a} beneath {b}", "{a} sitting under {b}",
              "{a} underneath {b}"),
    "front": ("{a} in front of {b}", "{a} standing in front of {b}", "{a} before {b}", "{a} sitting in front of {b}"),
    "behind": ("{a} behind {b}", "{a} hiding behind {b}", "{a} standing behind {b}", "{a} at the back of {b}"),
}  # fmt: skip
ZH_RELATIONS = {
    "beside": ("{a}和{b}", "{a}与{b}", "{a}跟{b}", "{a}在{b}旁边", "{a}拿着{b}", "{b}旁边有{a}", "{a}和{b}在一起",
               "{a}看着{b}", "{a}、{b}"),
    "on": ("{a}在{b}上", "{a}在{b}上面", "{a}坐在{b}上", "{a}站在{b}上面", "{a}骑着{b}", "{b}上有{a}", "{a}趴在{b}上"),
    "under": ("{a}在{b}下", "{a}在{b}下面", "{a}在{b}底下", "{b}下有{a}", "{a}坐在{b}下", "{a}躲在{b}下面"),
    "front": ("{a}在{b}前面", "{a}站在{b}前", "{a}坐在{b}前面", "{b}前面有{a}", "{a}在{b}前"),
    "behind": ("{a}在{b}后面", "{a}躲在{b}后面", "{b}后面有{a}", "{a}站在{b}后"),
}  # fmt: skip

# Held out: never trained on.
EN_BARE_HELD = (
    "make me {x}",
    "{x}, children's book art",
    "my favourite thing: {x}",
    "kindly sketch {x}",
)
EN_PLACED_HELD = (
    "a postcard with {x} {s}", "sketch {x} {v} quietly {s}", "{s} one can spot {x}",
    "my kid loves {x}, so show it {s}", "children's book art of {x} {v} {s}",
)  # fmt: skip
ZH_BARE_HELD = ("麻烦画一下{x}", "儿童绘本里的{x}", "帮忙做一张{x}的海报", "{x}，手绘水彩")
ZH_PLACED_HELD = (
    "明信片上画着{x}，{v}在{s}", "绘本插图，{s}，{x}", "想看看{x}在{s}的样子", "帮忙做一张海报，{s}有{x}",
    "{x}静静地{v}在{s}，阳光正好",
)  # fmt: skip

EN_TAILS = (", 4k", ", high quality", ", masterpiece", ", best quality, detailed", ", warm light", "!",
            ", vector art", ", in the style of a picture book", ", thank you", ", trending", ", soft colours")  # fmt: skip
ZH_TAILS = (
    "，高清",
    "，插画风格",
    "，细节丰富",
    "，温暖的色调",
    "，谢谢",
    "！",
    "。",
    "，扁平风格",
    "，4k",
    "，画面清新",
    "，童话风格",
)
SKY_TOO = {
    "en": (
        ", with blue sky and white clouds behind",
        ", under a clear blue sky",
        ", the sky is blue",
    ),
    "zh": ("，背景是蓝天白云", "，蓝天白云", "，天空很蓝", "，阳光明媚"),
}

# Words that ask for nothing that pocket can draw. Strewn over captions, they teach it to read past them.
_, _EN, _ZH = Path(__file__).with_name("noise.txt").read_text("utf-8").splitlines()
EN_NOISE, ZH_NOISE = tuple(_EN.split()), tuple(_ZH.split())
