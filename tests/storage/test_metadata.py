"""Reading metadata without decoding: as Pillow reads it, from wherever it lies, from hostile files too."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from danqing.domain.card import ImageFormat
from danqing.storage import codecs, metadata

FORMATS: list[ImageFormat] = ["png", "jpeg", "webp"]
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>&quot;丹青&quot;</a></x:xmpmeta>'
PIXELS = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
SAMPLES = [codecs.encode(PIXELS, format, xmp=XMP) for format in FORMATS]


def saved(format: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, width: int = 47, height: int = 33) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
def test_as_pillow_reads_it(format: ImageFormat) -> None:
    data = codecs.encode(PIXELS, format, xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"]
        assert (packet if isinstance(packet, str) else packet.decode()) == XMP
    assert metadata.read(data) == metadata.Metadata(format, 47, 33, XMP)
    assert metadata.read(codecs.encode(PIXELS, format)) == metadata.Metadata(format, 47, 33)


@pytest.mark.parametrize(
    "data",
    [
        saved("JPEG", progressive=True, xmp=XMP.encode(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
        saved("WEBP", lossless=True, xmp=XMP.encode()),
        saved("WEBP", icc_profile=b"profile", xmp=XMP.encode()),
    ],
)
def test_files_of_other_encoders(data: bytes) -> None:
    found = metadata.read(data)
    assert (found.width, found.height, found.xmp) == (47, 33, XMP)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_size_of_a_plain_webp(options: dict[str, bool]) -> None:
    """No VP8X chunk: the size is the bit stream's."""
    found = metadata.read(saved("WEBP", **options))
    assert (found.width, found.height) == (47, 33)


def test_png_texts_of_every_kind() -> None:
    value = '{"Label": "1", "ContentProducer": "丹青"}'
    for kind, body in (
        (b"tEXt", b"AIGC\0" + value.encode()),
        (b"zTXt", b"AIGC\0\0" + zlib.compress(value.encode())),
        (b"iTXt", b"AIGC\0\0\0zh\0key\0" + value.encode()),
        (b"iTXt", b"AIGC\0\1\0\0\0" + zlib.compress(value.encode())),
    ):
        assert metadata.read(png(chunk(kind, body), chunk(b"IDAT", b""))).aigc == value
        behind = png(chunk(b"IDAT", b"x"), chunk(kind, body))
        assert metadata.read(behind).aigc == value
    info = PngInfo()
    info.add_text("AIGC", "first")
    info.add_itxt("XML:com.adobe.xmp", XMP, zip=True)
    info.add_text("AIGC", "second")
    found = metadata.read(saved("PNG", pnginfo=info))
    assert (found.aigc, found.xmp) == ("first", XMP)


def test_bombs_stay_small_and_fast() -> None:
    bomb = zlib.compress(bytes(2**28), 9)
    started = time.process_time()
    found = metadata.read(png(chunk(b"zTXt", b"AIGC\0\0" + bomb)))
    assert found.aigc is not None
    assert len(found.aigc) <= 2**20
    with pytest.raises(ValueError, match="too large"):
        metadata.read(png(width=2**31 - 1, height=2**31 - 1))
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no image", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", png(width=0), SAMPLES[1][:40],
        png(chunk(b"zTXt", b"AIGC\0\0broken")), png(chunk(b"iTXt", b"AIGC\0")),
        b"<svg/>", b"%PDF-1.7",
    ],
)  # fmt: skip
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"image|size"):
        metadata.read(data)


@settings(max_examples=300)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    st.integers(0, 9000),
)
def test_damage_is_a_value_error_or_nothing(
    data: bytes, changes: list[tuple[int, int]], kept: int
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at] = value
    try:
        found = metadata.read(bytes(damaged[:kept]))
    except ValueError:
        return
    assert found.width * found.height <= metadata.PIXELS_MAX
