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
    started = time.perf_counter()
    tokens = text.tokenize("猫" * 100_000)
    assert time.perf_counter() - started < 0.05
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
