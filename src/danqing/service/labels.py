"""The visible AI-content label of GB 45438-2025, drawn on pixels. Knows pixels and text: no account, no task, no file format."""

from __future__ import annotations

import functools
import io
import math
import threading
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from danqing.domain.task import Pixels
from danqing.service.prompts import is_chinese
from danqing.settings import Corner, LabelSettings

HEIGHT_SHARE = 0.05
"""The least height of the text, as a share of the image's shorter side (GB 45438-2025)."""
MARGIN_SHARE = 0.02
"""Between the label and the image's edges, as a share of the shorter side."""
LEGIBLE_PX = 11
"""Small images get a larger share, up to this height, as far as the label still fits."""
CONTRAST_MIN = 4.5
"""Text to ground, as WCAG 2.2 section 1.4.3 defines it."""
CORRELATION_MIN = 0.8
"""Between a visible label's ink and what is where it should be."""

_PAD_X, _PAD_Y = 0.42, 0.32  # inside the plate, in text heights
_PLATE_ALPHA_MIN = 0.22  # a faint plate even where none is needed: every label looks of one kind
_WHITE_BIAS = 0.25  # on middle tones white on darkened glass reads better than black on lightened
_WHITE, _BLACK = 1.0, 0.07  # the text's two colours, as sRGB grey

Alpha = npt.NDArray[np.float32]
"""Coverage or light, 0-1."""


class Area(NamedTuple):
    """Part of an image, in pixels; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass(frozen=True, slots=True)
class Place:
    """Which corner, and how far from its edges as a share of the image's shorter side."""

    corner: Corner = "bottom-right"
    margin_share: float = MARGIN_SHARE


BOTTOM_RIGHT = Place()


def wording(prompt: str, settings: LabelSettings) -> str:
    """The visible label's words in the prompt's language."""
    return settings.text_chinese if is_chinese(prompt) else settings.text_english


def unprintable(text: str) -> str:
    """Those signs of a text that the label's font has not."""
    with _drawing:
        font = ImageFont.truetype(
            io.BytesIO(_font_data()), 20, layout_engine=ImageFont.Layout.BASIC
        )
        missing = _drawn(font, "\U000f0000")
        return "".join(
            sign for sign in text if not sign.isspace() and _drawn(font, sign) == missing
        )


def _drawn(font: ImageFont.FreeTypeFont, sign: str) -> bytes:
    canvas = Image.new("L", (40, 40))
    ImageDraw.Draw(canvas).text((5, 5), sign, fill=255, font=font)
    return canvas.tobytes()


def draw_visible(pixels: Pixels, text: str, place: Place = BOTTOM_RIGHT) -> Pixels:
    """A copy of the H x W x 3 or 4 uint8 image with `text` in one of its corners.

    The text's ink is at least 5 % of the shorter side high. Its plate is like frosted glass: it
    blurs the ground, and tints it as strongly as a contrast of 4.5 needs and no stronger. It is opaque
    whatever is transparent below it, and whatever colour that has.
    """
    height, width, channels = pixels.shape
    box = _fitted(text, width, height, place.margin_share)
    top, left = box.corner(width, height, place.corner)
    out = pixels.copy()
    patch = out[top : top + box.height, left : left + box.width, :3]
    # An image smaller than any label gets its lower right part.
    ink, plate = (a[-patch.shape[0] :, -patch.shape[1] :, None] for a in (box.ink, box.plate))
    frosted = Image.fromarray(patch).filter(ImageFilter.GaussianBlur(box.height / 6))
    glass = np.asarray(frosted, np.float32) / np.float32(255)
    text_grey, alpha = _contrast(glass)
    glass += (np.float32(text_grey == _BLACK) - glass) * np.float32(alpha)
    ground = patch.astype(np.float32) / 255
    ground += (glass - ground) * plate
    ground += (np.float32(text_grey) - ground) * ink
    patch[:] = np.rint(ground * 255).astype(np.uint8)
    if channels == 4:
        opacity = out[top : top + box.height, left : left + box.width, 3:]
        np.maximum(opacity, np.rint(plate * 255).astype(np.uint8), out=opacity)
    return out


def area(text: str, width: int, height: int, place: Place = BOTTOM_RIGHT) -> Area:
    """What the label covers of an image of this size."""
    box = _fitted(text, width, height, place.margin_share)
    top, left = box.corner(width, height, place.corner)
    return Area(top, left, top + box.height, left + box.width)


def shows(pixels: Pixels, text: str, margin_share: float = MARGIN_SHARE) -> bool:
    """Whether a label of ours with `text` stands in a corner of the H x W x 3 uint8 image, or within two pixels of it.

    What is there is correlated with the text's ink, inside the plate: nothing else looks like it.
    """
    height, width, _ = pixels.shape
    box = _fitted(text, width, height, margin_share)
    if box.height > height or box.width > width:
        return False
    inside = box.plate > 0.99
    wanted = box.ink[inside] - box.ink[inside].mean()
    power = float(np.square(wanted).sum())
    for corner in get_args(Corner):
        top, left = box.corner(width, height, corner)
        for y in range(max(0, top - 2), min(top + 2, height - box.height) + 1):
            for x in range(max(0, left - 2), min(left + 2, width - box.width) + 1):
                patch = (
                    pixels[y : y + box.height, x : x + box.width].astype(np.float32).mean(axis=2)
                )
                there = patch[inside] - patch[inside].mean()
                norm = math.sqrt(float(np.square(there).sum()) * power)
                if abs(float((there * wanted).sum())) > CORRELATION_MIN * max(norm, 1e-6):
                    return True
    return False


@dataclass(frozen=True, slots=True)
class _Box:
    """A label's shape: `ink` and `plate` cover the same height x width pixels, 0-1."""

    ink: Alpha
    plate: Alpha
    margin: int

    @property
    def height(self) -> int:
        return self.plate.shape[0]

    @property
    def width(self) -> int:
        return self.plate.shape[1]

    def corner(self, width: int, height: int, corner: Corner) -> tuple[int, int]:
        """Its top and left in an image of this size."""
        upright, level = corner.split("-")
        top = self.margin if upright == "top" else height - self.margin - self.height
        left = self.margin if level == "left" else width - self.margin - self.width
        return max(0, min(top, height - self.height)), max(0, min(left, width - self.width))


_drawing = threading.Lock()  # FreeType faces are not made for several threads


@functools.lru_cache(maxsize=64)
def _fitted(text: str, width: int, height: int, margin_share: float) -> _Box:
    """The label for an image of this size: the tallest up to LEGIBLE_PX that fits, or the least."""
    margin = round(min(width, height) * margin_share)
    least = math.ceil(min(width, height) * HEIGHT_SHARE)
    for ink_px in range(max(least, LEGIBLE_PX), least, -1):
        box = _boxed(text, ink_px, margin)
        if box.height <= height - 2 * margin and box.width <= width - 2 * margin:
            return box
    return _boxed(text, least, margin)


def _boxed(text: str, ink_px: int, margin: int) -> _Box:
    drawn = _ink(text, ink_px)
    pad_x, pad_y = round(drawn.shape[0] * _PAD_X), round(drawn.shape[0] * _PAD_Y)
    drawn = np.pad(drawn, ((pad_y, pad_y), (pad_x, pad_x)))
    return _Box(drawn, _rounded(*drawn.shape), margin)


@functools.cache
def _font_data() -> bytes:
    return files("danqing.service").joinpath("assets", "NotoSansCJKsc-Bold-labels.otf").read_bytes()


def _ink(text: str, ink_px: int) -> Alpha:
    """The text, trimmed to its ink, whose solid part is at least `ink_px` high."""
    size = ink_px
    while True:
        alpha = ink(text, size)
        solid = np.flatnonzero((alpha >= 0.5).any(axis=1))
        if len(solid) and solid[-1] - solid[0] + 1 >= ink_px:
            return alpha
        size += 1


def ink(text: str, font_px: int) -> Alpha:
    """The text's coverage at this size of the font, trimmed."""
    data = _font_data()
    with _drawing:
        font = ImageFont.truetype(io.BytesIO(data), font_px, layout_engine=ImageFont.Layout.BASIC)
        left, top, right, bottom = font.getbbox(text)
        canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font)
    alpha = np.asarray(canvas, np.float32) / np.float32(255)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _rounded(height: int, width: int) -> Alpha:
    """A rounded rectangle with smooth edges, by its signed distance."""
    radius = min(height, width) * 0.32
    y = np.abs(np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2)
    x = np.abs(np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2)
    outside_x = np.maximum(x - (width / 2 - radius), 0)
    outside_y = np.maximum(y - (height / 2 - radius), 0)
    return np.clip(radius + 0.5 - np.hypot(outside_x, outside_y), 0, 1).astype(np.float32)


def _contrast(ground: Alpha) -> tuple[float, float]:
    """The text's grey (white or near black) and the plate's opacity over this ground (sRGB, 0-1).

    Relative luminance is WCAG's. The plate is black under white text, white under black; the one
    that covers less wins, with a bias. All but the extreme 2 % of pixels come to the contrast wanted.
    """
    red, green, blue = np.moveaxis(_linear(ground), -1, 0)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    dark, light = (_srgb(float(value)) for value in np.percentile(luminance, (2, 98)))
    # The ground's grey that just gives the contrast, for either text.
    white, black = (float(value) for value in _linear(np.array([_WHITE, _BLACK], np.float32)))
    below = _srgb((white + 0.05) / CONTRAST_MIN - 0.05)
    above = _srgb((black + 0.05) * CONTRAST_MIN - 0.05)
    alpha_black = max(0.0, 1 - below / max(light, 1e-6))
    alpha_white = max(0.0, (above - dark) / max(1 - dark, 1e-6))
    if alpha_black <= alpha_white + _WHITE_BIAS:
        return _WHITE, max(alpha_black, _PLATE_ALPHA_MIN)
    return _BLACK, max(alpha_white, _PLATE_ALPHA_MIN)


def _linear(srgb: Alpha) -> Alpha:
    """sRGB to linear light (IEC 61966-2-1)."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)


def _srgb(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
