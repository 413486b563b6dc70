"""Pixels to PNG, JPEG and WebP bytes with XMP metadata, and back. Knows no labels: the XMP text is given.

The encoders were chosen by bench/encoders.py; its tables are in bench/results/.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.card import ImageFormat
from danqing.domain.task import Pixels

Mask = npt.NDArray[np.bool_]

QUALITY_DEFAULT = 90
"""JPEG and WebP quality where the client names none."""

# Pillow keeps pixels in blocks of 16 MB, which malloc does not give back to the system; such large ones it does.
# After a picture of 47 megapixels a server stayed at 890 MB with the small ones, at 340 MB with these.
Image.core.set_block_size(2**26)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2
_XMP_KEYWORD = b"XML:com.adobe.xmp"


def encode(
    pixels: Pixels, format: ImageFormat, *, xmp: str | None = None, compression: int | None = None
) -> bytes:
    """Encode an H x W x 3 uint8 image. `compression` is a quality of 0-100 for JPEG and WebP.

    PNG is lossless and pays no heed to `compression`. CPU-bound; the heavy parts release the GIL.
    """
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    if format == "png":
        return _png(pixels, xmp)
    # libjpeg's lowest quality is 1.
    quality = max(1, QUALITY_DEFAULT if compression is None else compression)
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    extra = {} if xmp is None else {"xmp": xmp.encode()}
    if format == "jpeg":
        # 4:4:4: flat colours and small red text bleed under 4:2:0.
        image.save(out, "JPEG", quality=quality, subsampling="4:4:4", **extra)
    else:
        image.save(out, "WEBP", quality=quality, method=0, **extra)
    return out.getvalue()


def decode(data: bytes) -> Pixels:
    """Decode an image of ours to H x W x 3 uint8. Raises OSError where the data is no image."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_mask(data: bytes) -> Mask:
    """Decode a mask to H x W booleans: True where it is (more than half) transparent. Raises OSError."""
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        return np.array(image.convert("RGBA").getchannel("A")) < 128


def _png(pixels: Pixels, xmp: str | None) -> bytes:
    """PNG (W3C PNG 3rd edition) with the "up" filter on every row and run-length deflate.

    Trying all five filters on each row, as libraries do, costs more than it saves; and a search for
    longer matches finds next to nothing in drawn pictures but takes half of the time.
    """
    height, width, _ = pixels.shape
    raw = pixels.reshape(height, width * 3)
    rows = np.empty((height, 1 + width * 3), np.uint8)
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = raw[0]
    np.subtract(raw[1:], raw[:-1], out=rows[1:, 1:])  # modulo 256, as the filter wants it
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    data = packer.compress(rows.data) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    if xmp is not None:  # iTXt: keyword, uncompressed, no language, no translated keyword
        chunks.append((b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + xmp.encode()))
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def measure(data: bytes) -> tuple[ImageFormat, int, int]:
    """Format, width and height of an encoded image, which is checked to be whole.

    Raises ValueError for anything else.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
            name = str(image.format).lower()
            return cast("ImageFormat", name), image.width, image.height
    except (OSError, SyntaxError) as error:
        raise ValueError("not a whole PNG, JPEG or WebP") from error
