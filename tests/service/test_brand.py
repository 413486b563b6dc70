"""The brand mark: in its own corner, whole, never on the AI label; words or a picture; what cannot be drawn refuses to start."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from danqing import settings
from danqing.domain.task import Pixels
from danqing.labelling import make_finisher
from danqing.service import labels
from danqing.service.brand import BrandMark
from danqing.service.finishing import Finisher, LabelPlan
from danqing.settings import BrandSettings, Corner, LabelSettings, SettingsError

CORNERS: tuple[Corner, ...] = get_args(Corner)
LABEL = "AI-generated"


def noise(width: int, height: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)


def a_mark(corner: Corner = "bottom-left", **changes: object) -> BrandMark:
    return BrandMark(BrandSettings(**changes), corner, labels.MARGIN_SHARE)  # type: ignore[arg-type]


def a_picture(path: Path, width: int = 300, height: int = 100) -> Path:
    image = Image.new("RGBA", (width + 40, height + 40))
    image.paste((200, 30, 30, 255), (20, 20, 20 + width, 20 + height))
    image.save(path)
    return path


PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(kind: bytes, body: bytes) -> bytes:
    """A whole PNG of 8 x 8 pixels with one chunk more."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + chunk(kind, body)
    return PNG + head + chunk(b"IDAT", zlib.compress(bytes(25 * 8))) + chunk(b"IEND", b"")


def covered(plain: Pixels, drawn: Pixels) -> labels.Area:
    changed = (plain != drawn).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return labels.Area(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def overlap(one: labels.Area, other: labels.Area) -> bool:
    across = one.left < other.right and other.left < one.right
    return across and one.top < other.bottom and other.top < one.bottom


@given(
    st.integers(64, 320),
    st.integers(64, 320),
    st.permutations(CORNERS),
    st.sampled_from(["D", "Danqing", "x" * 40, "丹青作品"]),
    st.sampled_from([0.01, 0.045, 0.25]),
)
@example_settings(deadline=None, max_examples=15)
def test_it_is_whole_and_never_on_the_label(
    width: int, height: int, corners: list[Corner], text: str, share: float
) -> None:
    label = labels.area(LABEL, width, height, labels.Place(corners[0]))
    mark = a_mark(corners[1], text=text, height_share=share)
    area = mark.area(width, height, label)
    assert area is not None
    margin = round(min(width, height) * labels.MARGIN_SHARE)
    assert margin <= area.top < area.bottom <= height - margin
    assert margin <= area.left < area.right <= width - margin
    assert not overlap(area, label)
    plain = noise(width, height)
    before = plain.copy()
    drawn = mark.draw(plain, label)
    assert (plain == before).all()
    found = covered(plain, drawn)
    assert area.top <= found.top < found.bottom <= area.bottom
    assert area.left <= found.left < found.right <= area.right


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("level", [0, 90, 255])
def test_it_stands_in_its_corner_and_is_seen_on_any_ground(corner: Corner, level: int) -> None:
    plain = np.full((600, 800, 3), level, np.uint8)
    drawn = a_mark(corner).draw(plain)
    area = covered(plain, drawn)
    assert (600 - area.bottom if "bottom" in corner else area.top) <= 24
    assert (800 - area.right if "right" in corner else area.left) <= 24
    assert area.height >= 0.045 * 600
    assert np.abs(drawn.astype(int) - level).max() >= 130


def test_a_mark_over_nothing_is_seen() -> None:
    drawn = a_mark().draw(np.zeros((300, 300, 4), np.uint8))
    assert drawn[..., 3].max() >= 220
    assert not drawn[:150, :, 3].any()
    half = noise(300, 300, 4)
    marked = a_mark().draw(half)
    assert (marked[..., 3] >= half[..., 3]).all()


def test_a_picture_of_ones_own(tmp_path: Path) -> None:
    mark = a_mark(picture=a_picture(tmp_path / "logo.png"), height_share=0.1, opacity=1.0)
    plain = np.full((500, 700, 3), 255, np.uint8)
    drawn = mark.draw(plain)
    area = covered(plain, drawn)
    assert (area.width, area.height) == (150, 50)  # its empty edges do not count
    assert (area.left, area.bottom) == (10, 490)
    assert (
        drawn[area.top + 5 : area.bottom - 5, area.left + 5 : area.right - 5] == (200, 30, 30)
    ).all()


def test_the_finisher_draws_both_and_finds_the_label_still() -> None:
    finisher = Finisher(LabelSettings(), None, a_mark(text="x" * 40, height_share=0.25))
    plain = noise(640, 480)
    plan = LabelPlan(visible=True, metadata=False, producer="P", brand=True)
    files = [
        finisher.finish(
            plain, image_id="0", format="png", compression=None, plan=each, prompt="a cat"
        )
        for each in (plan, LabelPlan(True, False, "P"))
    ]
    both, label = (np.asarray(Image.open(io.BytesIO(data))) for data in files)
    assert labels.shows(both, LABEL)
    area = labels.area(LABEL, 640, 480)
    for image in (both, label):  # the label's ground is what it would be without the mark
        image = image[area.top : area.bottom, area.left : area.right]
    assert (
        both[area.top : area.bottom, area.left : area.right]
        == label[area.top : area.bottom, area.left : area.right]
    ).all()
    assert (both != label).any()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (30, 30, 4)])
def test_no_room_is_no_mark(shape: tuple[int, int, int]) -> None:
    plain = np.zeros(shape, np.uint8)
    label = labels.area(LABEL, shape[1], shape[0])
    assert a_mark().draw(plain, label).shape == shape


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("no.png", None, "No such file"),
        ("text.png", b"hello", "not a whole"),
        ("cut.png", "half", "not a whole"),
        ("clear.png", "clear", "transparent everywhere"),
        ("wide.png", "wide", "pixels a side"),
        ("big.png", b"x" * 4_000_001, "bytes"),
        ("bomb.png", png(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))), "not a whole"),
        ("tiny.png", PNG + chunk(b"IHDR", b"\0\0"), "not a whole"),
        ("short.png", png(b"tRNS", b"\0"), "not a whole"),
        ("pipe.png", "pipe", "no plain file"),
        (".", None, "no plain file"),
    ],
)
def test_a_file_that_cannot_be_drawn_refuses_to_start(
    tmp_path: Path, name: str, data: bytes | str | None, what: str
) -> None:
    path = tmp_path / name
    if data == "half":
        whole = a_picture(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif data == "clear":
        Image.new("RGBA", (20, 20)).save(path)
    elif data == "pipe":
        os.mkfifo(path)
    elif data == "wide":
        Image.new("L", (5000, 4)).save(path)
    elif isinstance(data, bytes):
        path.write_bytes(data)
    wanted = settings.load(data_dir=tmp_path, brand={"picture": str(path)})
    with pytest.raises(SettingsError, match=rf"brand\.picture.*{what}"):
        make_finisher(wanted, None)


def test_settings_that_cannot_be_refuse_to_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"brand\.text.*龘"):
        make_finisher(settings.load(data_dir=tmp_path, brand={"text": "龘"}), None)
    for text in ("", "  ", "a\nb", "x" * 41):
        with pytest.raises(ValidationError):
            BrandSettings(text=text)
    with pytest.raises(SettingsError, match=r"brand\.corner"):
        settings.load(data_dir=tmp_path, brand={"corner": "bottom-right"})
    # Across from the label, wherever an operator has that already.
    for mine, other in (("bottom-right", "bottom-left"), ("top-left", "top-right")):
        assert settings.load(labels={"corner": mine}).brand_corner == other
        assert settings.load(labels={"corner": other}).brand_corner == mine
