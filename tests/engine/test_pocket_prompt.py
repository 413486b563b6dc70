"""How pocket reads what strangers type: what is named is drawn, what is not wanted or not known is left out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import WEIGHTS, Pocket
from danqing.engine.families.pocket_plain import plain
from danqing.engine.families.pocket_text import CHARACTERS_MAX
from danqing.engine.families.pocket_words import Words, tokens


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    return Pocket(threads=1)


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(WEIGHTS / "words.json")


def said(pocket: Pocket, prompt: str, negative: str = "") -> str:
    """What is drawn, in a line: "2 red cat on table @kitchen night"."""
    wish = pocket.prompts.asked(prompt, negative).wish

    def thing(number: int, colour: int) -> str:
        return f"{pocket.colours[colour]} {pocket.things[number]}".removeprefix("none ")

    parts = (
        [f"{wish.count} {thing(wish.thing, wish.colour)}".removeprefix("1 ")] if wish.thing else []
    )
    if wish.second:
        parts.append(f"{layout.RELATIONS[wish.relation]} {thing(wish.second, wish.second_colour)}")
    parts.append("@" + pocket.scenes[wish.scene])
    parts += [layout.HOURS[wish.hour]] * (wish.hour > 0) + [layout.WEATHERS[wish.weather]] * (
        wish.weather > 0
    )
    return " ".join(parts)


DENIED = {
    "a dog, not a cat": "dog @plain",
    "a horse, not a cow": "horse @plain",
    "not a cat but a dog": "dog @plain",
    "a dog instead of a cat": "dog @plain",
    "a dog rather than a cat": "dog @plain",
    "a cat that is not black": "cat @plain",
    "draw anything but a dog": "@plain",
    "一只狗，不是猫": "dog @plain",
    "never draw cats; draw a rabbit": "rabbit @plain",
    "除了狗，画猫": "cat @plain",
    "不是猫而是狗": "dog @plain",
    "画一只狗而不是猫": "dog @plain",
    "不要画狗，画猫": "cat @plain",
    "夜空没有月亮": "@night",
    "没有云的蓝天": "@sky",
    "a sunset without the sun": "@sunset",
}
COUNTED = {
    "seven cats": "5 cat @plain",
    "a dozen eggs": "5 egg @plain",
    "many birds": "5 bird @plain",
    "20 balloons": "5 balloon @plain",
    "a hundred fish": "5 fish @plain",
    "several pigs": "3 pig @plain",
    "cats playing in the garden": "3 cat @meadow",
    "a pair of gloves": "gloves @plain",
    "3 cats, 2 dogs": "3 cat beside dog @plain",
    "十五的月亮": "moon @plain",
    "a cat and two dogs": "2 dog beside cat @plain",
    "七只猫": "5 cat @plain",
    "十二个苹果": "5 apple @plain",
    "一百只羊": "5 sheep @plain",
    "一群羊": "5 sheep @plain",
    "许多鸟": "5 bird @plain",
    "几只兔子": "3 rabbit @plain",
    "一对鸽子": "2 dove @plain",
    "three little pigs in front of a house": "3 pig beside house @plain",
    "派对上的一只猫": "cat @party",
    "两只小猫和一只小狗": "2 kitty beside dog @plain",
}
STRANGE = {
    "a wug": "@plain",
    "a wug in a meadow": "@meadow",
    "a glorbnak and a cat in the forest": "cat @forest",
    "阿凡提": "@plain",
    "a pond": "@sea",
    "a duck in a pond": "duck @sea",
    "池塘里的鸭子": "duck @sea",
    "a very cute cat": "cat @plain",
    "可爱的狗": "dog @plain",
}
KIN = {
    "a theremin": "piano @plain",
    "a zither and a red lighthouse": "guitar beside red tokyo tower @plain",
    "three beagles in the snow": "3 dog @snow",
    "a logo with a lion's head": "lion @plain",
    "the quick brown fox jumps over the lazy dog": "brown fox @plain",
    "a blacksmith": "builder @plain",
    "a blacksmith with a cat": "cat @plain",  # loosely only where nothing else is named
    "Snow White": "princess @plain",
    "唐僧": "old man @plain",
    "两只蜻蜓": "2 butterfly @plain",
    "雪山下的小木屋": "house @mountains",
    "墙上的画里面没有人": "@plain",  # 面 is a word for noodles, but not in 里面
    "🐱🍎": "kitty beside apple @plain",
}
POLITE = {
    "please could you draw me two foxes in the snow, thank you very much": "2 fox @snow",
    "Hello! I would really like a picture of a red balloon over the sea, if you don't mind": "red balloon @sea",
    "My daughter loves penguins, so draw a penguin on a beach, please": "penguin @beach",
    "Can you please generate for me an image with a little girl in a flower field? Thanks!": "girl @flowers",
    "a postcard with a cow in a meadow": "cow @meadow",
    "a poster of a rocket": "rocket @plain",
    "a t-shirt design of a fox": "fox @plain",
    "A corgi puppy, studio lighting, 8k, hyperrealistic, trending": "dog @plain",
    "一张小猫的明信片": "kitty @plain",
    "一张画着狐狸的明信片": "fox @plain",
    "请你帮我设计一张生日贺卡，上面有一个蛋糕和蜡烛": "cake beside candle @plain",
    "我想要一张关于海洋的海报": "@sea",
}
SET = {
    "farm in autumn with a cow": "cow @autumn",
    "a farm in autumn with a cow": "cow @farm",
    "an old man fishing from a boat on a lake": "old man beside sailboat @sea",
    "a cozy cabin in the snowy woods at night": "house @forest night snow",
    "a haunted house on a hill at midnight with bats": "old house beside bat @mountains night",
    "sunset over the sea": "@sea sunset",
    "sunset over the ocean with a boat": "sailboat @sea sunset",
    "starry night over a city": "@city night",
    "rainy street in Tokyo": "@city rain",
    "in a green field at midnight, a fox": "fox @meadow night",
    "夜晚的东京街道下着雨": "@city night rain",
    "中秋节的月亮和月饼": "mooncake beside moon @plain",
}
BOUND = {
    "a cute puppy wearing a red scarf": "dog beside red scarf @plain",
    "一只戴着红色围巾的小狗": "dog beside red scarf @plain",
    "the cat is black": "black cat @plain",
    "红色的气球和蓝色的气球": "red balloon beside blue balloon @plain",
    "an orange cat": "orange cat @plain",
    "an orange on a table": "orange fruit @table",
    "a book and a dragon": "book beside dragon @plain",
    "a bouquet of flowers": "bouquet @plain",
    "a yellow car and a blue house": "yellow car beside blue house @plain",
}  # fmt: skip


@pytest.mark.parametrize("table", [DENIED, COUNTED, STRANGE, KIN, POLITE, SET, BOUND])
def test_strangers_are_read(pocket: Pocket, table: dict[str, str]) -> None:
    assert {prompt: said(pocket, prompt) for prompt in table} == table


def test_nothing_is_drawn_that_no_word_stands_for(pocket: Pocket) -> None:
    for prompt in (
        "asdfgh",
        "an invoice template",
        "qqqq wwww zzzz",
        "你好",
        "给我讲个笑话",
        "Lorem ipsum dolor",
    ):
        assert said(pocket, prompt) == "@plain", prompt


@pytest.mark.parametrize(
    ("prompt", "words_left"),
    [
        ("Could you please make me a birthday card with seven fluffy glorbnak cats?", "five fluffy cats"),
        ("a sketch of my grandmother's cat by Rembrandt", "a cat"),
        ("hello there", ""),
        ("猫！谢谢你", "猫"),
    ],
)  # fmt: skip
def test_a_prompt_is_put_in_plain_words(words: Words, prompt: str, words_left: str) -> None:
    assert plain(prompt, words) == words_left


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_plain_words_are_words_that_mean_something(words: Words, prompt: str) -> None:
    said = plain(prompt, words)
    assert not said or any(mention.is_something for mention in words.mentions(tokens(said)))
    assert len(tokens(said)) <= CHARACTERS_MAX


@settings(max_examples=40, deadline=None)
@given(
    st.text(alphabet="a cat no,的猫不要7只画张 poster of海报many", max_size=120),
    st.text(max_size=60),
)
def test_every_prompt_gives_a_wish_that_can_be_laid_out(
    pocket: Pocket, prompt: str, negative: str
) -> None:
    wish = pocket.prompts.asked(prompt, negative).wish
    assert 1 <= wish.count <= layout.COUNT_MAX
    assert bool(wish.second) <= bool(wish.thing)
    for grid in range(len(layout.GRIDS)):
        layout.plan(wish, grid, 0, 0)
