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
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from danqing.domain.task import Pixels
from danqing.service import pixel_code

SIDE_MIN = 192
"""A shorter side under this holds no mark: the grid would be finer than the pixels."""
ID_BITS, CHECK_BITS = 44, 20
CORRELATION_MIN = 0.6
"""Between the soft values and the signs decoded of them; the check decides alone above it."""

Plane = npt.NDArray[np.float32]
"""One value a cell: GRID x GRID."""

GRID = 192
"""Cells along either side of a picture."""
_CELLS = GRID * GRID // pixel_code.SIGNS  # per sign
_LUMA = (np.float32(0.299), np.float32(0.587), np.float32(0.114))
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
_REDUCED_MIN = 2 * GRID  # larger images are averaged down to this at least, strip by strip
_BLOCK = 16  # rows that a filter makes at once


@dataclass(frozen=True, slots=True)
class Found:
    """A mark that was read: the image's id (11 hex digits) and how well the signs agree, 0-1."""

    image_id: str
    correlation: float


class PixelMarker:
    """Writes and reads marks under one key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        count = GRID * GRID
        stream = hashlib.shake_256(b"danqing pixel mark 1" + secret).digest(9 * count)
        order = np.argsort(np.frombuffer(stream[: 8 * count], "<u8"), kind="stable")
        self._cells = order.reshape(pixel_code.SIGNS, _CELLS)
        self._owner = np.empty(count, np.intp)
        self._owner[order] = np.repeat(np.arange(pixel_code.SIGNS), _CELLS)
        polarity = np.frombuffer(stream[8 * count :], np.uint8) & 1
        self._polarity = (1 - 2.0 * polarity).astype(np.float32).reshape(GRID, GRID)

    def mark(self, pixels: Pixels, image_id: str) -> Pixels:
        """A copy of the H x W x 3 uint8 image that carries the id (11 hex digits); at least 40 dB from it.

        An image with a side under SIDE_MIN comes back as it is. CPU-bound.
        """
        if min(pixels.shape[:2]) < SIDE_MIN:
            return pixels
        signs = pixel_code.encode(self._payload(image_id))
        return _add(pixels, self._pattern(_averaged(pixels), signs))

    def find(self, pixels: Pixels) -> Found | None:
        """The mark of a H x W x 3 uint8 image, or None.

        An image without one passes the check once in 2^20 = 1,048,576, and only if the signs agree besides.
        """
        return self.read(cell_values(_cells_of(_averaged(pixels))), CORRELATION_MIN)

    def read(self, values: Plane, correlation_min: float) -> Found | None:
        """What the cells' values say (0: nothing is known of a cell), where the signs agree as well as this."""
        sums = self._correlated(values)
        bits = pixel_code.decode(sums)
        norm = float(np.sqrt((sums * sums).sum() * pixel_code.SIGNS))
        agreement = float((sums * pixel_code.encode(bits)).sum())
        correlation = agreement / norm if norm else 0.0
        number = int("".join("1" if bit else "0" for bit in bits), 2)
        image_id = f"{number >> CHECK_BITS:011x}"
        ours = (bits == self._payload(image_id)).all()
        return Found(image_id, correlation) if ours and correlation >= correlation_min else None

    def patterns(self, count: int) -> Plane:
        """The first signs' cells: their polarity there, 0 elsewhere. count x GRID x GRID."""
        owner = self._owner.reshape(GRID, GRID)
        return (owner == np.arange(count)[:, None, None]) * self._polarity

    def energy(self, values: Plane) -> float:
        """How much of the cells' values is in the signs: pictures without a mark come to the number of signs per cell."""
        return float(np.square(self._correlated(values)).sum() / max(np.square(values).sum(), 1e-6))

    def _payload(self, image_id: str) -> pixel_code.Bits:
        """The id's 44 bits and 20 of its HMAC, the most significant first."""
        digest = hmac.digest(
            self._secret, b"danqing pixel mark 1 check " + image_id.encode(), "sha256"
        )
        check = int.from_bytes(digest[:4], "big") >> (32 - CHECK_BITS)
        number = int(image_id, 16) << CHECK_BITS | check
        return np.array([number >> at & 1 for at in range(pixel_code.BITS - 1, -1, -1)], np.bool_)

    def _correlated(self, planes: Plane) -> pixel_code.Floats:
        """Each sign's cells, summed in their polarity; a strong texture's come out with variance 1."""
        flat = (planes * self._polarity).reshape(*planes.shape[:-2], -1)
        return flat.take(self._cells, axis=-1).sum(axis=-1) / np.float32(np.sqrt(_CELLS))

    def _spread(self, values: pixel_code.Floats) -> Plane:
        """Each sign's value in all of its cells."""
        return values.take(self._owner, axis=-1).reshape(*values.shape[:-1], GRID, GRID)

    def _pattern(self, small: Plane, signs: pixel_code.Floats) -> Plane:
        """What to add to each cell, from the image at twice the grid's resolution (3 x 2G x 2G)."""
        bright = small * np.float32(_BRIGHTER)
        cells = _cells_of(small)
        unclipped = _cells_of((bright < 254).astype(np.float32))
        texture = _texture(small, cells)
        weight = np.clip(_WEIGHT + _WEIGHT_PER_TEXTURE * texture, _WEIGHT, _WEIGHT_MAX)
        margin = _MARGIN + _MARGIN_FLAT * float((texture < _FLAT).mean())
        # Two views, as it is and brighter: the picture in them, what is seen of the pattern, how much of each sign is wanted.
        host = np.stack((cells, _cells_of(np.minimum(bright, 255))))
        gain = np.stack((np.ones_like(cells), unclipped * np.float32(_BRIGHTER)))
        wanted = np.array([[margin], [_MARGIN_BRIGHTER]], np.float32)
        polarity = self._polarity * self._spread(signs)
        limits = _limits(_residual(host))
        most, square = _AMPLITUDE_MAX * weight, np.square(weight)
        strength = np.zeros((2, pixel_code.SIGNS), np.float32)
        pattern = arriving = np.zeros_like(cells)
        for _ in range(_ROUNDS):
            seen = np.clip(host + gain * arriving, 0, 255).astype(np.float32, copy=False)
            residual = _residual(seen)
            lacking = wanted - signs * self._correlated(np.clip(residual / limits, -1, 1))
            # Beyond the limit nothing moves.
            slope = gain * (np.abs(residual) < 1.25 * limits) / limits
            effect = self._correlated(self._polarity * (np.square(slope) * square))
            change = np.where(lacking > 0, 0.8, 0.4) * lacking / (0.6 * effect + 1e-4)
            strength = np.clip(strength + change, 0, 300).astype(np.float32)
            amplitude = (self._spread(strength) * slope).sum(axis=0) * square
            pattern = np.clip(amplitude, 0, most) * polarity
            arriving = _as_it_arrives(pattern)
            rms = float(np.sqrt(np.square(arriving).mean()))
            scale = np.float32(min(1.0, _RMS_MAX / max(rms, 1e-6)))
            pattern *= scale
            arriving *= scale
        return pattern


def _averaged(pixels: Pixels) -> Plane:
    """The image averaged down (or up) to 3 x 2G x 2G, whatever its shape, in little memory."""
    height, width, _ = pixels.shape
    factor = max(1, min(height, width) // _REDUCED_MIN)
    rows = _STRIP_ROWS * factor
    strips = [
        np.asarray(Image.fromarray(pixels[top : top + rows]).reduce(factor))
        for top in range(0, height, rows)
    ]
    # The last row and column may stand for less than `factor` pixels: the box ends where the image does.
    box = (0, 0, width / factor, height / factor)
    reduced = Image.fromarray(np.concatenate(strips))
    small = reduced.resize((2 * GRID, 2 * GRID), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small).transpose(2, 0, 1).astype(np.float32, order="C")


def _luminance(small: Plane) -> Plane:
    """Of three channels. No matrix product: a BLAS would wake a thread on every core for it."""
    return small[0] * _LUMA[0] + small[1] * _LUMA[1] + small[2] * _LUMA[2]


def _pooled(fine: Plane) -> Plane:
    """The mean of each cell's four parts, of 2G x 2G."""
    rows = fine[::2] + fine[1::2]
    return (0.25 * (rows[:, ::2] + rows[:, 1::2])).astype(np.float32, copy=False)


def _cells_of(small: Plane) -> Plane:
    """Luminance of each cell, from an image of 3 x 2G x 2G."""
    return _pooled(_luminance(small))


def _residual(cells: Plane) -> Plane:
    around = _filtered(cells, _gaussian(1.6))
    padded = np.empty((*cells.shape[:-2], GRID + 2, GRID + 2), np.float32)
    padded[..., 1:-1, 1:-1] = cells
    padded[..., 0, :], padded[..., -1, :] = padded[..., 1, :], padded[..., -2, :]
    padded[..., 0], padded[..., -1] = padded[..., 1], padded[..., -2]
    upright = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    level = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    low, high = np.minimum(upright, level), np.maximum(upright, level)
    half = np.float32(0.5)
    return cells - np.maximum(low * half, np.minimum(high * half, around))


def cell_values(cells: Plane) -> Plane:
    """What a cell differs from its neighbourhood by, as a share of its limit: -1 to 1."""
    residual = _residual(cells)
    return np.clip(residual / _limits(residual), -1, 1)


def _limits(residual: Plane) -> Plane:
    """The limit of each cell, from what is usual around it: a bright picture gives what a dim one gives."""
    return np.maximum(_LIMIT, _LIMIT_SHARE * _filtered(np.abs(residual), _gaussian(6.0)))


def _texture(small: Plane, cells: Plane) -> Plane:
    """Grey levels of texture around each cell. Means of roots: one edge in a smooth place is no texture."""
    luminance = _luminance(small).reshape(GRID, 2, GRID, 2)
    fine = np.sqrt(np.abs(luminance - cells[:, None, :, None])).reshape(2 * GRID, 2 * GRID)
    coarse = np.sqrt(np.abs(_residual(cells)))
    roots = _filtered(np.stack((coarse, _pooled(fine))), _gaussian(2.0))
    return np.square(roots).sum(axis=0)


@dataclass(frozen=True, slots=True)
class _Filter:
    """A linear filter of a row of cells, the same for columns: a banded matrix of G x G, in blocks of its rows.

    The blocks are so small that a BLAS multiplies them in the thread that asks.
    """

    blocks: Plane
    """G / _BLOCK x _BLOCK x (_BLOCK + 2 reach)."""
    reach: int
    """Cells to either side that count."""


def _blocked(kernel: Plane, reach: int) -> _Filter:
    wide = np.pad(kernel, ((0, 0), (reach, reach)))
    blocks = [wide[at : at + _BLOCK, at : at + _BLOCK + 2 * reach] for at in range(0, GRID, _BLOCK)]
    return _Filter(np.stack(blocks), reach)


def _filtered(planes: Plane, by: _Filter) -> Plane:
    """Each of the planes (... x G x G), filtered along its columns and its rows."""
    for _ in range(2):  # each time along the columns, then turned
        wide = np.zeros((*planes.shape[:-2], GRID + 2 * by.reach, GRID), np.float32)
        wide[..., by.reach : by.reach + GRID, :] = planes
        windows = sliding_window_view(wide, _BLOCK + 2 * by.reach, axis=-2)[..., ::_BLOCK, :, :]
        made = by.blocks @ windows.swapaxes(-1, -2)
        planes = made.reshape(planes.shape).swapaxes(-1, -2)
    return np.ascontiguousarray(planes)


@functools.cache
def _gaussian(sigma: float) -> _Filter:
    at = np.arange(GRID)
    distance = np.abs(at[:, None] - at[None, :])
    reach = round(4 * sigma)
    kernel = np.exp(-0.5 * np.square(distance / sigma)) * (distance <= reach)
    return _blocked((kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32), reach)


@functools.cache
def _arrival() -> _Filter:
    """What interpolation (cubic convolution: Keys, 1981; a = -0.5) and averaging leave of a row of cells."""
    alone = Image.fromarray(np.eye(GRID, dtype=np.float32))
    wide = alone.resize((GRID, 8 * GRID), Image.Resampling.BICUBIC)
    return _blocked(np.asarray(wide).reshape(GRID, 8, GRID).mean(axis=1), 2)


def _as_it_arrives(pattern: Plane) -> Plane:
    return _filtered(pattern, _arrival())


def _add(pixels: Pixels, pattern: Plane) -> Pixels:
    """The image with the pattern on each of its channels, in whole grey levels, within 0-255."""
    height, width, _ = pixels.shape
    cells = Image.fromarray(pattern)
    out = np.empty_like(pixels)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        box = (0, top * GRID / height, GRID, bottom * GRID / height)
        wide = cells.resize((width, bottom - top), Image.Resampling.BICUBIC, box=box)
        levels = np.rint(np.asarray(wide)).astype(np.int8)
        more = np.repeat(np.maximum(levels, 0).view(np.uint8)[:, :, None], 3, axis=2)
        less = np.repeat(np.maximum(-levels, 0).view(np.uint8)[:, :, None], 3, axis=2)
        strip, into = pixels[top:bottom], out[top:bottom]
        np.subtract(255, strip, out=into)
        np.minimum(more, into, out=more)
        np.add(strip, more, out=more)
        np.minimum(less, more, out=less)
        np.subtract(more, less, out=into)
    return out
