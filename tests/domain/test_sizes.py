"""The size nearest to a picture's: always one the model takes, of like ratio, and no dearer than the default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danqing.domain.errors import InvalidField
from danqing.domain.sizes import Size, SizeRange, SizeRule

LISTED = SizeRule(
    default=Size(1024, 1024),
    listed=(Size(1024, 1024), Size(1536, 1024), Size(1024, 1536)),
    named={"auto": Size(1024, 1024)},
)
SQUARES = SizeRule(Size(1024, 1024), tuple(Size(side, side) for side in (256, 512, 1024)))
FREE = SizeRule(Size(1024, 1024), free=SizeRange(256, 3840, 16, 8_294_400, 3.0))
LARGE = SizeRule(
    Size(2048, 2048),
    (Size(2048, 2048), Size(3136, 1344)),
    free=SizeRange(240, 4096, 1, 16_777_216, 16.0, 921_600),
)
sides = st.integers(8, 16_384)


@given(st.sampled_from([LISTED, SQUARES, FREE, LARGE]), st.builds(Size, sides, sides))
def test_it_is_always_a_size_of_the_model(rule: SizeRule, size: Size) -> None:
    found = rule.nearest(size)
    assert rule.resolve(str(found)) == found
    assert found.pixels <= max(known.pixels for known in (rule.default, *rule.listed))


@given(st.builds(Size, st.integers(256, 4096), st.integers(256, 4096)))
def test_a_free_range_keeps_the_ratio(size: Size) -> None:
    found = FREE.nearest(size)
    if max(size) / min(size) < 2.5:
        assert found.width / found.height == pytest.approx(size.width / size.height, rel=0.1)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        (LISTED, Size(800, 600), Size(1536, 1024)),
        (LISTED, Size(600, 801), Size(1024, 1536)),
        (LISTED, Size(300, 310), Size(1024, 1024)),
        (SQUARES, Size(500, 520), Size(512, 512)),
        (SQUARES, Size(9000, 20), Size(512, 512)),
        (FREE, Size(640, 480), Size(640, 480)),
        (FREE, Size(4000, 3000), Size(1168, 880)),
        (FREE, Size(100, 100), Size(256, 256)),
        (FREE, Size(4000, 400), Size(1024, 1024)),
        (LARGE, Size(640, 640), Size(960, 960)),
    ],
)
def test_some_sizes(rule: SizeRule, size: Size, expected: Size) -> None:
    assert rule.nearest(size) == expected


def test_a_tiers_square_is_fitted_within_its_tier() -> None:
    tiers = {
        "1K": {"1:1": Size(1024, 1024), "16:9": Size(1280, 720), "9:16": Size(720, 1280)},
        "2K": {"1:1": Size(2048, 2048), "16:9": Size(2848, 1600), "9:16": Size(1600, 2848)},
    }
    rule = SizeRule(default=Size(2048, 2048), tiers=tiers, free=FREE.free)
    assert rule.nearest(Size(300, 500), Size(2048, 2048)) == Size(1600, 2848)
    assert rule.nearest(Size(5000, 2900), Size(1024, 1024)) == Size(1280, 720)
    assert rule.nearest(Size(510, 500), Size(1024, 1024)) == Size(1024, 1024)
    # Any other size was no tier: the free range has the picture's own ratio.
    loose = rule.nearest(Size(300, 500), Size(640, 640))
    assert loose == rule.nearest(Size(300, 500))
    assert loose.width / loose.height == pytest.approx(0.6, rel=0.1)


def test_a_size_beyond_the_range_is_told_of_the_tiers_that_are_larger() -> None:
    rule = SizeRule(
        Size(1024, 1024),
        free=SizeRange(256, 2048, 8, 2_097_152),
        tiers={"1K": {"1:1": Size(1024, 1024)}, "2K": {"1:1": Size(2048, 2048)}},
    )
    with pytest.raises(InvalidField) as caught:
        rule.resolve("2048x1920")
    assert "at most 2097152 pixels, but for the sizes of 2K." in caught.value.message
    assert rule.resolve("2K") == rule.resolve("2048x2048") == Size(2048, 2048)
