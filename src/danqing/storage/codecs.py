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
from isal import isal_zlib
from PIL import Image

from danqing.domain.card import ImageFormat
from danqing.domain.task import Pixels
from danqing.storage import metadata

Mask = npt.NDArray[np.bool_]

QUALITY_DEFAULT = 90
"""JPEG and WebP quality where the client names none."""

THUMBNAIL_QUALITY, SMALL_QUALITY = 82, 94
SMALL_PX = 256
"""Thumbnails up to this side are encoded at SMALL_QUALITY: at less, flat colours lose the pixel mark."""

# Pillow keeps pixels in blocks of 16 MB, which malloc does not give back to the system; such large ones it does.
# After a picture of 47 megapixels a server stayed at 890 MB with the small ones, at 340 MB with these.
Image.core.set_block_size(2**26)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]

_GROUNDS = ("white", "black")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2
_DEFLATE_LEVEL = (
    1  # ISA-L's 0 to 3; 0 does without dynamic Huffman codes, and photographs grow by a half
)
_XMP_KEYWORD = b"XML:com.adobe.xmp"


def encode(
    pixels: Pixels, format: ImageFormat, *, xmp: str | None = None, compression: int | None = None
) -> bytes:
    """Encode an H x W x 3 uint8 image, or for PNG and WebP H x W x 4 with opacity (not premultiplied).

    `compression` is a quality of 0-100 for JPEG and WebP; PNG is lossless and pays no heed to it.
    CPU-bound; the heavy parts release the GIL.
    """
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3 or (pixels.shape[2] == 4 and format != "jpeg")
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
        # Exact: colours stay where nothing is seen of them, and with them what the pixels carry.
        image.save(out, "WEBP", quality=quality, method=0, exact=pixels.shape[2] == 4, **extra)
    return out.getvalue()


def decode(data: bytes) -> Pixels:
    """Decode an image of ours to H x W x 3 uint8. Raises OSError where the data is no image."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def thumbnail(data: bytes, side_px: int) -> bytes:
    """A WebP that fits into a square of this side, never enlarged, with the image's opacity and XMP.

    `data` is an image of ours. Raises OSError or ValueError where it is none.
    """
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        if image.format == "JPEG":
            image.draft("RGB", (2 * side_px, 2 * side_px))  # decodes at a fraction of the size
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        small = np.array(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"))
    quality = SMALL_QUALITY if side_px <= SMALL_PX else THUMBNAIL_QUALITY
    return encode(small, "webp", xmp=metadata.read(data).xmp, compression=quality)


def within(pixels: Pixels, side_max: int) -> Pixels:
    """The image, made smaller where a side is longer than this."""
    if max(pixels.shape[:2]) <= side_max:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((side_max, side_max), Image.Resampling.BOX)
    return np.asarray(image)


def views(pixels: Pixels) -> list[Pixels]:
    """What may be seen of an H x W x 3 or 4 image, each H x W x 3: its colours, and where any of it is transparent,
    these on white and on black."""
    colours = pixels[..., :3]
    if pixels.shape[2] == 3 or pixels[..., 3].min() == 255:
        return [colours]
    image = Image.fromarray(pixels)
    return [colours, *(np.asarray(_laid_on(image, ground)) for ground in _GROUNDS)]


def decode_views(data: bytes, side_max: int) -> list[Pixels]:
    """The `views` of an encoded image, no side longer than this; of a JPEG no more is decoded than it needs. Raises OSError."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        image.draft("RGB", (side_max, side_max))
        small = list[Pixels]()

        def keep(seen: Image.Image) -> None:
            seen.thumbnail((side_max, side_max), Image.Resampling.BOX)
            small.append(np.array(seen))

        clear = image.convert("RGBA") if image.has_transparency_data else None
        keep(image if image.mode == "RGB" else image.convert("RGB"))
        if (
            clear is not None
            and cast("tuple[int, int]", clear.getchannel("A").getextrema())[0] < 255
        ):
            for (
                ground
            ) in _GROUNDS:  # at full size: made smaller first, what opacity shows would differ
                keep(_laid_on(clear, ground))
        return small


def _laid_on(image: Image.Image, ground: str) -> Image.Image:
    laid = Image.new("RGB", image.size, ground)
    laid.paste(image, mask=image.getchannel("A"))
    return laid


def decode_mask(data: bytes) -> Mask:
    """Decode a mask to H x W booleans: True where it is (more than half) transparent. Raises OSError."""
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        return np.array(image.convert("RGBA").getchannel("A")) < 128


def _png(pixels: Pixels, xmp: str | None) -> bytes:
    """PNG (W3C PNG 3rd edition) with the "up" filter on every row and ISA-L's deflate.

    Trying all five filters on each row, as libraries do, costs more than it saves; ISA-L's quickest level takes a
    quarter of the time of zlib's run-length strategy for the same size.
    """
    height, width, channels = pixels.shape
    raw = pixels.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = raw[0]
    np.subtract(raw[1:], raw[:-1], out=rows[1:, 1:])  # modulo 256, as the filter wants it
    data = isal_zlib.compress(rows.data, _DEFLATE_LEVEL)
    colour = 2 if channels == 3 else 6
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))]
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
