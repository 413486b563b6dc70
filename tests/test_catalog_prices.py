"""Prices in the catalog: what the built-in one asks, and that a bad table names the model and the field."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest

from danqing import catalog, settings
from danqing.catalog import PRICE_MAX
from danqing.domain.card import PERMILLE_MAX, PixelTier
from danqing.domain.sizes import Size
from danqing.settings import SettingsError

HOUSE = '[models.house]\nlike = "dall-e-3"\n'  # at most 10 images of 1792 x 1024 = 1835008 pixels


def load_with(tmp_path: Path, text: str) -> catalog.Catalog:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return catalog.load(settings.load(catalog_file=file))


@pytest.mark.parametrize(
    ("model", "quality", "size", "n", "characters"),
    [
        ("draw", "standard", "1024x1024", 1, 5_000),
        ("jimeng-4.0", "standard", "832x1248", 4, 5_000),
        ("jimeng-4.0", "standard", "2048x1024", 1, 5_000),
        ("cogview-4-250304", "hd", "1024x1024", 1, 10_000),
        ("dall-e-3", "standard", "256x256", 10, 50_000),
        ("qwen-image", "standard", "1328x1328", 1, 5_000),
        ("gpt-image-2", "low", "1536x1024", 1, 5_000),
        ("gpt-image-2", "high", "1552x1024", 1, 20_000),
        ("gpt-image-2", "medium", "3840x2160", 2, 40_000),
        ("doubao-seedream-4-0-250828", "standard", "2848x1600", 1, 5_000),
        ("doubao-seedream-4-0-250828", "standard", "4096x4096", 1, 10_000),
    ],
)
def test_built_in_prices(model: str, quality: str, size: str, n: int, characters: int) -> None:
    card = catalog.load(settings.load()).cards[model]
    asked = card.sizes.resolve(size)
    assert card.price.of(quality, asked, n) == characters
    assert card.price.of(quality, asked, n, edit=True) == characters


def test_every_card_names_all_its_prices() -> None:
    for card in catalog.load(settings.load()).cards.values():
        assert set(card.price.characters) == set(card.price.edit) == set(card.qualities)
        assert card.price.pixels[-1].up_to is None
        for quality, size in product(card.qualities, (card.sizes.default, *card.sizes.listed)):
            # Tiers are for sizes beyond the usual ones.
            assert card.price.of(quality, size, 1) == card.price.characters[quality]


def test_tiers_and_edits_of_an_operator(tmp_path: Path) -> None:
    models = load_with(
        tmp_path,
        HOUSE + "[models.house.price]\n"
        'per = "call"\nstandard = 8\nhd = 9\nedit = { hd = 20 }\n'
        "pixels = [{ up_to = 65536, permille = 500 }, { up_to = 1835008, permille = 2500 }]\n"
        "[models.gpt-image-2.price]\npixels = []\n",
    )
    price = models.cards["house"].price
    assert price.pixels == (PixelTier(65_536, 500), PixelTier(None, 2500))
    assert price.edit == {"standard": 8, "hd": 20}
    assert price.of("hd", Size(256, 256), 3) == 5
    assert price.of("hd", Size(257, 256), 3, edit=True) == 50
    # Tables merge, so a single field of our price can be replaced.
    assert models.cards["gpt-image-2"].price.of("high", Size(3840, 2160), 1) == 10_000


def test_a_price_may_be_nothing(tmp_path: Path) -> None:
    models = load_with(tmp_path, "[models.draw.price]\nstandard = 0\n")
    assert models.cards["draw"].price.of("standard", Size(1024, 1024), 1) == 0


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("price.per", 'standard = 1\nhd = 1'),
        ("price.per", 'per = "pixel"\nstandard = 1\nhd = 1'),
        ("price: .*quality hd", 'per = "image"\nstandard = 1'),
        ("price: .*extra", 'per = "image"\nstandard = 1\nhd = 1\nextra = 1'),
        ("price.hd: .*integer", 'per = "image"\nstandard = 1\nhd = true'),
        ("price.hd: .*integer", 'per = "image"\nstandard = 1\nhd = 5000.0'),
        ("price.hd: .*integer", 'per = "image"\nstandard = 1\nhd = "5000"'),
        ("price.hd: .*greater than or equal to 0", 'per = "image"\nstandard = 1\nhd = -1'),
        ("price.hd: .*less than", f'per = "image"\nstandard = 1\nhd = {PRICE_MAX + 1}'),
        # Ten images are one request.
        ("price: .*may cost", f'per = "image"\nstandard = 1\nhd = {PRICE_MAX // 10 + 1}'),
        ("price.edit: .*extra", 'per = "image"\nstandard = 1\nhd = 1\nedit = { extra = 1 }'),
        ("price.edit.hd: .*integer", 'per = "image"\nstandard = 1\nhd = 1\nedit = { hd = false }'),
        ("price.edit.hd: .*equal to 0", 'per = "image"\nstandard = 1\nhd = 1\nedit = { hd = -5 }'),
        ("price: .*may cost", f'per = "image"\nstandard = 1\nhd = 1\nedit = {{ hd = {PRICE_MAX} }}'),
        ("price.edit: ", 'per = "image"\nstandard = 1\nhd = 1\nedit = 6000'),
    ],
)  # fmt: skip
def test_a_bad_price_names_the_model_and_the_field(tmp_path: Path, field: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"models\.house[.:] ?{field}"):
        load_with(tmp_path, f"{HOUSE}[models.house.price]\n{text}\n")


@pytest.mark.parametrize(
    ("field", "tiers"),
    [
        (": price.pixels: up_to", "{ up_to = 9, permille = 1 }, { up_to = 9, permille = 2 }"),
        (": price.pixels: up_to", "{ up_to = 9, permille = 1 }, { up_to = 8, permille = 2 }"),
        (": price.pixels: up_to", "{ permille = 1 }, { up_to = 9, permille = 2 }"),
        (": price.pixels: up_to", "{ permille = 1 }, { permille = 2 }"),
        (": price.pixels: permille", "{ up_to = 9, permille = 2 }, { permille = 1 }"),
        (": price.pixels: ends at 1835007", "{ up_to = 1835007, permille = 1 }"),
        (".price.pixels.0.up_to", "{ up_to = 0, permille = 1 }"),
        (".price.pixels.0.up_to", "{ up_to = true, permille = 1 }"),
        (".price.pixels.0.up_to", "{ up_to = 9.0, permille = 1 }"),
        (".price.pixels.1.permille", "{ up_to = 9, permille = 1 }, {}"),
        (".price.pixels.0.permille", "{ permille = -1 }"),
        (".price.pixels.0.permille", "{ permille = 1.5 }"),
        (".price.pixels.0.permille", "{ permille = true }"),
        (".price.pixels.0.permille", f"{{ permille = {PERMILLE_MAX + 1} }}"),
        (".price.pixels.0.times", "{ permille = 1, times = 2 }"),
        (": price: a request may cost", "{ permille = 100000 }"),
    ],
)
def test_bad_tiers_name_the_model_and_the_field(tmp_path: Path, field: str, tiers: str) -> None:
    high = PRICE_MAX // 100
    price = f'per = "image"\nstandard = 1\nhd = {high}\npixels = [{tiers}]\n'
    with pytest.raises(SettingsError, match=rf"models\.house{field}"):
        load_with(tmp_path, f"{HOUSE}[models.house.price]\n{price}")


def test_sizes_that_grow_past_the_last_tier_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"models\.gpt-image-2: price\.pixels: ends at 8294400"):
        load_with(tmp_path, "[models.gpt-image-2.size_free]\npixels_max = 9000000\n")


def test_the_highest_price_allowed(tmp_path: Path) -> None:
    models = load_with(tmp_path, f"[models.dall-e-3.price]\nhd = {PRICE_MAX // 10}\n")
    assert models.cards["dall-e-3"].price.of("hd", Size(1792, 1024), 10) == PRICE_MAX


def test_the_documents_examples_are_true(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "prices.md").read_text("utf-8")
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    models = load_with(tmp_path, page.split("```toml\n")[1].split("```")[0])
    price = models.cards["gpt-image-2"].price
    assert json.loads(json.dumps(asdict(price))) == shown
    assert price.of("high", Size(2048, 1024), 2) == 40_000
    assert models.cards["dall-e-3"].price.characters == {"standard": 5_000, "hd": 12_000}
    assert models.cards["house"].price.of("high", Size(2048, 2048), 1, edit=True) == 18_000
