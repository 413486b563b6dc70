"""The surface that backgrounds are painted on, and what hours and weathers do to it. Knows pixels only."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image, ImageDraw

CELL_PX = 32
Rgb = tuple[int, int, int]
Point = tuple[float, float]

SKIES: dict[str, tuple[Rgb, Rgb]] = {
    "sunset": ((110, 78, 150), (255, 168, 104)),
    "night": ((12, 18, 56), (56, 66, 130)),
    "rain": ((112, 126, 146), (176, 188, 200)),
    "snow": ((158, 178, 204), (222, 231, 241)),
}
TINTS: dict[str, tuple[tuple[float, float, float], Rgb]] = {
    "sunset": ((0.86, 0.66, 0.62), (24, 6, 10)),
    "night": ((0.34, 0.40, 0.58), (4, 8, 26)),
    "rain": ((0.74, 0.78, 0.84), (6, 8, 12)),
    "snow": ((0.50, 0.50, 0.50), (122, 124, 127)),
}
"""What becomes of the ground: every channel times the first, plus the second."""
_DARK_SKY = {
    ("night", "rain"): ((24, 30, 54), (62, 70, 100)),
    ("night", "snow"): ((30, 38, 76), (92, 104, 150)),
}
LIGHT: Rgb = (250, 232, 160)
"""Of lit windows: the night leaves it alone."""
RAINBOW: tuple[Rgb, ...] = (
    (232, 64, 64),
    (246, 150, 60),
    (250, 220, 90),
    (100, 190, 110),
    (80, 140, 230),
    (150, 90, 200),
)


class Canvas:
    """A drawing surface whose coordinates are cells. `hour` and `weather` replace the first sky painted."""

    def __init__(
        self, rows: int, columns: int, rng: np.random.Generator, px: int,
        hour: str = "day", weather: str = "fair", pattern: int = 0, without: str = "",
    ) -> None:  # fmt: skip
        """`px`: pixels a cell. `pattern` decides where stars, drops and flakes are, whatever the place.

        `without`: which of "sun", "moon" and "cloud" are left out, one space between.
        """
        self.h, self.w, self.rng = float(rows), float(columns), rng
        self._pattern = (pattern, rows, columns)
        self.hour, self.weather, self._without = hour, weather, without
        self._scale = px
        self.image = Image.new("RGB", (columns * px, rows * px))
        self._draw = ImageDraw.Draw(self.image)
        self._sky: Image.Image | None = None

    def open_sky(self, top: Rgb, bottom: Rgb, clouds: float = 0.0) -> None:
        """The sky of a place in the open: by day these two colours and clouds, else the hour's or the weather's."""
        key = self.weather if self.weather in SKIES else self.hour
        colours = _DARK_SKY.get((self.hour, self.weather)) or SKIES.get(key, (top, bottom))
        self.gradient(*colours)
        spots = self.spread(self.many(clouds), 0.5, self.h * 0.3) if clouds else []
        sizes = [float(self.rng.uniform(0.6, 1.0)) for _ in spots]
        if self.weather in ("rain", "snow"):
            r, g, b = (round(0.8 * c) for c in colours[0])
            tone = (r, g, b) if self.weather == "rain" else (238, 242, 248)
            for x in np.arange(0.7, self.w, 1.9):
                self.cloud(float(x), 0.5 + 0.25 * float(np.sin(3 * x)), 1.0, tone)
        elif self.hour == "night":
            self._stars()
        else:
            tone = (255, 205, 170) if self.hour == "sunset" else (255, 255, 255)
            for (x, y), size in zip(spots, sizes, strict=True):
                self.cloud(x, y, size, tone)
            if self.hour == "sunset" and "sun" not in self._without:
                x = self.w * (0.28, 0.72)[self._pattern[0] % 2]
                self.ellipse(x, self.h * 0.36, 0.85, 0.85, (255, 226, 128))
        if self.weather == "rainbow":
            for i, tone in enumerate(RAINBOW):
                less = 0.17 * i
                self.arc(
                    self.w / 2, self.h * 0.52, self.w * 0.46 - less, self.h * 0.4 - less, 0.19, tone
                )
        self._sky = self.image.copy()

    def sun(self, x: float, y: float, r: float, fill: Rgb) -> None:
        """A sun, by day and in fair weather."""
        if (
            self.hour == "day"
            and self.weather in ("fair", "rainbow")
            and "sun" not in self._without
        ):
            self.ellipse(x, y, r, r, fill)
            if self._sky is not None:
                self._sky = self.image.copy()

    def _strewn(self, kind: str, per_cell: float, y0: float, y1: float) -> list[Point]:
        """Points that are the same over every place."""
        rng = np.random.default_rng([zlib.crc32(kind.encode()), *self._pattern])
        n = self.many(per_cell)
        xs, ys = (np.arange(n) + rng.uniform(0.2, 0.8, n)) * self.w / n, rng.uniform(y0, y1, n)
        return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]

    def _stars(self) -> None:
        for i, (x, y) in enumerate(self._strewn("night", 2.4, 0.15, self.h * 0.6)):
            r = 0.035 + 0.012 * (i % 4)
            self.ellipse(x, y, r, r, (255, 250, 210))
        top = SKIES["night"][0]
        shadow = (top[0] + 8, top[1] + 9, top[2] + 12)
        self.moon(
            self.w * (0.18, 0.82)[self._pattern[0] % 2], 1.0, 0.55, (0.26, 0.88, 0.47), shadow
        )

    def moon(
        self, x: float, y: float, r: float, bite: tuple[float, float, float], shadow: Rgb
    ) -> None:
        """A crescent. `bite`: how far to the right its shadow is, how far down the canvas, and how large."""
        if "moon" not in self._without:
            self.ellipse(x, y, r, r, (252, 240, 190))
            self.ellipse(x + bite[0], bite[1], bite[2], bite[2], shadow)

    def weathered(self, behind_glass: bool = False) -> Image.Image:
        """The picture under its hour and weather: the ground tinted, rain or flakes before all of it.

        `behind_glass`: they fall only where the sky is seen.
        """
        if self._sky is None or (self.hour == "day" and self.weather == "fair"):
            return self.image
        pixels = np.asarray(self.image)
        is_ground = (pixels != np.asarray(self._sky)).any(axis=2)
        if self.hour == "night":
            is_ground &= (pixels != LIGHT).any(axis=2)
        for key in (self.hour, self.weather):
            if key in TINTS:
                times, plus = TINTS[key]
                share = 0.5 if behind_glass else 1.0
                tinted = pixels * np.array(times, np.float32) + np.array(plus, np.float32)
                mixed = pixels + share * (tinted - pixels)
                pixels = np.where(is_ground[..., None], np.clip(mixed, 0, 255), pixels).astype(
                    np.uint8
                )
        before = Image.fromarray(np.ascontiguousarray(pixels))
        self.image = before.copy()
        self._draw = ImageDraw.Draw(self.image)
        if self.weather == "rain":
            for x, y in self._strewn("rain", 4.0, 0.8, self.h - 0.3):
                self.polygon(
                    [(x, y), (x + 0.07, y), (x - 0.08, y + 0.5), (x - 0.15, y + 0.5)],
                    (206, 226, 244),
                )
        elif self.weather == "snow":
            for x, y in self._strewn("snow", 5.0, 0.2, self.h - 0.2):
                self.ellipse(x, y, 0.075, 0.075, (255, 255, 255))
        if behind_glass:
            self.image.paste(before, mask=Image.fromarray((is_ground * 255).astype(np.uint8)))
        return self.image

    def arc(self, x: float, y: float, rx: float, ry: float, width: float, fill: Rgb) -> None:
        """The upper half of an ellipse's line."""
        angles = np.linspace(np.pi, 2 * np.pi, 64)
        outer = [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]
        inner = [
            (x + (rx - width) * float(np.cos(a)), y + (ry - width) * float(np.sin(a)))
            for a in angles
        ]
        self.polygon([*outer, *inner[::-1]], fill)

    def _px(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self._scale, y * self._scale) for x, y in points]

    def gradient(self, top: Rgb, bottom: Rgb, y0: float = 0.0, y1: float | None = None) -> None:
        """Fill the band y0..y1 with a vertical gradient."""
        start = round(y0 * self._scale)
        end = self.image.height if y1 is None else round(y1 * self._scale)
        mix = np.linspace(0, 1, max(end - start, 1))[:, None]
        column = np.round(np.array(top) * (1 - mix) + np.array(bottom) * mix).astype(np.uint8)
        band = np.broadcast_to(column[:, None, :], (len(column), self.image.width, 3))
        self.image.paste(Image.fromarray(np.ascontiguousarray(band)), (0, start))

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        self._draw.rectangle(self._px([(x0, y0), (x1, y1)]), fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Rgb) -> None:
        self._draw.ellipse(self._px([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Rgb) -> None:
        self._draw.polygon(self._px(points), fill=fill)

    def wave(self, y: float, height: float, length: float, fill: Rgb, phase: float = 0.0) -> None:
        """Fill everything below a sine wave."""
        xs = np.linspace(0, self.w, 48)
        top = y + height * np.sin(xs / length * 2 * np.pi + phase)
        points = [(float(x), float(v)) for x, v in zip(xs, top, strict=True)]
        self.polygon([*points, (self.w, self.h), (0, self.h)], fill)

    def cloud(self, x: float, y: float, size: float, fill: Rgb = (255, 255, 255)) -> None:
        if "cloud" in self._without:
            return
        for dx, dy, r in (
            (-0.9, 0.1, 0.45),
            (-0.3, -0.2, 0.62),
            (0.4, -0.05, 0.52),
            (0.95, 0.15, 0.36),
        ):
            self.ellipse(x + dx * size, y + dy * size, r * size, r * size * 0.8, fill)

    def spread(self, n: int, y0: float, y1: float) -> list[tuple[float, float]]:
        """n points, one in each of n equal columns, at random heights in y0..y1."""
        xs = (np.arange(n) + self.rng.uniform(0.2, 0.8, n)) * self.w / n
        return [(float(x), float(y)) for x, y in zip(xs, self.rng.uniform(y0, y1, n), strict=True)]

    def many(self, per_cell: float) -> int:
        return max(2, round(per_cell * self.w))
