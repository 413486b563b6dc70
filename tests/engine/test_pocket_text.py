"""Pocket's tokenizer: bounded, stable, and no prompt breaks it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.engine.families import pocket_text as text


@given(st.text(max_size=600))
def test_any_prompt_gives_bounded_tokens(prompt: str) -> None:
    tokens = text.tokenize(prompt)
    assert 1 <= len(tokens) <= text.TOKENS_MAX
    for token in tokens:
        assert len(token) == text.FEATURES_PER_TOKEN
        assert all(0 <= feature < text.FEATURES for feature in token)
    assert tokens == text.tokenize(prompt)


def test_a_huge_prompt_is_cut_before_it_is_looked_at() -> None:
    started = time.process_time()
    tokens = text.tokenize("猫" * 20_000_000)
    assert time.process_time() - started < 2
    assert len(tokens) == text.TOKENS_MAX
    assert tokens == text.tokenize("猫" * text.CHARACTERS_MAX)


def test_compatibility_characters_cannot_grow_a_prompt() -> None:
    # One of these folds to 18 characters.
    assert sum(len(c) for c in text.split("\ufdfa" * 256)) <= text.CHARACTERS_MAX


@pytest.mark.parametrize("prompt", ["", "   ", "，。！", "\n\t"])
def test_nothing_said_is_one_empty_token(prompt: str) -> None:
    assert text.tokenize(prompt) == [[0] * text.FEATURES_PER_TOKEN]


def test_words_and_characters_are_split() -> None:
    assert text.split("Two cats，一只小猫 🐱") == [["two", "cats"], ["一", "只", "小", "猫", "🐱"]]


def test_width_case_and_plural_do_not_matter_to_the_first_feature() -> None:
    assert text.tokenize("ＣＡＴ") == text.tokenize("cat")
    assert text.tokenize("cats")[0][0] == text.tokenize("cat")[0][0]
    assert text.tokenize("cherries")[0][0] == text.tokenize("cherry")[0][0]


def test_word_order_shows() -> None:
    assert text.tokenize("cat on house") != text.tokenize("house on cat")


def test_hashes_are_the_ones_the_weights_were_trained_with() -> None:
    assert text.tokenize("小猫 cat") == [[10549, 3366, 7157], [5025, 4658, 0], [14346, 0, 5930]]


@pytest.mark.parametrize(
    ("prompt", "wanted", "denied"),
    [
        ("a cat in a meadow, no clouds", "a cat in a meadow,", ["clouds"]),
        ("a cat in a meadow without any clouds", "a cat in a meadow", ["clouds"]),
        ("a beach with no people and a red boat", "a beach and a red boat", ["people"]),
        ("no clouds or birds in a blue sky", "in a blue sky", ["clouds", "birds"]),
        ("A dog. There are no clouds. A ball.", "a dog. . a ball.", ["clouds"]),
        ("a cloudless sky", "a sky", ["clouds"]),
        ("please don't draw clouds, a pig", "please , a pig", ["clouds"]),
        ("一只猫在草地上，没有云", "一只猫在草地上,", ["云"]),
        ("没有云的天空下有一只狗", "天空下有一只狗", ["云"]),
        ("一只狗，不要任何云和鸟，也不要太阳", "一只狗,,", ["云", "鸟", "太阳"]),
        ("不要白色的云，一只猪", ",一只猪", ["白色的云"]),
        ("万里无云的海滩上有一艘船", "海滩上有一艘船", ["云"]),
        ("沒有雲的海邊", "海邊", ["雲"]),
        ("请不要画云朵但要画一只羊", "请但要画一只羊", ["云朵"]),
        ("我不要猫我要狗", "我我要狗", ["猫"]),
        ("不要猫要狗", "要狗", ["猫"]),
        ("一座没有窗户的房子和一只狗", "一座房子和一只狗", ["窗户"]),
        ("a house without windows next to a tree", "a house next to a tree", ["windows"]),
        ("I don’t want a dog I want a cat", "i i want a cat", ["dog"]),
        ("no clouds, just a duck", ", just a duck", ["clouds"]),
        ("no dogs only cats", "only cats", ["dogs"]),
        ("a cat with no tail sits on a red sofa", "a cat sits on a red sofa", ["tail"]),
        ("a girl with no shoes walking", "a girl walking", ["shoes"]),
        ("no cat no dog no bird but a fish", "but a fish", ["cat", "dog", "bird"]),
        ("no flying birds, a lake", ", a lake", ["flying birds"]),
        ("a city with no red flying cars", "a city", ["red flying cars"]),
    ],
)
def test_what_is_not_wanted_is_told_apart(prompt: str, wanted: str, denied: list[str]) -> None:
    said, unwanted = text.apart(prompt)
    assert (" ".join(said.split()), list(unwanted)) == (wanted, denied)


@pytest.mark.parametrize(
    "prompt",
    ["no more than two cats", "no. 5", "a no parking sign", "a piano", "有没有一只猫", "不要紧的小猫",
     "无人机在天上", "一个无花果", "a know-it-all owl", "there is no doubt: a cat",
     "不要忘记画一只猫", "please don't forget the cat", "a knot without",
     "There is no place like home", "no man's land", "no way home", "no wonder woman poster",
     "Dr. No movie poster", "a man who says no to a dog", "say no to drugs", "without a doubt a cat",
     "no dogs allowed", "不要脸的猫", "埋没云间的山"],
)  # fmt: skip
def test_words_that_only_look_like_a_denial_are_left(prompt: str) -> None:
    assert text.apart(prompt) == (prompt, ())


@given(st.text(max_size=300))
def test_telling_apart_adds_nothing_and_ends(prompt: str) -> None:
    wanted, unwanted = text.apart(prompt)
    assert sum(map(len, (wanted, *unwanted))) <= max(len(prompt), text.CHARACTERS_MAX)
    if not unwanted:
        assert text.tokenize(wanted) == text.tokenize(prompt)


def test_the_sky_is_known_by_its_words() -> None:
    assert text.sky_of(("fluffy clouds", "太阳")) == "sun cloud"
    assert text.sky_of(("雲",)) == "cloud"
    assert text.sky_of(("sunflowers", "cats")) == ""
