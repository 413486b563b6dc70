"""Reads the pixel mark of a picture that was cut to a part of itself, by finding what part it is. Knows pixels and sizes; asks no key.

The grid is the whole picture's, so its place is what is missing. Where the whole had a size that somebody may have asked for,
only two numbers are: down and across. What each sign is worth is not known either, so the place sought is where the signs'
sums, squared, come to most: an energy detector (Urkowitz, 1967) at all places at once, by the correlation theorem.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.sizes import Size
from danqing.domain.task import Pixels
from danqing.service.pixel_mark import GRID, SIDE_MIN, Found, PixelMarker, Plane, cell_values

LISTED_MAX, STRIPS_MAX = 16, 16
"""Sizes that are tried for one picture, of those that models name and of all others: a bound on the time."""
AREA_MIN = 0.3
"""What must be left of a whole picture whose size a model names."""
MULTIPLE_PX = 16
"""Of which the sides of other sizes are multiples; there only one side may have been cut."""
STRIP_MAX = 0.14
"""What of that side may have been cut off: more than a visible label needs."""
CORRELATION_MIN = 0.68
"""Stricter than for a whole picture, since each size is one more try: of what carries no mark under 1 in 10,000 agrees so well."""

ENERGY_MIN = 0.5
"""Of the signs that are looked at, by the square of a cell's value; a third is what chance has on average."""

_SIGNS = 64  # of 192: a third is enough to find the place
_AT_ONCE = 16
_PARTS = 4  # of a cell's side, to which places are told apart


class CutReader:
    """Reads marks of cut pictures. Its calls may come from any thread."""

    def __init__(self, marker: PixelMarker, sizes: Iterable[Size]) -> None:
        """`sizes`: what whole pictures may have had, those that models name."""
        self._marker = marker
        self._sizes = sorted({size for size in sizes if min(size) >= SIDE_MIN})

    def find(self, pixels: Pixels) -> Found | None:
        """The mark of a H x W x 3 uint8 picture that was cut and not resized, or None. CPU-bound."""
        height, width, _ = pixels.shape
        # Once for all sizes: a large picture has more than the grid takes.
        factor = max(1, min(height, width) // (GRID * _PARTS))
        grey = Image.fromarray(pixels).reduce(factor).convert("L")
        for size in self._likely(width, height):
            place = self._placed(_Cut(grey, width / factor, height / factor, size, factor))
            found = None if place is None else self._marker.read(place, CORRELATION_MIN)
            if found is not None:
                return found
        return None

    def _likely(self, width: int, height: int) -> list[Size]:
        """Sizes of the whole picture, the nearest first."""
        area = width * height
        listed = [
            size
            for size in self._sizes
            if size.width >= width
            and size.height >= height
            and area < size.pixels <= area / AREA_MIN
        ]
        strips = [Size(width, longer) for longer in _longer(height) if width % MULTIPLE_PX == 0]
        strips += [Size(longer, height) for longer in _longer(width) if height % MULTIPLE_PX == 0]
        strips = [size for size in strips if min(size) >= SIDE_MIN and size not in listed]
        listed.sort(key=lambda size: size.pixels)
        strips.sort(key=lambda size: size.pixels)
        tried = listed[:LISTED_MAX] + strips[:STRIPS_MAX]
        return sorted(tried, key=lambda size: size.pixels)

    def _placed(self, cut: _Cut) -> Plane | None:
        """The cut's cells where they most likely belong; None where no place is any better than chance has them."""
        half = range(0, _PARTS, 2)
        begin = [(down, across) for down in half for across in half if cut.fits(down, across)]
        energy, down, across = max(self._most(cut, *place) for place in begin)
        if energy < ENERGY_MIN:
            return None
        best = cut.placed(down, across)
        energy = self._marker.energy(best)
        for axis in (0, 1):  # and to the fraction of a cell
            here = down, across
            for step in (-1, 1):
                at = (here[0] + step, here[1]) if axis == 0 else (here[0], here[1] + step)
                if cut.fits(*at):
                    values = cut.placed(*at)
                    other = self._marker.energy(values)
                    if other > energy:
                        best, energy, (down, across) = values, other, at
        return best

    def _most(self, cut: _Cut, down: int, across: int) -> tuple[float, int, int]:
        """The best place among those that differ from this by whole cells: its energy, and how far down and across, in parts."""
        values = cut.placed(down, across)
        spectrum = np.fft.rfft2(values).conj()
        rows, columns = cut.room(down, across)
        energy = np.zeros((rows, columns), np.float32)
        for at in range(0, _SIGNS, _AT_ONCE):
            upright = np.fft.ifft(self._spectra[at : at + _AT_ONCE] * spectrum, axis=1)[:, :rows]
            sums = np.fft.irfft(upright, n=GRID, axis=2)[:, :, :columns]
            energy += np.square(sums).sum(axis=0)
        row, column = divmod(int(energy.argmax()), columns)
        most = float(energy[row, column]) / max(float(np.square(values).sum()), 1e-6)
        return most, down + row * _PARTS, across + column * _PARTS

    @functools.cached_property
    def _spectra(self) -> npt.NDArray[np.complex64]:
        return np.fft.rfft2(self._marker.patterns(_SIGNS)).astype(np.complex64, copy=False)


def _longer(side: int) -> range:
    """What a side may have been before a strip was cut off."""
    least = side - side % MULTIPLE_PX + MULTIPLE_PX
    return range(least, int(side / (1 - STRIP_MAX)) + 1, MULTIPLE_PX)


class _Cut:
    """A picture that was cut out of one of `size`, at the grid's scale. Places are in parts of cells: how far down, how far across."""

    def __init__(
        self, grey: Image.Image, width: float, height: float, size: Size, factor: int
    ) -> None:
        """`grey` is `factor` times smaller than the picture; `width` and `height` are how much of it the picture fills."""
        across, down = (GRID * _PARTS * factor / side for side in size)
        self._wide, self._tall = int(width * across), int(height * down)
        box = (0, 0, self._wide / across, self._tall / down)
        small = grey.resize((self._wide, self._tall), Image.Resampling.BICUBIC, box=box)
        self._fine = np.asarray(small, np.float32)

    def fits(self, down: int, across: int) -> bool:
        """Whether the picture is within the grid there."""
        most = GRID * _PARTS
        return 0 <= down <= most - self._tall and 0 <= across <= most - self._wide

    def room(self, down: int, across: int) -> tuple[int, int]:
        """How many places there are from this one on, each a cell further."""
        most = GRID * _PARTS
        return (
            1 + (most - self._tall - down) // _PARTS,
            1 + (most - self._wide - across) // _PARTS,
        )

    def placed(self, down: int, across: int) -> Plane:
        """The values of all cells, 0 where the picture is not."""
        top, left = math.ceil(down / _PARTS), math.ceil(across / _PARTS)
        # Cells that it has but a part of count as not there.
        fine = self._fine[top * _PARTS - down :, left * _PARTS - across :]
        rows, columns = fine.shape[0] // _PARTS, fine.shape[1] // _PARTS
        parts = fine[: rows * _PARTS, : columns * _PARTS].reshape(rows, _PARTS, columns, _PARTS)
        around = (top, GRID - top - rows), (left, GRID - left - columns)
        values = cell_values(np.pad(parts.mean(axis=(1, 3)), around, mode="edge"))
        out = np.zeros((GRID, GRID), np.float32)
        there = slice(top, top + rows), slice(left, left + columns)
        out[there] = values[there]
        return out
