"""Strangers' pictures: every kind that is taken comes out plain and upright, and nothing else gets through or breaks."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from danqing.domain.sizes import Size
from danqing.storage import codecs, inputs

PIXELS_MAX = 1_000_000


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def two_halves(mode: str = "RGB", size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image.convert(mode)


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose head says any size at all, whatever its pixels are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def looks_like(pixels: codecs.Pixels, left: str, right: str) -> None:
    """The colours of the halves' middles, within what JPEG loses."""
    height, width, _ = pixels.shape
    for at, name in ((width // 4, left), (3 * width // 4, right)):
        expected = np.array(Image.new("RGB", (1, 1), name))[0, 0].astype(int)
        assert np.abs(pixels[height // 2, at].astype(int) - expected).max() <= 6, name


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_pictures_stay_byte_by_byte(format: str, mode: str) -> None:
    if (format, mode) == ("WEBP", "L"):  # WebP has no grey
        mode = "RGB"
    data = saved(two_halves(mode), format)
    found = inputs.read_reference(data, pixels_max=PIXELS_MAX)
    assert (found.data, found.format, found.size) == (data, format.lower(), Size(64, 32))


def palette_with_alpha() -> bytes:
    image = two_halves().quantize(4)
    return saved(image, "PNG", transparency=image.getpixel((63, 0)))


def sixteen_bits() -> bytes:
    """Grey 0x0000 left and 0xFFFF right."""
    levels = np.zeros((32, 64), np.uint16)
    levels[:, 32:] = 0xFFFF
    return saved(Image.fromarray(levels), "PNG")


def see_through() -> bytes:
    image = two_halves("RGBA")
    image.paste((0, 255, 0, 0), (32, 0, 64, 32))
    return saved(image, "PNG")


def animated(format: str) -> Callable[[], bytes]:
    def make() -> bytes:
        second = Image.new("RGB", (64, 32), "black")
        return saved(two_halves(), format, save_all=True, append_images=[second], duration=100)

    return make


MADE_PLAIN: list[tuple[str, Callable[[], bytes], tuple[str, str]]] = [
    ("bmp", lambda: saved(two_halves(), "BMP"), ("red", "blue")),
    ("tiff", lambda: saved(two_halves(), "TIFF", compression="tiff_lzw"), ("red", "blue")),
    ("gif", lambda: saved(two_halves(), "GIF"), ("red", "blue")),
    ("animated gif", animated("GIF"), ("red", "blue")),
    ("animated png", animated("PNG"), ("red", "blue")),
    ("animated webp", animated("WEBP"), ("red", "blue")),
    ("cmyk jpeg", lambda: saved(two_halves("CMYK"), "JPEG"), ("red", "blue")),
    ("cmyk tiff", lambda: saved(two_halves("CMYK"), "TIFF"), ("red", "blue")),
    ("palette", lambda: saved(two_halves("P"), "PNG"), ("red", "blue")),
    ("palette with alpha", palette_with_alpha, ("red", "white")),
    ("alpha", see_through, ("red", "white")),
    ("grey with alpha", lambda: saved(two_halves("LA"), "PNG"), ("#4c4c4c", "#1d1d1d")),
    ("16 bits", sixteen_bits, ("black", "white")),
    (
        "1 bit",
        lambda: saved(two_halves("L").point([0] * 40 + [255] * 216).convert("1"), "PNG"),
        ("white", "black"),
    ),
]


@pytest.mark.parametrize(
    ("make", "colours"), [row[1:] for row in MADE_PLAIN], ids=[row[0] for row in MADE_PLAIN]
)
def test_other_kinds_are_made_plain(make: Callable[[], bytes], colours: tuple[str, str]) -> None:
    found = inputs.read_reference(make(), pixels_max=PIXELS_MAX)
    assert found.size == Size(64, 32)
    assert codecs.measure(found.data) == (found.format, 64, 32)
    looks_like(codecs.decode(found.data), *colours)
    with Image.open(io.BytesIO(found.data)) as image:
        assert getattr(image, "n_frames", 1) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = inputs.read_reference(saved(two_halves(), format, exif=exif), pixels_max=PIXELS_MAX)
    pixels = codecs.decode(found.data)
    if orientation <= 4:
        assert found.size == Size(64, 32)
        mirrored = orientation in (2, 3)
        looks_like(pixels, *(("blue", "red") if mirrored else ("red", "blue")))
    else:
        assert found.size == Size(32, 64)
        # The left edge becomes the top, or (7 and 8) the bottom.
        upside_down = orientation in (7, 8)
        looks_like(pixels.swapaxes(0, 1), *(("blue", "red") if upside_down else ("red", "blue")))


def test_damaged_exif_harms_nobody() -> None:
    data = saved(two_halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert inputs.read_reference(data, pixels_max=PIXELS_MAX).size == Size(64, 32)


def test_a_large_picture_that_is_encoded_anew_is_no_png() -> None:
    found = inputs.read_reference(
        saved(Image.new("RGBA", (2100, 2100), "red"), "PNG"), pixels_max=5_000_000
    )
    assert found.format == "jpeg"


def jpeg_of(scans: int, side: int = 64) -> bytes:
    """A grey progressive JPEG whose every scan after the first says "nothing to add" for all of it."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    def scan(first: int, last: int, bits: bytes) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, first, last, 0])) + bits

    one_code = bytes([1] + [0] * 15)
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + bytes([1] * 64))
        + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\0")
        + segment(0xC4, b"\0" + one_code + b"\0")
        + segment(0xC4, b"\x10" + one_code + b"\xe0")  # a run of at least 2^14 empty blocks
        + scan(0, 0, b"\0" * (side * side // 512))
        + scan(1, 63, b"\x7f\xfe\xff\0") * (scans - 1)
        + b"\xff\xd9"
    )


def tiff_of(side: int, tile_side: int) -> bytes:
    """A small grey TIFF in one tile that may be far larger than it."""
    tile = zlib.compress(bytes(tile_side * tile_side))
    fields = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1)]
    fields += [(322, tile_side), (323, tile_side), (324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + tile


def test_pictures_are_taken_in_as_many_scans_as_encoders_make_and_in_tiles() -> None:
    for data in (jpeg_of(inputs.SCANS_MAX), tiff_of(64, 512)):
        assert inputs.read_reference(data, pixels_max=PIXELS_MAX).size == Size(64, 64)


def test_a_thumbnail_counts_for_no_scans() -> None:
    exif = b"Exif\0\0" + jpeg_of(70)
    data = saved(two_halves(), "JPEG", exif=exif)
    assert inputs.read_reference(data, pixels_max=PIXELS_MAX).size == Size(64, 32)


WHOLE = saved(two_halves(), "PNG")
REFUSED: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is empty"),
    ("noise", bytes(range(256)), "is not a whole"),
    ("text", b"a cat", "is not a whole"),
    ("html", b"<!DOCTYPE html><title>404</title>", "is a web page"),
    ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG"),
    ("svg with a prologue", b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "is an SVG"),
    ("pdf", b"%PDF-1.7", "is a PDF"),
    ("heic", b"\0\0\0\x18ftypheic", "is a HEIC"),
    ("cut", WHOLE[: len(WHOLE) // 2], "is not a whole"),
    ("a head only", WHOLE[:33], "is not a whole"),
    ("cut jpeg", saved(two_halves(size=(512, 512)), "JPEG")[:-600], "is not a whole"),
    ("a bomb by its head", png_of(100_000, 100_000), "is 100000x100000|too many pixels"),
    ("a bomb below Pillow's own bound", png_of(9_000, 9_000), "is 9000x9000 pixels: at most"),
    ("a real bomb", saved(Image.new("L", (5_000, 5_000)), "PNG"), "at most 1000000 in all"),
    ("a line", saved(Image.new("L", (30_000, 1)), "PNG"), "each side must have 8"),
    ("a strip", saved(Image.new("L", (8_000, 100)), "PNG"), "ratio"),
    ("a JPEG that takes for ever", jpeg_of(inputs.SCANS_MAX + 1), "has more than 64 scans"),
    ("a TIFF in one huge tile", tiff_of(64, 1_008), "has tiles of 1008x1008 pixels"),
    ("tiny", saved(Image.new("L", (7, 7)), "PNG"), "each side must have 8"),
    ("empty pixels", png_of(64, 32), "is not a whole"),
    ("a lie about its size", png_of(64, 32, zlib.compress(b"\0" * 100)), "is not a whole"),
    ("floats", saved(Image.new("F", (64, 32)), "TIFF"), "floating-point|no alpha"),
    ("an icon", saved(two_halves("RGBA"), "ICO"), "is not a whole"),
]


@pytest.mark.parametrize(("data", "why"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
def test_everything_else_is_refused_in_words(data: bytes, why: str) -> None:
    for read in (inputs.read_reference, inputs.read_mask):
        with pytest.raises(ValueError, match=why) as caught:
            read(data, pixels_max=PIXELS_MAX)
        assert "\n" not in str(caught.value)


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_bytes_turned_over_never_break_anything(format: str, data: st.DataObject) -> None:
    broken = bytearray(saved(two_halves(), format))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    for read in (inputs.read_reference, inputs.read_mask):
        try:
            found = read(bytes(broken[:cut]), pixels_max=PIXELS_MAX)
        except ValueError:
            continue
        assert codecs.measure(found.data)[1:] == found.size


def with_hole(format: str = "PNG") -> bytes:
    image = two_halves("RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 32))
    return saved(image, format, **({"lossless": True} if format == "WEBP" else {}))


@pytest.mark.parametrize("data", [with_hole(), with_hole("WEBP"), palette_with_alpha()])
def test_a_mask_says_where(data: bytes) -> None:
    found = inputs.read_mask(data, pixels_max=PIXELS_MAX)
    assert (found.format, found.size) == ("png", Size(64, 32))
    mask = codecs.decode_mask(found.data)
    assert not mask[:, :32].any()
    assert mask[:, 32:].all()
    with Image.open(io.BytesIO(found.data)) as kept:  # nobody has looked at its colours
        assert kept.convert("RGB").getextrema() == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (two_halves(), "no alpha channel"),
        (two_halves("L"), "no alpha channel"),
        (two_halves("RGBA"), "no fully transparent pixel"),
    ],
)
def test_a_mask_without_a_hole_is_refused(image: Image.Image, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        inputs.read_mask(saved(image, "PNG"), pixels_max=PIXELS_MAX)


def test_a_mask_is_turned_like_its_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(with_hole())) as image:
        found = inputs.read_mask(saved(image, "PNG", exif=exif), pixels_max=PIXELS_MAX)
    assert found.size == Size(32, 64)
    mask = codecs.decode_mask(found.data)
    assert not mask[:32].any()
    assert mask[32:].all()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "CMYK"])
def test_pixels_are_those_of_what_would_be_kept(mode: str) -> None:
    grey = np.linspace(0, 255, 24 * 16).reshape(16, 24)
    if mode == "I;16":
        picture = Image.fromarray((grey * 257).astype(np.uint16))
    else:
        picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB" if mode == "P" else mode)
        picture = picture.quantize(8) if mode == "P" else picture
    data = saved(picture, "TIFF")
    kept = codecs.decode(inputs.read_reference(data, pixels_max=10_000).data)
    pixels = inputs.read_pixels(data, pixels_max=10_000)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, kept)
    with pytest.raises(ValueError, match="at most"):
        inputs.read_pixels(data, pixels_max=10)


def test_a_hole_to_repaint_takes_the_colours_around_it() -> None:
    """White in it would show as a frame where what is painted fades in."""
    image = two_halves("RGBA", (256, 128))
    image.paste((0, 0, 0, 0), (32, 32, 96, 96))
    image.paste((0, 0, 0, 0), (160, 32, 224, 96))
    read = inputs.read_repainted(saved(image, "PNG"), pixels_max=PIXELS_MAX)
    expected = np.asarray(two_halves("RGB", (256, 128))).astype(int)
    away = np.abs(codecs.decode(read.data).astype(int) - expected).max(2)
    known = np.asarray(image)[:, :, 3] == 255
    assert away[known].max() == 0
    for left in (32, 160):
        hole = away[32:96, left : left + 64].copy()
        hole[4:-4, 4:-4] = 0
        assert hole.max() <= 24  # of 255: at the edge it is what is beside it


@given(st.integers(8, 70), st.integers(8, 70), st.integers(0, 255))
def test_any_hole_is_filled(width: int, height: int, alpha: int) -> None:
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    image.putpixel((width // 3, height // 3), (200, 100, 50, 255))
    image.putpixel((0, 0), (200, 100, 50, alpha))
    read = inputs.read_repainted(saved(image, "PNG"), pixels_max=PIXELS_MAX)
    assert (
        np.abs(codecs.decode(read.data).astype(int) - (200, 100, 50)).max() <= 24
    )  # rounding, level by level


def test_a_picture_without_a_hole_stays_when_repainted() -> None:
    for data in (saved(two_halves(), "PNG"), saved(two_halves(), "JPEG")):
        assert inputs.read_repainted(data, pixels_max=PIXELS_MAX).data == data
    faint = Image.new("RGBA", (16, 16), (0, 0, 0, 100))
    decoded = codecs.decode(inputs.read_repainted(saved(faint, "PNG"), pixels_max=PIXELS_MAX).data)
    assert decoded.min() == 155  # nothing is to be repainted: what is transparent becomes white
    see_all = saved(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "PNG")
    decoded = codecs.decode(inputs.read_repainted(see_all, pixels_max=PIXELS_MAX).data)
    assert decoded.min() == 255  # nothing is known: white, as ever
