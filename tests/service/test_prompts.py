"""Prompt extension: laws for every prompt, and the words by language and style."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.service.prompts import extend, script_of

PROMPTS = st.text(alphabet=st.characters() | st.sampled_from("猫山水 cat,.，。!\n"), max_size=80)
STYLES = st.sampled_from([None, "vivid", "natural", "other"])
LIMITS = st.integers(1, 200)


@given(PROMPTS, STYLES, STYLES, LIMITS, LIMITS)
def test_extending_twice_adds_nothing(
    prompt: str, style: str | None, other: str | None, chars_max: int, other_max: int
) -> None:
    once = extend(prompt, style, chars_max)
    if once != prompt:
        assert extend(once, other, other_max) == once


@given(PROMPTS, STYLES, LIMITS)
def test_own_words_first_in_one_language_and_never_over_the_limit(
    prompt: str, style: str | None, chars_max: int
) -> None:
    extended = extend(prompt, style, chars_max)
    if extended == prompt:
        return
    assert len(extended) <= chars_max
    own = prompt.rstrip()
    assert extended.startswith(own.rstrip(" \t\r\n,.;:!?，。；：！？、…"))
    assert len(extended) > len(own)
    assert script_of(extended) == script_of(prompt)


@pytest.mark.parametrize(
    ("prompt", "style", "extended"),
    [
        ("一只猫", None, "一只猫，明快的色调，明亮的光线，细节丰富"),
        ("一只猫。", "vivid", "一只猫，明快的色调，明亮的光线，细节丰富"),
        ("一只 cat", "natural", "一只 cat，素雅的色调，光线柔和，细节真实"),
        ("a cat", None, "a cat, vivid colours, dramatic lighting, rich detail"),
        ("A cat. ", "vivid", "A cat, vivid colours, dramatic lighting, rich detail"),
        ("a cat", "natural", "a cat, natural colours, natural light, fine texture"),
        ("座っている猫", "natural", "座っている猫、自然な色合い、柔らかな光、リアルな質感"),
        ("고양이", None, "고양이, 선명한 색감, 극적인 빛, 풍부한 디테일"),
        ("кошка", None, "кошка"),
        # What the prompt says itself is not said again, or otherwise.
        ("a cat in black and white", None, "a cat in black and white, dramatic lighting, rich detail"),
        ("a street at night", "natural", "a street at night, natural colours, fine texture"),
        ("水墨山水", None, "水墨山水，明亮的光线，细节丰富"),
        ("窗边的猫，阳光明媚", "vivid", "窗边的猫，阳光明媚，明快的色调，细节丰富"),
        ("a minimalist monochrome logo in neon", None, "a minimalist monochrome logo in neon"),
    ],
)  # fmt: skip
def test_words_by_language_style_and_what_is_said(
    prompt: str, style: str | None, extended: str
) -> None:
    assert extend(prompt, style, 1000) == extended


def test_the_limit_is_met_exactly() -> None:
    extended = extend("a cat", None, 1000)
    assert extend("a cat", None, len(extended)) == extended
    assert extend("a cat", None, len(extended) - 1) == "a cat"


def test_nothing_to_extend() -> None:
    for prompt in ("", "   ", "?!"):
        assert extend(prompt, None, 1000) == prompt
