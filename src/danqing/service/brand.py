"""The operator's brand mark, drawn on pixels: words or a picture in a corner, never on the AI label. Knows no task, no request."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from danqing.domain.task import Pixels
from danqing.service import labels, plain_files
from danqing.service.labels import Alpha, Area
from danqing.settings import BrandSettings, Corner

FILE_BYTES_MAX = 4_000_000
FILE_SIDE_MAX = 4096
LEGIBLE_PX = 12
"""Small images get a larger share, up to this height, as far as the mark still fits."""

_MASTER_PX = 300  # the font in which words are drawn once, to be made smaller
_PAD = 0.22  # around the words, in their height: where their shade is
_SHADE = 0.5  # how much of the other tone lies around the words
_WHITE, _BLACK = 255.0, 18.0
_LIGHT = 150.0  # grounds of a higher mean grey get dark words


class BrandMark:
    """One mark, made ready."""

    def __init__(self, settings: BrandSettings, corner: Corner, margin_share: float) -> None:
        """Raises ValueError naming the setting, for a text or a file that cannot be drawn."""
        self._corner: Corner = corner
        self._margin_share = margin_share
        self._height_share = settings.height_share
        self._opacity = settings.opacity
        self._picture = None if settings.picture is None else _opened(settings.picture)
        if self._picture is None and (missing := labels.unprintable(settings.text)):
            raise ValueError(f"brand.text: the label's font has no '{missing}'")
        self._words = _words(settings.text) if self._picture is None else None

    def area(self, width: int, height: int, label: Area | None = None) -> Area | None:
        """Where it stands in an image of this size beside an AI label; None where there is no room."""
        art = self._picture or self._words
        assert art is not None
        margin = round(min(width, height) * self._margin_share)
        tall_px = max(round(min(width, height) * self._height_share), LEGIBLE_PX)
        if self._words is not None:  # their shade comes on top
            tall_px = round(tall_px * (1 + 2 * _PAD))
        wide_px = max(1, round(tall_px * art.width / art.height))
        best: tuple[float, float, Area] | None = None
        for room in _rooms(Area(margin, margin, height - margin, width - margin), label, margin):
            scale = min(1.0, room.height / tall_px, room.width / wide_px)
            if tall_px * scale < 1:
                continue
            size = max(1, int(tall_px * scale)), max(1, int(wide_px * scale))
            there = _in_corner(room, *size, self._corner)
            away = _distance(there, width, height, self._corner)
            if best is None or (-scale, away) < best[:2]:
                best = (-scale, away, there)
        return None if best is None else best[2]

    def draw(self, pixels: Pixels, label: Area | None = None) -> Pixels:
        """A copy of the H x W x 3 or 4 uint8 image with the mark; `label` is where the AI label will stand."""
        area = self.area(pixels.shape[1], pixels.shape[0], label)
        if area is None:
            return pixels
        out = pixels.copy()
        patch = out[area.top : area.bottom, area.left : area.right]
        if self._picture is not None:
            shown = np.asarray(_sized(self._picture, area), np.float32)
            _lay(patch, shown[..., :3], shown[..., 3] * np.float32(self._opacity / 255))
            return out
        assert self._words is not None
        words, shade = _shaded(self._words, area)
        ground = patch[..., :3].mean() if patch.shape[2] == 3 or patch[..., 3].any() else 0.0
        tone, other = (_BLACK, _WHITE) if ground > _LIGHT else (_WHITE, _BLACK)
        _lay(patch, np.float32(other), shade * (_SHADE * self._opacity))
        _lay(patch, np.float32(tone), words * self._opacity)
        return out


def _opened(path: Path) -> Image.Image:
    """The mark's picture, without its empty edges. Raises ValueError."""
    try:
        with plain_files.opened(path) as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"brand.picture: {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"brand.picture: {path}: {error}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"brand.picture: {path}: more than {FILE_BYTES_MAX} bytes")
    shown: Image.Image | None = None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG")) as image:
            if max(image.size) <= FILE_SIDE_MAX:
                shown = image.convert("RGBA")
    # Of broken chunks Pillow says what Python says of them (ValueError, IndexError, struct.error and others).
    except Exception:
        raise ValueError(f"brand.picture: {path}: not a whole PNG, WebP or JPEG") from None
    if shown is None:
        raise ValueError(f"brand.picture: {path}: more than {FILE_SIDE_MAX} pixels a side")
    box = shown.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"brand.picture: {path}: it is transparent everywhere")
    return shown.crop(box)


def _words(text: str) -> Image.Image:
    """The words' coverage, large, with room for their shade."""
    ink = labels.ink(text, _MASTER_PX)
    return Image.fromarray(np.rint(np.pad(ink, round(_PAD * ink.shape[0])) * 255).astype(np.uint8))


def _shaded(words: Image.Image, area: Area) -> tuple[Alpha, Alpha]:
    """The words' coverage and their shade's, 0-1."""
    small = _sized(words, area)
    soft = small.filter(ImageFilter.MaxFilter(3))
    soft = soft.filter(ImageFilter.GaussianBlur(area.height * 0.07))
    part = np.float32(1 / 255)
    shade = np.minimum(np.asarray(soft, np.float32) * np.float32(1.6 / 255), 1)
    return np.asarray(small, np.float32) * part, shade


def _sized(art: Image.Image, area: Area) -> Image.Image:
    return art.resize((area.width, area.height), Image.Resampling.LANCZOS)


def _rooms(free: Area, label: Area | None, gap: int) -> list[Area]:
    """The largest free areas: all, or those to the left and right of a label, above and below it."""
    if label is None:
        return [free]
    gap = max(gap, 2)
    return [
        free._replace(right=min(free.right, label.left - gap)),
        free._replace(left=max(free.left, label.right + gap)),
        free._replace(bottom=min(free.bottom, label.top - gap)),
        free._replace(top=max(free.top, label.bottom + gap)),
    ]


def _in_corner(room: Area, tall: int, wide: int, corner: Corner) -> Area:
    top = room.top if corner.startswith("top") else room.bottom - tall
    left = room.left if corner.endswith("left") else room.right - wide
    return Area(top, left, top + tall, left + wide)


def _distance(area: Area, width: int, height: int, corner: Corner) -> int:
    """Of an area's corner from the image's."""
    upright = area.top if corner.startswith("top") else height - area.bottom
    return upright + (area.left if corner.endswith("left") else width - area.right)


def _lay(patch: Pixels, colour: Alpha | np.float32, cover: Alpha) -> None:
    """`colour` (0-255) over the patch, as far as `cover` (0-1) says: "over", after Porter and Duff (1984)."""
    cover = cover[..., None]
    ground = patch[..., :3].astype(np.float32)
    if patch.shape[2] == 4:
        under = patch[..., 3:].astype(np.float32) / 255 * (1 - cover)
        whole = cover + under
        patch[..., 3:] = np.rint(whole * 255).astype(np.uint8)
        share = cover / np.maximum(whole, 1e-6)
    else:
        share = cover
    patch[..., :3] = np.rint(ground + (colour - ground) * share).astype(np.uint8)
