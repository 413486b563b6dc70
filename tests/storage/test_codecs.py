"""The encoders: valid for another decoder, PNG exact, XMP where readers look for it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from danqing.domain.card import ImageFormat
from danqing.domain.task import Pixels
from danqing.storage import codecs, metadata

FORMATS: list[ImageFormat] = ["png", "jpeg", "webp"]
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>&quot;丹青&quot;</a></x:xmpmeta>'


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 0 * x + 90], axis=-1).astype(np.uint8)


def test_smooth_picture_survives() -> None:
    pixels = smooth(320, 200)
    for format in FORMATS:
        decoded = codecs.decode(codecs.encode(pixels, format))
        assert decoded.shape == pixels.shape
        worst = np.abs(decoded.astype(int) - pixels).max()
        assert worst <= (0 if format == "png" else 12), format


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_png_gives_every_pixel_back(width: int, height: int, seed: int, flat: bool) -> None:
    pixels = (
        np.full((height, width, 3), seed % 256, np.uint8) if flat else noise(width, height, seed)
    )
    data = codecs.encode(pixels, "png", xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # checks every chunk's CRC
    assert np.array_equal(codecs.decode(data), pixels)


def test_a_view_with_strides_is_encoded_alike() -> None:
    pixels = noise(64, 48)[::-1, ::2]
    for format in FORMATS:
        expected = codecs.encode(np.ascontiguousarray(pixels), format)
        assert codecs.encode(pixels, format) == expected


def test_read_only_pixels_are_not_touched() -> None:
    pixels = noise(32, 32)
    before = pixels.copy()
    pixels.setflags(write=False)
    for format in FORMATS:
        codecs.encode(pixels, format)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("format", FORMATS)
def test_file_says_what_it_is_and_carries_the_xmp(format: ImageFormat) -> None:
    data = codecs.encode(smooth(64, 48), format, xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format or "").lower() == format
        assert image.size == (64, 48)
        assert image.mode == "RGB"
    assert metadata.read(data).xmp == XMP
    assert metadata.read(codecs.encode(smooth(64, 48), format)).xmp is None


@pytest.mark.parametrize("format", ["png", "webp"])
def test_opacity_is_kept(format: ImageFormat) -> None:
    pixels = np.dstack([noise(48, 64), smooth(48, 64)[..., 0]])
    data = codecs.encode(pixels, format, xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.mode == "RGBA"
        found = np.asarray(image)
    assert metadata.read(data).xmp == XMP
    assert (found[..., 3] == pixels[..., 3]).all()
    assert format == "webp" or (found == pixels).all()


def chunks_of_png(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = list[tuple[bytes, bytes]](), 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        found.append((kind, body))
        at += 12 + length
    return found


def test_xmp_lies_in_the_container_of_the_standard() -> None:
    """PNG: iTXt before the pixels; JPEG: APP1 with Adobe's namespace; WebP: the "XMP " chunk."""
    png = chunks_of_png(codecs.encode(noise(8, 8), "png", xmp=XMP))
    assert [kind for kind, _ in png] == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]
    assert png[1][1] == b"XML:com.adobe.xmp\0" + b"\0\0" + b"\0" + b"\0" + XMP.encode()
    jpeg = codecs.encode(noise(8, 8), "jpeg", xmp=XMP)
    at = jpeg.index(b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode())
    assert jpeg[at - 4 : at - 2] == b"\xff\xe1"
    webp = codecs.encode(noise(8, 8), "webp", xmp=XMP)
    at = webp.index(b"XMP ")
    assert webp[at + 8 : at + 8 + len(XMP.encode())] == XMP.encode()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_is_a_quality(format: ImageFormat) -> None:
    pixels = smooth(128, 128) ^ (noise(128, 128) & 15)
    sizes = [len(codecs.encode(pixels, format, compression=q)) for q in (0, 30, 60, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 4
    default = codecs.encode(pixels, format)
    assert default == codecs.encode(pixels, format, compression=codecs.QUALITY_DEFAULT)


def test_png_pays_no_heed_to_compression() -> None:
    pixels = noise(16, 16)
    assert codecs.encode(pixels, "png", compression=0) == codecs.encode(pixels, "png")


def test_jpeg_keeps_small_coloured_text_sharp() -> None:
    """4:4:4: a red hair line on white stays red; under 4:2:0 it fades by half."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[:, 31] = (230, 0, 0)
    decoded = codecs.decode(codecs.encode(pixels, "jpeg"))
    assert decoded[32, 31, 0] > 200
    assert decoded[32, 31, 1] < 40


def test_what_is_no_image_is_an_os_error() -> None:
    for data in (b"", b"no image", codecs.encode(noise(64, 64), "png")[:200]):
        with pytest.raises(OSError, match=r"."):
            codecs.decode(data)
