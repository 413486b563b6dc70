"""What a PNG, JPEG or WebP file says of itself: its size and its text. Decodes no pixels; knows no labels.

Walks the container alone, so a stranger's file costs no more than its bytes, and metadata that lies
behind the pixels (PNG, WebP) is found too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from danqing.domain.card import ImageFormat

PIXELS_MAX = 2**28
"""Width times height of a file that is read at all; the largest cameras' pictures are smaller."""

_TEXT_BYTES_MAX = 2**20
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among the start-of-frame markers C0-CF: tables, reserved

_Parts = Iterator[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Size in pixels; `xmp` is the XMP packet, `aigc` the text of a PNG's keyword "AIGC"."""

    format: ImageFormat
    width: int
    height: int
    xmp: str | None = None
    aigc: str | None = None


def read(data: bytes, *, pixels_max: int = PIXELS_MAX) -> Metadata:
    """Read a file's size and text; where it has several texts of one kind, the first.

    Raises ValueError where it is no PNG, JPEG or WebP, is damaged, or has too many pixels.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            found = _png(_png_chunks(data))
        elif data.startswith(b"\xff\xd8\xff"):
            found = _jpeg(_jpeg_segments(data))
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = _webp(_webp_chunks(data))
        else:
            raise ValueError("not a PNG, JPEG or WebP image")
    except (struct.error, IndexError, zlib.error):
        raise ValueError("a damaged image") from None
    if not found.width or not found.height:
        raise ValueError("a damaged image: it has no size")
    if found.width * found.height > pixels_max:
        raise ValueError(
            f"too large: {found.width} x {found.height} pixels, at most {pixels_max} in all are read"
        )
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _png_chunks(data: bytes) -> _Parts:
    """Type and body of each chunk (W3C PNG 3rd edition, section 5.3); checksums are not asked."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, b"" if kind == b"IDAT" else data[at + 8 : at + 8 + length]
        at += 12 + length


def _png(chunks: _Parts) -> Metadata:
    kind, head = next(chunks, (b"", b""))
    if kind != b"IHDR":
        raise ValueError("a damaged image: it has no header")
    width, height = struct.unpack_from(">II", head)
    texts: dict[bytes, str] = {}
    for kind, body in chunks:
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = body.partition(b"\0")
            if keyword in (b"XML:com.adobe.xmp", b"AIGC") and keyword not in texts:
                texts[keyword] = _png_text(kind, rest)
    return Metadata("png", width, height, texts.get(b"XML:com.adobe.xmp"), texts.get(b"AIGC"))


def _png_text(kind: bytes, body: bytes) -> str:
    """The text behind a keyword (section 11.3.3). tEXt is Latin-1 by the book, UTF-8 in the wild."""
    packed = kind == b"zTXt"
    if packed:
        body = body[1:]
    elif kind == b"iTXt":
        packed = body[0] == 1
        body = body[2:].split(b"\0", 2)[2]  # behind the language and the translated keyword
    if packed:
        body = zlib.decompressobj().decompress(body, _TEXT_BYTES_MAX)
    return _text(body[:_TEXT_BYTES_MAX])


def _jpeg_segments(data: bytes) -> _Parts:
    """Marker and body of each segment before the pixels (ITU-T T.81, annex B)."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("a damaged image")
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # nothing follows these
            at += 2
        elif marker in (0xDA, 0xD9):  # the pixels, the end
            return
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            yield data[at + 1 : at + 2], data[at + 4 : at + 2 + length]
            at += 2 + max(2, length)


def _jpeg(segments: _Parts) -> Metadata:
    width = height = 0
    xmp: str | None = None
    for marker, body in segments:
        if 0xC0 <= marker[0] <= 0xCF and marker[0] not in _JPEG_NO_FRAME:
            height, width = struct.unpack_from(">HH", body, 1)
        elif marker == b"\xe1" and body.startswith(_JPEG_XMP) and xmp is None:
            xmp = _text(body[len(_JPEG_XMP) :])
    return Metadata("jpeg", width, height, xmp)


def _webp_chunks(data: bytes) -> _Parts:
    """Type and body of each RIFF chunk (RFC 9649, section 2.3); of the pixels, their head."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        taken = min(length, 16) if kind != b"XMP " else length
        yield kind, data[at + 8 : at + 8 + taken]
        at += 8 + length + (length & 1)


def _webp(chunks: _Parts) -> Metadata:
    size: tuple[int, int] | None = None
    xmp: str | None = None
    for kind, body in chunks:
        if size is None and kind in (b"VP8X", b"VP8L", b"VP8 "):
            size = _webp_size(kind, body)
        elif kind == b"XMP " and xmp is None:
            xmp = _text(body[:_TEXT_BYTES_MAX])
    return Metadata("webp", *(size or (0, 0)), xmp)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """RFC 9649 sections 2.5-2.7: the canvas, or the bit stream's own size."""
    if kind == b"VP8X":  # flags and reserved, then 24 bits each of width - 1 and height - 1
        low, high, height_low, height_high = struct.unpack_from("<HBHB", body, 4)
        return (low | high << 16) + 1, (height_low | height_high << 16) + 1
    if kind == b"VP8L":  # the signature, then 14 bits each
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from(
        "<HH", body, 6
    )  # the frame tag, the start code, 14 bits each
    return width & 0x3FFF, height & 0x3FFF
