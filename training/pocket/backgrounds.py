"""Flat procedural backgrounds, one painter per scene. Knows pixels only: no objects, no words."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from training.pocket import places
from training.pocket.canvas import CELL_PX, LIGHT, Canvas

from danqing.engine.families import pocket_layout as layout

SUPERSAMPLE = 2
Rgb = tuple[int, int, int]

PASTELS: tuple[Rgb, ...] = (
    (255, 255, 255), (252, 228, 214), (255, 243, 205), (220, 240, 215), (212, 236, 250),
    (226, 220, 246), (252, 220, 232), (240, 240, 236), (190, 224, 220), (250, 205, 190),
    (205, 215, 235), (235, 245, 225), (255, 232, 180), (200, 230, 250), (238, 214, 240),
    (245, 245, 250),
)  # fmt: skip


def _plain(c: Canvas) -> None:
    tone = PASTELS[int(c.rng.integers(len(PASTELS)))]
    c.rect(0, 0, c.w, c.h, tone)


def _day(c: Canvas, clouds: float = 0.3) -> None:
    c.open_sky((96, 178, 240), (205, 235, 252), clouds)


def _meadow(c: Canvas) -> None:
    _day(c)
    phase = float(c.rng.uniform(0, 6))
    c.wave(c.h * 0.58, 0.3, c.w * 0.9, (150, 205, 105), phase)
    c.wave(c.h * 0.68, 0.2, c.w * 1.3, (112, 182, 76), phase + 2)
    petals = ((250, 230, 90), (255, 255, 255), (245, 150, 180))
    for i, (x, y) in enumerate(c.spread(c.many(1.2), c.h * 0.75, c.h - 0.2)):
        c.ellipse(x, y, 0.11, 0.11, petals[i % 3])


def _beach(c: Canvas) -> None:
    _day(c, 0.2)
    c.rect(0, c.h * 0.45, c.w, c.h, (38, 150, 205))
    c.wave(c.h * 0.62, 0.12, 3.0, (230, 248, 250), float(c.rng.uniform(0, 6)))
    c.wave(c.h * 0.66, 0.12, 3.2, (246, 221, 160), float(c.rng.uniform(0, 6)))
    sun = c.w * (0.15 if c.rng.random() < 0.5 else 0.85)
    c.sun(sun, c.h * 0.14, 0.6, (255, 226, 90))


def _sea(c: Canvas) -> None:
    _day(c, 0.25)
    for i, tone in enumerate(((60, 160, 215), (36, 132, 196), (22, 104, 170), (14, 84, 148))):
        c.wave(c.h * (0.5 + 0.13 * i), 0.14, 2.2, tone, float(c.rng.uniform(0, 6)))


def _underwater(c: Canvas) -> None:
    c.gradient((70, 185, 215), (10, 60, 125))
    c.wave(c.h - 0.9, 0.15, c.w * 0.7, (214, 190, 130), float(c.rng.uniform(0, 6)))
    for x, _ in c.spread(c.many(0.5), 0, 1):
        c.polygon([(x - 0.2, c.h - 0.6), (x, c.h - 2.2), (x + 0.2, c.h - 0.6)], (40, 140, 95))
    for x, y in c.spread(c.many(1.0), 0.4, c.h * 0.8):
        r = float(c.rng.uniform(0.07, 0.18))
        c.ellipse(x, y, r, r, (165, 225, 240))


def _night(c: Canvas) -> None:
    c.gradient((14, 20, 58), (58, 62, 128))
    for x, y in c.spread(c.many(3.0), 0.1, c.h * 0.75):
        r = float(c.rng.uniform(0.03, 0.08))
        c.ellipse(x, y, r, r, (255, 250, 210))
    x = c.w * (0.16 if c.rng.random() < 0.5 else 0.84)
    c.moon(x, 1.1, 0.65, (0.3, 0.95, 0.55), (24, 30, 72))
    c.wave(c.h * 0.82, 0.2, c.w, (26, 34, 66), float(c.rng.uniform(0, 6)))


def _snow(c: Canvas) -> None:
    c.gradient((150, 185, 215), (222, 234, 244))
    c.wave(c.h * 0.66, 0.25, c.w * 0.9, (236, 243, 250), float(c.rng.uniform(0, 6)))
    c.wave(c.h * 0.76, 0.15, c.w * 1.2, (252, 254, 255), float(c.rng.uniform(0, 6)))
    for x, y in c.spread(c.many(4.0), 0.1, c.h - 0.1):
        c.ellipse(x, y, 0.07, 0.07, (255, 255, 255))


def _city(c: Canvas) -> None:
    c.open_sky((142, 200, 240), (235, 236, 232))
    x = 0.0
    while x < c.w:
        width, top = float(c.rng.choice([1.0, 1.5])), float(c.rng.choice([0.2, 0.3, 0.4]) * c.h)
        tone = ((120, 134, 160), (150, 160, 180), (100, 112, 140))[int(c.rng.integers(3))]
        c.rect(x, top, x + width - 0.06, c.h, tone)
        for wy in np.arange(top + 0.25, c.h * 0.7, 0.5):
            for wx in np.arange(x + 0.2, x + width - 0.25, 0.4):
                c.rect(wx, wy, wx + 0.2, wy + 0.26, LIGHT)
        x += width
    c.rect(0, c.h * 0.78, c.w, c.h, (88, 90, 98))
    for dash in np.arange(0.2, c.w, 1.4):
        c.rect(dash, c.h * 0.9 - 0.06, dash + 0.8, c.h * 0.9 + 0.06, (240, 240, 240))


def _room(c: Canvas) -> None:
    walls = ((250, 226, 196), (222, 232, 220), (228, 222, 240), (250, 214, 206))
    c.rect(0, 0, c.w, c.h, walls[int(c.rng.integers(4))])
    c.rect(0, c.h * 0.7, c.w, c.h, (186, 130, 84))
    c.rect(0, c.h * 0.7 - 0.15, c.w, c.h * 0.7, (250, 246, 240))
    for y in np.arange(c.h * 0.7 + 0.6, c.h, 0.6):
        c.rect(0, y, c.w, y + 0.05, (160, 108, 66))
    x = c.w * (0.2 if c.rng.random() < 0.5 else 0.8)
    c.rect(x - 0.9, 0.6, x + 0.9, 2.2, (120, 82, 52))
    c.rect(x - 0.75, 0.75, x + 0.75, 2.05, (160, 212, 240))
    c.ellipse(c.w / 2, c.h * 0.88, c.w * 0.34, 0.55, (214, 92, 84))


def _windowsill(c: Canvas) -> None:
    _day(c, 0.35)
    frame, side = (250, 246, 238), float(c.w * 0.07)
    sun = c.w * (0.2 if c.rng.random() < 0.5 else 0.8)
    c.sun(sun, 1.3, 0.6, (255, 224, 84))
    sill = c.h * 0.82
    c.rect(0, 0, c.w, 0.35, frame)
    c.rect(0, 0, side, c.h, frame)
    c.rect(c.w - side, 0, c.w, c.h, frame)
    c.rect(c.w / 2 - 0.1, 0, c.w / 2 + 0.1, sill, frame)
    curtain = ((244, 150, 130), (246, 200, 120), (150, 190, 220))[int(c.rng.integers(3))]
    for left in (True, False):
        a, b, d = (0.0, 1.1, 0.5) if left else (c.w, c.w - 1.1, c.w - 0.5)
        c.polygon([(a, 0), (b, 0), (d, sill * 0.7), (a, sill)], curtain)
    c.rect(0, sill, c.w, c.h, (222, 180, 132))
    c.rect(0, sill, c.w, sill + 0.18, (244, 212, 166))


def _forest(c: Canvas) -> None:
    c.open_sky((176, 218, 190), (120, 180, 130))
    for tone, y, size in (((88, 150, 100), 0.62, 1.3), ((50, 116, 72), 0.75, 1.7)):
        for x, _ in c.spread(c.many(0.7), 0, 1):
            base = c.h * y
            c.rect(x - 0.14, base - 0.2, x + 0.14, base + 0.6, (110, 78, 50))
            for k in range(3):
                top = base - size * (0.5 + 0.55 * k)
                half = size * (0.62 - 0.14 * k)
                c.polygon([(x - half, top + size * 0.6), (x, top - size * 0.35),
                           (x + half, top + size * 0.6)], tone)  # fmt: skip
    c.wave(c.h * 0.8, 0.12, c.w * 0.8, (92, 140, 66), float(c.rng.uniform(0, 6)))


def _desert(c: Canvas) -> None:
    c.open_sky((250, 200, 130), (255, 236, 190))
    c.sun(c.w * (0.2 if c.rng.random() < 0.5 else 0.8), 1.3, 0.7, (255, 250, 215))
    for i, tone in enumerate(((236, 180, 104), (222, 158, 82), (204, 136, 64))):
        c.wave(c.h * (0.55 + 0.14 * i), 0.35, c.w * 0.9, tone, float(c.rng.uniform(0, 6)))


def _mountains(c: Canvas) -> None:
    _day(c, 0.25)
    for x, y in c.spread(c.many(0.4), c.h * 0.16, c.h * 0.32):
        half, base = 2.6, c.h * 0.75
        slope = (base - y) / half
        c.polygon([(x - half, base), (x, y), (x + half, base)], (110, 128, 156))
        c.polygon([(x - 0.75 / slope * 1.2, y + 0.9), (x, y), (x + 0.75 / slope * 1.2, y + 0.9)],
                  (250, 252, 255))  # fmt: skip
    c.wave(c.h * 0.72, 0.2, c.w * 0.8, (96, 158, 96), float(c.rng.uniform(0, 6)))


def _sunset(c: Canvas) -> None:
    c.gradient((92, 62, 132), (252, 140, 84), 0, c.h * 0.62)
    c.ellipse(c.w * float(c.rng.choice([0.3, 0.5, 0.7])), c.h * 0.58, 1.3, 1.3, (255, 222, 110))
    c.rect(0, c.h * 0.62, c.w, c.h, (104, 58, 92))
    for x, y in c.spread(c.many(0.3), 0.6, c.h * 0.35):
        c.ellipse(x, y, 1.1, 0.13, (250, 170, 130))
    c.wave(c.h * 0.8, 0.15, c.w, (62, 38, 66), float(c.rng.uniform(0, 6)))


def _space(c: Canvas) -> None:
    c.gradient((8, 8, 26), (34, 16, 62))
    for x, y in c.spread(c.many(4.0), 0.1, c.h - 0.1):
        r = float(c.rng.uniform(0.03, 0.08))
        c.ellipse(x, y, r, r, (250, 250, 255))
    left = c.rng.random() < 0.5
    x, y = (c.w * 0.15 if left else c.w * 0.85), 1.2
    tone = ((224, 132, 84), (110, 170, 220), (190, 130, 210))[int(c.rng.integers(3))]
    c.ellipse(x, y, 1.25, 0.28, (236, 214, 170))
    c.ellipse(x, y - 0.05, 0.72, 0.72, tone)
    c.ellipse(c.w - x, c.h + 1.2, 2.4, 2.2, (84, 92, 128))


def _sky(c: Canvas) -> None:
    c.gradient((64, 156, 236), (190, 228, 252))
    for x, y in c.spread(c.many(0.35), 0.6, c.h * 0.4):
        c.cloud(x, y, float(c.rng.uniform(0.8, 1.2)))
    for x, y in c.spread(c.many(0.35), c.h * 0.65, c.h - 0.5):
        c.cloud(x, y, float(c.rng.uniform(0.9, 1.4)))


def _rain(c: Canvas) -> None:
    c.gradient((112, 126, 146), (170, 182, 194))
    for x, y in c.spread(c.many(0.45), 0.3, 0.9):
        c.cloud(x, y, 1.1, (90, 100, 118))
    c.wave(c.h * 0.82, 0.08, c.w, (104, 120, 128), float(c.rng.uniform(0, 6)))
    for x, y in c.spread(c.many(4.0), 1.4, c.h - 0.3):
        c.polygon(
            [(x, y), (x + 0.07, y), (x - 0.08, y + 0.5), (x - 0.15, y + 0.5)], (196, 222, 244)
        )


def _stage(c: Canvas) -> None:
    c.gradient((70, 24, 44), (120, 40, 62))
    for x in (0.25, 0.75) if c.rng.random() < 0.5 else (0.35, 0.65):
        c.polygon([(c.w * x - 0.2, 0), (c.w * x + 0.2, 0), (c.w * 0.5 + 2.4, c.h * 0.82),
                   (c.w * 0.5 - 2.4, c.h * 0.82)], (214, 150, 110))  # fmt: skip
    for side in (0.0, 1.0):
        for k in range(3):
            x = side * c.w + (0.5 - side) * 2 * k * 0.42
            c.rect(x - 0.24, 0, x + 0.24, c.h * 0.84, ((176, 26, 40), (206, 40, 52))[k % 2])
    c.rect(0, c.h * 0.8, c.w, c.h, (164, 104, 62))
    c.ellipse(c.w / 2, c.h * 0.9, 2.4, 0.45, (246, 214, 150))


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "plain": _plain, "meadow": _meadow, "beach": _beach, "sea": _sea, "underwater": _underwater,
    "night": _night, "snow": _snow, "city": _city, "room": _room, "windowsill": _windowsill,
    "forest": _forest, "desert": _desert, "mountains": _mountains, "sunset": _sunset,
    "space": _space, "sky": _sky, "rain": _rain, "stage": _stage, **places.PAINTERS,
}  # fmt: skip


_painted: dict[tuple[object, ...], Image.Image] = {}


def background(
    scene: str, variant: int, rows: int, columns: int, hour: int = 0, weather: int = 0,
    px: int = CELL_PX, without: str = "",
) -> Image.Image:  # fmt: skip
    """The scene's background at `px` a cell; the same arguments always give the same picture.

    `without`: what a canvas leaves out.
    """
    if scene == "plain":
        return Image.new("RGB", (columns * px, rows * px), PASTELS[variant % len(PASTELS)])
    composition = variant % layout.COMPOSITIONS
    key = (scene, composition, rows, columns, hour, weather, px, without)
    if key not in _painted:
        rng = np.random.default_rng([zlib.crc32(scene.encode()), composition, rows, columns])
        canvas = Canvas(
            rows, columns, rng, px * SUPERSAMPLE,
            layout.HOURS[hour], layout.WEATHERS[weather], variant % layout.AIR_PATTERNS, without,
        )  # fmt: skip
        PAINTERS[scene](canvas)
        _painted[key] = canvas.weathered(scene == "windowsill").reduce(SUPERSAMPLE)
    return _painted[key]


def remember(job: tuple[str, int, int, int, int, int], picture: Image.Image) -> None:
    """Keep what another process painted."""
    _painted[(*job, CELL_PX, "")] = picture
