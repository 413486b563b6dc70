"""PNG, JPEG and WebP files as containers: XMP put into one, and a digest of what decides its pixels. Knows no labels.

JPEG decoders differ in their last bit, so what is digested of a lossy file is its coded picture; of a lossless one, whose
pixels are the same everywhere, it is the pixels. Either way a metadata editor changes nothing of it.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from danqing.domain.task import Pixels

Method = Literal["pixels", "coded"]

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_XMP_BYTES_MAX = 65_533 - len(_JPEG_XMP)
_JPEG_SAYS_NOTHING = frozenset({*range(0xE0, 0xEE), 0xEF, 0xFE})
"""APPn and COM; APP14 (Adobe) says how colours are coded."""
_WEBP_ALPHA, _WEBP_XMP = 0x10, 0x04  # flags of VP8X
_WEBP_CODED = (b"ALPH", b"VP8 ")


def with_xmp(data: bytes, packet: str) -> bytes:
    """An encoded image with an XMP packet. `data` is one of our encoders', without XMP.

    XMP specification part 3, sections 1.1.3 (JPEG) and 1.1.5 (PNG); RFC 9649 sections 2.7 and 2.7.1.5 (WebP).
    """
    xmp = packet.encode()
    if data.startswith(_PNG):
        # iTXt: keyword, uncompressed, no language, no translated keyword.
        chunk = b"iTXt" + _XMP_KEYWORD + b"\0\0\0\0\0" + xmp
        text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        behind_head = len(_PNG) + 12 + 13
        return data[:behind_head] + text + data[behind_head:]
    if data.startswith(b"\xff\xd8"):
        assert len(xmp) <= _JPEG_XMP_BYTES_MAX
        at = 2
        if data[2:4] == b"\xff\xe0":  # JFIF comes first
            at += 2 + struct.unpack_from(">H", data, 4)[0]
        body = _JPEG_XMP + xmp
        return data[:at] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[at:]
    return _webp_with_xmp(data, xmp)


def _webp_with_xmp(data: bytes, xmp: bytes) -> bytes:
    chunks = list(_webp_chunks(data))
    kind, body = chunks[0]
    if kind == b"VP8X":
        chunks[0] = (kind, bytes([body[0] | _WEBP_XMP]) + body[1:])
    else:  # the simple format has no room for metadata
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            width, height, has_alpha = image.width, image.height, image.mode == "RGBA"
        flags = _WEBP_XMP | (_WEBP_ALPHA if has_alpha else 0)
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + size))
    chunks.append((b"XMP ", xmp))
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) & 1)
        for kind, part in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def digest(data: bytes, pixels: Pixels | None = None) -> tuple[Method, bytes]:
    """How a file's picture was digested, and its SHA-256. Raises ValueError where it cannot be read.

    `pixels`, where the caller has them, saves decoding a PNG. An animation shows more than one picture: the whole
    file is digested, so that it is never a still one's.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return "coded", _hashed(_jpeg_parts(data))
        if data[:4] == b"RIFF":
            chunks = list(_webp_chunks(data))
            kinds = {kind for kind, _ in chunks}
            if b"VP8L" not in kinds and b"ANMF" not in kinds:
                # Each of them: which of two a decoder takes is its own affair.
                return "coded", _hashed(body for kind, body in chunks if kind in _WEBP_CODED)
        if pixels is None and _moves(data):
            return "pixels", _hashed(iter([data]))
        return "pixels", _hashed(_pixel_parts(_decoded(data) if pixels is None else pixels))
    except (struct.error, IndexError, OSError, SyntaxError) as error:
        raise ValueError("a damaged image") from error


def _moves(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        return getattr(image, "n_frames", 1) != 1


def _decoded(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))


def _pixel_parts(pixels: Pixels) -> Iterator[bytes | memoryview]:
    """Size and colours, and the opacity unless it is full everywhere."""
    if pixels.shape[2] == 4 and (pixels[..., 3] == 255).all():
        pixels = pixels[..., :3]
    yield struct.pack(">III", *pixels.shape)
    yield np.ascontiguousarray(pixels).data.cast("B")


def _hashed(parts: Iterator[bytes | memoryview]) -> bytes:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(struct.pack(">Q", len(part)))
        sha.update(part)
    return sha.digest()


def _jpeg_parts(data: bytes) -> Iterator[bytes | memoryview]:
    """Tables, frame and scans of a JPEG (ITU-T T.81, annex B), up to its end."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            end = data.find(b"\xff\xd9", at)
            yield memoryview(data)[at : end if end >= 0 else len(data)]
            return
        if marker not in _JPEG_SAYS_NOTHING:
            yield data[at : at + 2 + length]
        at += 2 + length
    raise ValueError("a damaged image")


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """As far as the file says that it goes: what lies behind, no decoder looks at."""
    at, end = 12, min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)
