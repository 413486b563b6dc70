"""A stranger's picture: recognised by its bytes, bounded before it is decoded, turned upright, made plain. Knows no task.

What comes out is what codecs.decode reads: a whole PNG, JPEG or WebP, one frame, as it is shown. Bytes that
are that already stay as they are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from danqing.domain.sizes import Size
from danqing.domain.task import InputImage, Pixels

T = TypeVar("T")

OPAQUE = "has no alpha channel"

SIDE_MIN = 8
SIDE_MAX = 16_384
RATIO_MAX = 16
"""The longer side over the shorter."""
PNG_PIXELS_MAX = 2**22
"""A larger picture that must be encoded anew becomes a JPEG: a PNG of it would take seconds and far more bytes."""
JPEG_QUALITY = 95
SCANS_MAX = 64
"""Of a progressive JPEG: encoders make a dozen. Each costs a pass over all pixels, and takes 70 bytes to ask for."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_KNOWN = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_ORIENTATION = 0x0112  # Exif's tag; 1 is upright
_TILE_SIDES = (322, 323)  # TIFF 6.0 section 15
_EOI, _SOS = 0xD9, 0xDA  # ITU-T T.81 table B.1
_BARE = frozenset({0x01, 0xD8})
"""Markers without a length (beside RSTn and EOI)."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_KEPT_MODES = ("RGB", "L")
_KNOWN_ALPHA_MIN = 32
"""What is fainter has hardly a colour: eight bits of it times its alpha say little."""
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


class NoPicture(ValueError):
    """The bytes are of no format that is known here, or damaged."""


def read_reference(data: bytes, *, pixels_max: int) -> InputImage:
    """A picture to start from. What is transparent becomes white; of an animation the first frame counts.

    CPU-bound and hungry (4 bytes a pixel, twice): call it from a worker thread, few at a time. Raises
    ValueError saying what is wrong, in words for the client.
    """
    return _guarded(data, pixels_max, _plain)


def read_repainted(data: bytes, *, pixels_max: int) -> InputImage:
    """The same of a picture that has a mask: what is transparent takes the colours around it, white were they none.

    Nobody sees them but for the edge, where what is painted fades in. Raises ValueError alike.
    """
    return _guarded(data, pixels_max, lambda data, image: _plain(data, image, _bled))


def read_mask(data: bytes, *, pixels_max: int) -> InputImage:
    """A mask, as a PNG of its alpha alone, black else. Raises ValueError as `read_reference`, and where nothing is transparent."""
    return _guarded(data, pixels_max, _masking)


def read_pixels(data: bytes, *, pixels_max: int) -> Pixels:
    """A picture's pixels as `read_reference` would keep them, H x W x 3. Raises ValueError alike."""
    return _guarded(
        data, pixels_max, lambda _, image: np.array(_on_white(_eight_bits(_upright(image))))
    )


def read_cut_out(data: bytes, *, pixels_max: int) -> Pixels:
    """The pixels of a picture without a background, H x W x 4. Raises ValueError alike, and where it has no alpha channel."""

    def read(_: bytes, image: Image.Image) -> Pixels:
        if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
            raise _Refused(OPAQUE)
        return np.array(_upright(image).convert("RGBA"))

    return _guarded(data, pixels_max, read)


def read_any(data: bytes, *, pixels_max: int) -> Pixels:
    """A picture's pixels as they are stored, H x W x 3, whatever its shape; opacity is left out.

    Raises ValueError saying what is wrong.
    """
    return _guarded(
        data,
        pixels_max,
        lambda _, image: np.array(_eight_bits(image).convert("RGB")),
        any_shape=True,
    )


def _guarded(
    data: bytes,
    pixels_max: int,
    read: Callable[[bytes, Image.Image], T],
    *,
    any_shape: bool = False,
) -> T:
    if not data:
        raise ValueError("is empty")
    _refuse_other_kinds(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:  # reads the head alone
            if not any_shape or image.width * image.height > pixels_max:
                _check_size(image.size, pixels_max)
            _check_build(data, image, pixels_max)
            image.load()
            return read(data, image)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"has too many pixels: at most {pixels_max} are allowed") from None
    except MemoryError:
        raise ValueError("needs too much memory") from None
    except Exception as error:
        # Pillow answers a damaged file with nearly any exception there is.
        raise NoPicture(f"is not a whole {_KNOWN} image") from error


class _Refused(Exception):
    """A picture that decodes but cannot be used."""


def _refuse_other_kinds(data: bytes) -> None:
    """A clearer word than "not an image" for the kinds that people do send."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = None
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        kind = "an SVG"
    elif head.startswith((b"<!doctype html", b"<html")):
        kind = "a web page"
    elif head.startswith(b"%pdf"):
        kind = "a PDF"
    elif data[4:8] == b"ftyp":
        kind = "a HEIC, AVIF or video file"
    if kind is not None:
        raise NoPicture(f"is {kind}, not a {_KNOWN} image")


def _check_size(size: tuple[int, int], pixels_max: int) -> None:
    width, height = size
    what = f"is {width}x{height} pixels"
    if not SIDE_MIN <= min(size) <= max(size) <= SIDE_MAX:
        raise _Refused(f"{what}: each side must have {SIDE_MIN} to {SIDE_MAX}")
    if width * height > pixels_max:
        raise _Refused(f"{what}: at most {pixels_max} in all are allowed")
    if max(size) > RATIO_MAX * min(size):
        raise _Refused(f"{what}: the sides' ratio may be at most {RATIO_MAX}:1")


def _check_build(data: bytes, image: Image.Image, pixels_max: int) -> None:
    """Refuse what needs far more time or memory than its size tells."""
    if image.format in ("JPEG", "MPO") and _has_too_many_scans(data):
        raise _Refused(f"has more than {SCANS_MAX} scans")
    if isinstance(image, TiffImageFile):
        width, height = (int(image.tag_v2.get(side, 0)) for side in _TILE_SIDES)
        if width * height > pixels_max:  # a tile is decoded whole, however small the picture is
            raise _Refused(f"has tiles of {width}x{height} pixels")


def _has_too_many_scans(data: bytes) -> bool:
    """Walk a JPEG's markers to its end, as a decoder does."""
    scans = at = 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            return False
        scans += marker == _SOS
        if scans > SCANS_MAX:
            return True
        if marker not in _BARE:
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def _plain(
    data: bytes, image: Image.Image, opaque: Callable[[Image.Image], Image.Image] | None = None
) -> InputImage:
    """The same bytes where they are plain already, else the picture encoded anew."""
    name = str(image.format).lower()
    upright = _upright(image)
    if (
        name in ("png", "jpeg", "webp")
        and image.mode in _KEPT_MODES
        and "transparency" not in image.info
        and getattr(image, "n_frames", 1) == 1
        and upright is image
    ):
        return InputImage(data, name, Size(*image.size))
    shown = (opaque or _on_white)(_eight_bits(upright))
    out = io.BytesIO()
    if name == "jpeg" or shown.width * shown.height > PNG_PIXELS_MAX:
        shown.save(out, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        return InputImage(out.getvalue(), "jpeg", Size(*shown.size))
    return _as_png(shown)


def _as_png(image: Image.Image) -> InputImage:
    out = io.BytesIO()
    # A profile that came along may be of another colour space than what is written.
    image.save(out, "PNG", compress_level=1, icc_profile=None)
    return InputImage(out.getvalue(), "png", Size(*image.size))


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its Exif says it is to be shown; the very same one where nothing is to be turned."""
    try:
        orientation: object = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged Exif does not make a picture unfit
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _masking(data: bytes, image: Image.Image) -> InputImage:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        raise _Refused("has no alpha channel: make transparent what is to be repainted")
    shown = _upright(image).convert("RGBA")
    lowest, _ = cast("tuple[int, int]", shown.getchannel("A").getextrema())
    if lowest > 0:
        raise _Refused("has no fully transparent pixel: nothing would be repainted")
    # Its colours mean nothing, and are looked at by no moderation: nobody gets them.
    bare = Image.new("RGBA", shown.size)
    bare.putalpha(shown.getchannel("A"))
    return _as_png(bare)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I and I;16...) to 8 bits: Pillow's own conversion would clip it to white."""
    if image.mode == "F":
        raise _Refused("has floating-point pixels: 8 or 16 bits per channel are taken")
    if not image.mode.startswith("I"):
        return image
    levels = np.array(image)
    if levels.max(initial=0) > 255:
        levels >>= 8
    return Image.fromarray(levels.clip(0, 255, out=levels).astype(np.uint8))


def _bled(image: Image.Image) -> Image.Image:
    """Opaque, by the colours of ever coarser copies (pull-push) where it is not; white without any colour."""
    shown = image if image.mode == "RGBA" else image.convert("RGBA")
    width, height = shown.size
    alpha = shown.getchannel("A")
    lowest, highest = cast("tuple[int, int]", alpha.getextrema())
    if lowest > 0 or highest < _KNOWN_ALPHA_MIN:
        return _on_white(shown)
    half = shown.reduce(2)
    levels = [255 * (level >= _KNOWN_ALPHA_MIN) for level in range(256)]
    half.putalpha(half.getchannel("A").point(levels))
    box = (0, 0, width / 2, height / 2)
    ground = _bled(half).resize((width, height), Image.Resampling.BILINEAR, box=box)
    ground.paste(shown, mask=alpha)
    return ground


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    ground = Image.new("RGB", with_alpha.size, "white")
    ground.paste(with_alpha, mask=with_alpha)
    return ground
