"""The invisible pixel mark: an image's id, hidden in its pixels so that it outlives its file. Knows pixels and a key alone.

Spread spectrum (Cox, Kilian, Leighton and Shamoon, 1997) on a canonical grid of 192 x 192 cells, whatever the image's size, so that
resizing undoes itself. A cell's value is its mean luminance less its neighbourhood's; it is limited before it is correlated, as the
best detectors for heavy-tailed pictures do (Hernández, Amado and Pérez-González, 2000). Which of the 192 code signs a cell carries,
and in which polarity, is secret. The embedder knows the picture, so it does not add a fixed pattern but just what the detector still
lacks (informed embedding after Malvar and Florêncio's "Improved Spread Spectrum", 2003; Miller, Doërr and Cox, 2004), both for the
picture as it is and for one made 20 % brighter, whose highlights clip. It spends most where texture hides it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.task import Pixels
from danqing.service import pixel_code

SIDE_MIN = 192
"""A shorter side under this holds no mark: the grid would be finer than the pixels."""
ID_BITS, CHECK_BITS = 44, 20
CORRELATION_MIN = 0.6
"""Between the soft values and the signs decoded of them; the check decides alone above it."""

Plane = npt.NDArray[np.float32]
"""One value a cell: _GRID x _GRID."""

_GRID = 192
_CELLS = _GRID * _GRID // pixel_code.SIGNS  # per sign
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LIMIT = (
    4.0  # grey levels: a cell that differs more from its neighbourhood counts no more than this
)
_LIMIT_SHARE = 0.3  # of the mean difference around, where that is more
_BRIGHTER = 1.2
_MARGIN, _MARGIN_FLAT, _MARGIN_BRIGHTER = (
    2.4,
    1.0,
    1.5,
)  # in standard deviations of a strong texture
_FLAT = 0.3  # grey levels of texture under which a cell is flat, and encoders erase faint patterns
_WEIGHT, _WEIGHT_MAX, _WEIGHT_PER_TEXTURE = 1.0, 8.0, 0.25  # grey levels that a cell hides
_AMPLITUDE_MAX = 1.6  # in weights
_RMS_MAX = 255 / 10 ** (41.5 / 20)  # of cells, in grey levels: comes to 40.4 dB and more in pixels
_ROUNDS = 8
_STRIP_ROWS = 256
_REDUCED_MIN = 4 * _GRID  # large images are averaged down to this at least, strip by strip


@dataclass(frozen=True, slots=True)
class Found:
    """A mark that was read: the image's id (11 hex digits) and how well the signs agree, 0-1."""

    image_id: str
    correlation: float


class PixelMarker:
    """Writes and reads marks under one key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        count = _GRID * _GRID
        stream = hashlib.shake_256(b"danqing pixel mark 1" + secret).digest(9 * count)
        order = np.argsort(np.frombuffer(stream[: 8 * count], "<u8"), kind="stable")
        self._cells = order.reshape(pixel_code.SIGNS, _CELLS)
        self._owner = np.empty(count, np.intp)
        self._owner[order] = np.repeat(np.arange(pixel_code.SIGNS), _CELLS)
        polarity = np.frombuffer(stream[8 * count :], np.uint8) & 1
        self._polarity = (1 - 2.0 * polarity).astype(np.float32).reshape(_GRID, _GRID)

    def mark(self, pixels: Pixels, image_id: str) -> Pixels:
        """A copy of the H x W x 3 uint8 image that carries the id (11 hex digits); at least 40 dB from it.

        An image with a side under SIDE_MIN comes back as it is. CPU-bound.
        """
        if min(pixels.shape[:2]) < SIDE_MIN:
            return pixels
        signs = pixel_code.encode(self._payload(image_id))
        return _add(pixels, self._pattern(_averaged(pixels, 2 * _GRID), signs))

    def find(self, pixels: Pixels) -> Found | None:
        """The mark of a H x W x 3 uint8 image, or None.

        An image without one passes the check once in 2^20 = 1,048,576, and only if the signs agree besides.
        """
        values = self._values(_cells_of(_averaged(pixels, 2 * _GRID)))
        bits = pixel_code.decode(values)
        norm = float(np.sqrt((values * values).sum() * pixel_code.SIGNS))
        correlation = float(values @ pixel_code.encode(bits)) / norm if norm else 0.0
        number = int("".join("1" if bit else "0" for bit in bits), 2)
        image_id = f"{number >> CHECK_BITS:011x}"
        ours = (bits == self._payload(image_id)).all()
        return Found(image_id, correlation) if ours and correlation >= CORRELATION_MIN else None

    def _payload(self, image_id: str) -> pixel_code.Bits:
        """The id's 44 bits and 20 of its HMAC, the most significant first."""
        digest = hmac.digest(
            self._secret, b"danqing pixel mark 1 check " + image_id.encode(), "sha256"
        )
        check = int.from_bytes(digest[:4], "big") >> (32 - CHECK_BITS)
        number = int(image_id, 16) << CHECK_BITS | check
        return np.array([number >> at & 1 for at in range(pixel_code.BITS - 1, -1, -1)], np.bool_)

    def _values(self, cells: Plane) -> pixel_code.Floats:
        residual = _residual(cells)
        return self._correlated(np.clip(residual / _limits(residual), -1, 1))

    def _correlated(self, plane: Plane) -> pixel_code.Floats:
        """Each sign's cells, summed in their polarity; a strong texture's come out with variance 1."""
        by_sign = (plane * self._polarity).ravel()[self._cells]
        return by_sign.sum(axis=1) / np.float32(np.sqrt(_CELLS))

    def _pattern(self, small: Plane, signs: pixel_code.Floats) -> Plane:
        """What to add to each cell, from the image at twice the grid's resolution (2G x 2G x 3)."""
        cells = _cells_of(small)
        brighter = _cells_of(np.minimum(small * np.float32(_BRIGHTER), 255))
        unclipped = _cells_of((small * np.float32(_BRIGHTER) < 254).astype(np.float32))
        texture = _texture(small, cells)
        weight = np.clip(_WEIGHT + _WEIGHT_PER_TEXTURE * texture, _WEIGHT, _WEIGHT_MAX)
        margin = _MARGIN + _MARGIN_FLAT * float((texture < _FLAT).mean())
        # What is seen of the pattern, and how much of each sign is wanted.
        views = (
            (cells, None, margin),
            (brighter, unclipped * np.float32(_BRIGHTER), _MARGIN_BRIGHTER),
        )
        polarity = self._polarity * signs[self._owner].reshape(_GRID, _GRID)
        strength = np.zeros((len(views), pixel_code.SIGNS), np.float32)
        pattern = np.zeros((_GRID, _GRID), np.float32)
        for _ in range(_ROUNDS):
            arriving = _as_it_arrives(pattern)
            amplitude = np.zeros_like(pattern)
            for at, (host, gain, wanted) in enumerate(views):
                seen = host + (arriving if gain is None else gain * arriving)
                residual = _residual(np.clip(seen, 0, 255))
                limits = _limits(residual)
                lacking = wanted - signs * self._correlated(np.clip(residual / limits, -1, 1))
                # Beyond the limit nothing moves.
                slope = (np.abs(residual) < 1.25 * limits).astype(np.float32) / limits
                if gain is not None:
                    slope *= gain
                effect = self._correlated(self._polarity * np.square(slope * weight))
                change = np.where(lacking > 0, 0.8, 0.4) * lacking / (0.6 * effect + 1e-4)
                strength[at] = np.clip(strength[at] + change, 0, 300)
                amplitude += strength[at][self._owner].reshape(_GRID, _GRID) * slope
            pattern = np.minimum(np.maximum(amplitude * weight**2, 0), _AMPLITUDE_MAX * weight)
            pattern *= polarity
            rms = float(np.sqrt((_as_it_arrives(pattern) ** 2).mean()))
            pattern *= np.float32(min(1.0, _RMS_MAX / max(rms, 1e-6)))
        return pattern


def _averaged(pixels: Pixels, side: int) -> Plane:
    """The image averaged down (or up) to side x side x 3, whatever its shape, in little memory."""
    height, width, _ = pixels.shape
    factor = min(height, width) // _REDUCED_MIN
    if factor < 2:
        return np.asarray(
            Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), np.float32
        )
    rows = _STRIP_ROWS * factor
    strips = [
        np.asarray(Image.fromarray(pixels[top : top + rows]).reduce(factor))
        for top in range(0, height, rows)
    ]
    # The last row and column may stand for less than `factor` pixels: the box ends where the image does.
    box = (0, 0, width / factor, height / factor)
    reduced = Image.fromarray(np.concatenate(strips))
    return np.asarray(reduced.resize((side, side), Image.Resampling.BICUBIC, box=box), np.float32)


def _cells_of(small: Plane) -> Plane:
    """Luminance of each cell, from an image of 2G x 2G x 3."""
    return (small @ _LUMA).reshape(_GRID, 2, _GRID, 2).mean(axis=(1, 3))


def _residual(cells: Plane) -> Plane:
    around = _blurred(cells, 1.6)
    padded = np.pad(cells, 1, mode="edge")
    upright = (padded[:-2, 1:-1] + padded[2:, 1:-1]) * np.float32(0.5)
    level = (padded[1:-1, :-2] + padded[1:-1, 2:]) * np.float32(0.5)
    low, high = np.minimum(upright, level), np.maximum(upright, level)
    return cells - np.maximum(low, np.minimum(high, around))


def _limits(residual: Plane) -> Plane:
    """The limit of each cell, from what is usual around it: a bright picture gives what a dim one gives."""
    return np.maximum(_LIMIT, _LIMIT_SHARE * _blurred(np.abs(residual), 6.0))


def _texture(small: Plane, cells: Plane) -> Plane:
    """Grey levels of texture around each cell. Means of roots: one edge in a smooth place is no texture."""
    luma = (small @ _LUMA).reshape(_GRID, 2, _GRID, 2)
    fine = np.sqrt(np.abs(luma - cells[:, None, :, None])).mean(axis=(1, 3))
    coarse = np.sqrt(np.abs(_residual(cells)))
    return np.square(_blurred(coarse, 2.0)) + np.square(_blurred(fine, 2.0))


def _blurred(plane: Plane, sigma: float) -> Plane:
    kernel = _gaussian(sigma)
    return np.asarray(kernel @ plane @ kernel.T, np.float32)


@functools.cache
def _gaussian(sigma: float) -> Plane:
    at = np.arange(_GRID)
    kernel = np.exp(-0.5 * np.square((at[:, None] - at[None, :]) / sigma)).astype(np.float32)
    total: Plane = kernel.sum(axis=1, keepdims=True, dtype=np.float32)
    return kernel / total


def _interpolator(length: int) -> Plane:
    """Cells to `length` pixels: length x G, cubic convolution (Keys, 1981; a = -0.5), rows of sum 1."""
    at = (np.arange(length) + 0.5) * _GRID / length - 0.5
    distance = np.abs(at[:, None] - np.arange(_GRID)[None, :]).astype(np.float32)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(np.float32)
    total: Plane = kernel.sum(axis=1, keepdims=True, dtype=np.float32)
    return kernel / total


@functools.lru_cache(maxsize=8)
def _interpolator_kept(length: int) -> Plane:
    return _interpolator(length)


@functools.cache
def _arriving() -> Plane:
    """What interpolation and averaging leave of a row of cells."""
    return _interpolator(8 * _GRID).reshape(_GRID, 8, _GRID).mean(axis=1)


def _as_it_arrives(pattern: Plane) -> Plane:
    kernel = _arriving()
    return np.asarray(kernel @ pattern @ kernel.T, np.float32)


def _add(pixels: Pixels, pattern: Plane) -> Pixels:
    """The image with the pattern on each of its channels, in whole grey levels, within 0-255."""
    height, width, _ = pixels.shape
    interpolator = _interpolator_kept if max(height, width) <= 2048 else _interpolator
    across = pattern @ interpolator(width).T
    down = interpolator(height)
    out = np.empty_like(pixels)
    for top in range(0, height, _STRIP_ROWS):
        strip = pixels[top : top + _STRIP_ROWS]
        levels = np.rint(down[top : top + _STRIP_ROWS] @ across).astype(np.int8)[:, :, None]
        more = np.maximum(levels, 0).view(np.uint8)
        less = np.maximum(-levels, 0).view(np.uint8)
        lighter = strip + np.minimum(more, 255 - strip)
        np.subtract(lighter, np.minimum(less, lighter), out=out[top : top + _STRIP_ROWS])
    return out
