"""What is read out of a prompt: its picture's ratio and the number of pictures; and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.dialects.prompt_hints import RATIOS, read_count, read_ratio


@pytest.mark.parametrize(
    ("prompt", "ratio"),
    [
        ("一只猫，16:9", "16:9"),
        ("一只猫，画幅16：9，高清", "16:9"),
        ("9比16的手机海报", "9:16"),
        ("A cat, 21:9 cinematic", "21:9"),
        ("a cat in 4 : 3", "4:3"),
        ("竖屏，一只猫", "9:16"),
        ("一张手机壁纸：星空", "9:16"),
        ("横版海报", "16:9"),
        ("电脑壁纸，群山", "16:9"),
        ("正方形的头像", "1:1"),
        ("全景城市夜景", "21:9"),
        ("a portrait of a woman", "3:4"),
        ("a fox, portrait orientation", "9:16"),
        ("a phone wallpaper with stars", "9:16"),
        ("a wide shot of a valley", "16:9"),
        ("A valley, WIDE", "16:9"),
        ("Widescreen valley", "16:9"),
        ("a valley in landscape format", "16:9"),
        ("a panoramic view of the sea", "21:9"),
        ("a square picture of a cat", "1:1"),
        # Figures before words, the first of each.
        ("竖屏，但是按16:9", "16:9"),
        ("16:9, not 9:16", "16:9"),
        ("横版，不要竖版", "16:9"),
    ],
)
def test_ratio(prompt: str, ratio: str) -> None:
    assert read_ratio(prompt) == ratio


@pytest.mark.parametrize(
    "prompt",
    [
        "一只猫",
        "",
        "a cat with wide eyes",
        "a wide river",
        "a town square at night",
        "a landscape with mountains",
        "a clock that shows 12:30",
        "a digital clock at 10:16:9",
        "odds of 3:7",
        "version 1.16:9",
        "16:90",
        "116:9",
        "unportrayed",
    ],
)
def test_no_ratio(prompt: str) -> None:
    assert read_ratio(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("生成四张图", 4),
        ("画3张", 3),
        ("一组共 4 张连贯的分镜，主角是猫", 4),
        ("十二张不同风格的插画海报，再来十张", 12),
        ("二十五幅画", 25),
        ("两张照片", 2),
        ("参考这一张图，生成五张", 5),
        ("a set of 4 images of a cat", 4),
        ("Draw three different pictures of a dog", 3),
        ("fifteen illustrations", 15),
        ("100 photos", 100),
        ("一张图", 1),
        ("四张猫的图", 4),
        ("three cat pictures", 3),
        ("画3张猫", 3),
        ("生成3张小猫图片", 3),
        ("帮我生成三张可爱的小狗", 3),
        ("来5张风景", 5),
        ("请帮我画四张穿着汉服的女孩，竖版", 4),
        ("4张赛博朋克城市", 4),
        ("画4张老虎坐在椅子上", 4),
        ("生成2到4张猫", 4),
        ("给我出 6 张 海边日落", 6),
        ("帮我画一组4张的猫", 4),
        ("画3幅山水", 3),
        ("画3张桌面壁纸，皮卡丘", 3),
        ("生成3张品牌海报", 3),
        ("画3张动漫壁纸", 3),
        ("画2张瀑布", 2),
        ("给我三个版本", 3),
        ("4 versions of a logo, generate three different variations", 4),
        ("画一张图，里面有三张桌子", 1),
        # The first that is asked with; what hangs in the picture is none of it.
        ("画一张图，客厅墙上挂着8张照片", 1),
        ("生成4张图，背景墙上有九张海报", 4),
        ("客厅墙上挂着8张照片，画两张", 2),
        ("Generate 2 images of a wall with nine posters", 2),
        ("a wall with nine posters, make 3 images", 3),
        ("不要画3张图，画2张", 2),
        ("Don't make 5 images but 2 images", 2),
        ("一只猫，四张图", 4),
        ("a cat through the seasons, 4 images", 4),
        ("一只猫，特别可爱，分别画3张图", 3),
        ("生成一只猫的三张照片", 3),
        ("Please give me 3 posters", 3),
        ("画3张挂在墙上的油画", 3),
        ("穿着汉服的女孩四张图", 4),
        ("有翅膀的猫，三张图", 3),
        ("生成有帽子的猫3张图", 3),
        ("a cat with a hat in 4 images", 4),
    ],
)
def test_count(prompt: str, count: int) -> None:
    assert read_count(prompt) == count


@pytest.mark.parametrize(
    "prompt",
    [
        "一只猫",
        "两张桌子旁的猫",
        "四面旗，三幅旗帜",
        "四宫格漫画",
        "three cats",
        "one image",
        "4 imagesque cats",
        "0 images",
        "一二张图",
        "画3只猫",
        "draw 3 cats",
        "画两张桌子",
        "画三张红色的木头椅子和一只猫",
        "画3张扑克牌",
        "三张脸",
        "画四幅旗帜",
        "两张会议桌，一只猫",
        "一间教室，十张课桌",
        "生成第3张",
        "客厅墙上挂着8张照片",
        "画一个女孩手里拿着三张照片",
        "画一个有三张海报的房间",
        "a teenager's bedroom wall with nine posters",
        "a bedroom, nine posters on the wall",
        "draw a bedroom wall with nine posters",
        "三张海报贴在墙上",
        "桌上放着三张照片",
        "a book with three illustrations",
        "一只猫，不要画3张图",
        "一只猫，别生成3张",
        "a cat, not 3 images",
        "a cat, don't draw 3 pictures",
        "参考这三张图",
        "",
    ],
)
def test_no_count(prompt: str) -> None:
    assert read_count(prompt) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_anything_is_read(head: str, tail: str) -> None:
    for prompt in (head + tail, f"{head}16:9 三张图{tail}"):
        assert read_ratio(prompt) in RATIOS | {None}
        count = read_count(prompt)
        assert count is None or count > 0
