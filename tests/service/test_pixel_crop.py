"""Pictures that were cut to a part of themselves: their mark is read where the whole had a known size. Tables are bench/marks.py's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from bench._pictures import picture
from PIL import Image

from danqing.domain.sizes import Size
from danqing.domain.task import Pixels
from danqing.service import pixel_code
from danqing.service.pixel_crop import (
    AREA_MIN,
    CORRELATION_MIN,
    LISTED_MAX,
    STRIPS_MAX,
    CutReader,
)
from danqing.service.pixel_mark import PixelMarker, Plane

MARKER = PixelMarker(b"a secret of thirty-two bytes ...")
ID = "0a1b2c3d4e5"
WHOLE = Size(768, 512)
OTHERS = [Size(512, 512), Size(800, 512), Size(768, 560), Size(100, 4000), Size(1024, 1024)]
READER = CutReader(MARKER, [WHOLE, *OTHERS])


def marked(kind: str) -> Pixels:
    return MARKER.mark(picture(kind, 5, WHOLE.height, WHOLE.width), ID)


def jpeg(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("kind", ["landscape", "portrait", "leaves", "poster"])
def test_a_cut_picture_carries_its_mark(kind: str) -> None:
    whole = marked(kind)
    for top, bottom, left, right in (
        (5, 507, 8, 760),  # 1 % a side
        (0, 470, 0, 768),  # below, where the label stands
        (37, 440, 101, 700),
        (130, 512, 0, 600),
    ):
        part = jpeg(whole[top:bottom, left:right])
        assert MARKER.find(part) is None
        found = READER.find(part)
        assert found is not None, (top, left)
        assert found.image_id == ID


def test_a_cut_picture_without_our_mark_shows_none() -> None:
    stranger = CutReader(PixelMarker(b"another secret of 32 bytes ......"), [WHOLE, *OTHERS])
    assert READER.find(picture("landscape", 6, WHOLE.height, WHOLE.width)[20:480, 30:740]) is None
    assert stranger.find(marked("poster")[20:480, 30:740]) is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3000, 3), (57, 192, 3), (9000, 60, 3)])
def test_a_part_of_any_shape_is_looked_at(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    sizes = [Size(192, 192), Size(200, 9000), Size(3000, 192), WHOLE]
    assert CutReader(MARKER, sizes).find(pixels) is None


def test_a_label_cut_off_is_no_escape_whatever_the_size() -> None:
    whole = MARKER.mark(picture("landscape", 9, 816, 592), ID)
    found = CutReader(MARKER, ()).find(jpeg(whole[:750]))
    assert found is not None
    assert found.image_id == ID


def test_tries_are_bounded_and_a_size_is_one_at_most() -> None:
    tried: list[float] = []

    class Counting(PixelMarker):
        def read(self, values: Plane, correlation_min: float) -> None:
            tried.append(correlation_min)

    many = [Size(500 + 8 * number, 520) for number in range(40)]
    reader = CutReader(Counting(b"k" * 32), [*many, Size(500, 499), Size(2000, 2000)])
    assert AREA_MIN * 2000 * 2000 > 500 * 500
    assert len(reader._likely(500, 500)) == LISTED_MAX
    assert len(reader._likely(496, 496)) == LISTED_MAX + 2 * 5  # 512 to 576 in either direction
    assert len(reader._likely(8000, 1600)) == STRIPS_MAX
    reader.find(picture("leaves", 1, 500, 500))
    assert len(tried) <= LISTED_MAX
    assert set(tried) <= {CORRELATION_MIN}


def test_what_carries_no_mark_agrees_with_no_code_as_well() -> None:
    """Of 6,000 such the best came to 0.645: a try is believed in less than one in 10,000, and its check fits one in 2^20."""
    random = np.random.default_rng(7)
    for _ in range(200):
        sums = random.standard_normal(pixel_code.SIGNS).astype(np.float32)
        agreement = float((sums * pixel_code.encode(pixel_code.decode(sums))).sum())
        assert agreement < 0.66 * np.sqrt((sums * sums).sum() * pixel_code.SIGNS)
        assert CORRELATION_MIN > 0.66
