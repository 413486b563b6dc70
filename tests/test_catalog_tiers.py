"""Sizes by tier and ratio in the catalog: the built-in tables make sense, and a bad one names the model and the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from danqing import catalog, settings
from danqing.dialects.prompt_hints import RATIOS
from danqing.domain.card import Card
from danqing.domain.errors import InvalidField
from danqing.domain.sizes import Size
from danqing.settings import SettingsError

CARDS = [card for card in catalog.load(settings.load()).cards.values() if card.sizes.tiers]
HOUSE = '[models.house]\nlike = "jimeng-4.0"\n'


def load_with(tmp_path: Path, text: str) -> catalog.Catalog:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return catalog.load(settings.load(catalog_file=file))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_size_has_its_ratio_and_is_taken(card: Card) -> None:
    for name, tier in card.sizes.tiers.items():
        assert set(tier) == RATIOS
        square = tier["1:1"]
        assert square.width == square.height == round(float(name[:-1]) * 1024)
        for ratio, size in tier.items():
            wide, high = map(int, ratio.split(":"))
            assert size.width / size.height == pytest.approx(wide / high, rel=0.02), size
            mirrored = tier.get(f"{high}:{wide}")
            assert mirrored in (None, Size(size.height, size.width))
            assert 0.75 < size.pixels / square.pixels < 1.1, size
            assert card.sizes.resolve(str(size)) == size
            assert card.sizes.resolve(name.lower()) == square
            if card.sizes.free is not None and card.name.startswith("doubao"):
                assert card.sizes.free.fault(size) is None


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_an_unknown_size_is_told_the_tiers(card: Card) -> None:
    with pytest.raises(InvalidField) as refused:
        card.sizes.resolve("9K")
    assert all(f"'{name}'" in refused.value.message for name in card.sizes.tiers)


def test_a_tier_may_be_the_default(tmp_path: Path) -> None:
    text = HOUSE + 'size_default = "2K"\n'
    sizes = load_with(tmp_path, text).cards["house"].sizes
    assert (sizes.default, sizes.default_tier) == (Size(2048, 2048), "2K")
    assert load_with(tmp_path, HOUSE).cards["house"].sizes.default_tier is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('size_default = "9K"', "not a size: 9K"),
        ('size_tiers = {"1K" = {"16:9" = "1280x720"}}', r"size_tiers\.1K"),
        ('size_tiers = {"1k" = {"1:1" = "1024x1024"}}', r"size_tiers\.1k"),
        ('size_tiers = {"1K" = {"1:1" = "large"}}', "not a size: large"),
        ('size_tiers = {"1K" = {"1:1" = "8x8"}}', "8x8"),
        ('size_tiers = {"64K" = {"1:1" = "65536x65536"}}', "65536x65536"),
        ('size_tiers = ["1K"]', "size_tiers"),
        # Larger than the price reaches.
        ('size_tiers = {"8K" = {"1:1" = "8192x8192"}}', "price"),
    ],
)
def test_bad_tiers_refuse_to_start(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word) as refused:
        load_with(tmp_path, HOUSE + text)
    assert "house" in str(refused.value)
