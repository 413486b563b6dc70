"""The laws of prices: what n, pixels and edits do to one, what a share of a hold is, and multipliers."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.card import PERMILLE_MAX, PixelTier, Price, multiplied
from danqing.domain.sizes import Size

CHARACTERS = st.integers(0, 10**12)
PERMILLES = st.integers(0, PERMILLE_MAX)
SIZES = st.builds(Size, st.integers(1, 8192), st.integers(1, 8192))
COUNTS = st.integers(1, 16)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[PixelTier, ...]:
    bounds = sorted(draw(st.sets(st.integers(1, 2**26), max_size=4)))
    permilles = sorted(
        draw(st.lists(PERMILLES, min_size=len(bounds) + 1, max_size=len(bounds) + 1))
    )
    return tuple(map(PixelTier, [*bounds, None], permilles))


def prices(*kinds: str) -> st.SearchStrategy[Price]:
    tables = st.fixed_dictionaries({"standard": CHARACTERS})
    return st.builds(Price, st.sampled_from(kinds), tables, st.one_of(st.just({}), tables), tiers())


@given(prices("image"), SIZES, COUNTS, st.booleans())
def test_per_image_n_counts_once(price: Price, size: Size, n: int, edit: bool) -> None:
    one = price.of("standard", size, 1, edit=edit)
    assert price.of("standard", size, n, edit=edit) == n * one


@given(prices("call"), SIZES, COUNTS, st.booleans())
def test_per_call_n_counts_for_nothing(price: Price, size: Size, n: int, edit: bool) -> None:
    one = price.of("standard", size, 1, edit=edit)
    assert price.of("standard", size, n, edit=edit) == one


@given(prices("image", "call"), SIZES, SIZES, COUNTS, COUNTS, st.booleans())
def test_more_never_costs_less(
    price: Price, size: Size, other: Size, n: int, more: int, edit: bool
) -> None:
    small, large = sorted((size, other), key=lambda one: one.pixels)
    low, high = sorted((n, more))
    cheap = price.of("standard", small, low, edit=edit)
    assert 0 <= cheap <= price.of("standard", large, low, edit=edit)
    assert cheap <= price.of("standard", small, high, edit=edit)


@given(CHARACTERS, CHARACTERS, SIZES, COUNTS)
def test_an_edit_has_its_own_price_or_drawings(draw: int, edit: int, size: Size, n: int) -> None:
    own = Price("image", {"standard": draw, "hd": draw}, {"hd": edit})
    assert own.of("hd", size, n, edit=True) == edit * n
    assert own.of("hd", size, n) == own.of("standard", size, n, edit=True) == draw * n


def test_a_size_pays_the_first_tier_it_fits() -> None:
    price = Price(
        "image", {"hd": 3}, pixels=(PixelTier(4, 1000), PixelTier(9, 1500), PixelTier(None, 3000))
    )
    widths = (1, 4, 5, 9, 10, 10**6)
    assert [price.of("hd", Size(width, 1), 2) for width in widths] == [6, 6, 10, 10, 18, 18]
    # 3 * 1.5 is rounded up before n counts: two images cost what each costs alone.


@given(CHARACTERS, PERMILLES)
def test_a_multiplier_never_loses(characters: int, permille: int) -> None:
    exact = Fraction(characters * permille, 1000)
    assert exact <= multiplied(characters, permille) < exact + 1


@given(CHARACTERS)
def test_a_multiplier_of_one_changes_nothing(characters: int) -> None:
    assert multiplied(characters, 1000) == characters


@given(CHARACTERS, COUNTS, st.data())
def test_a_charge_is_the_share_that_was_delivered(held: int, n: int, data: st.DataObject) -> None:
    delivered = data.draw(st.integers(0, n))
    charge = Price.charge(held, delivered, n)
    share = Fraction(held * delivered, n)
    assert share - 1 < charge <= share
    assert 0 <= charge <= held
    assert Price.charge(held, n, n) == held
    assert Price.charge(held, 0, n) == 0


@given(prices("image"), SIZES, COUNTS, st.data())
def test_without_a_multiplier_a_charge_is_the_price_of_what_came(
    price: Price, size: Size, n: int, data: st.DataObject
) -> None:
    delivered = data.draw(st.integers(1, n))
    held = price.of("standard", size, n)
    assert Price.charge(held, delivered, n) == price.of("standard", size, delivered)
