"""More flat procedural backgrounds: indoors, farm, flowers, autumn. Knows pixels only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from training.pocket.canvas import Canvas, Rgb

BOOKS: tuple[Rgb, ...] = (
    (196, 74, 66),
    (66, 120, 170),
    (90, 150, 96),
    (232, 180, 80),
    (140, 96, 160),
    (214, 132, 92),
)
BUNTING: tuple[Rgb, ...] = (
    (236, 92, 92),
    (250, 196, 76),
    (96, 178, 220),
    (128, 196, 120),
    (226, 130, 190),
)


def _choice(c: Canvas, tones: tuple[Rgb, ...]) -> Rgb:
    return tones[int(c.rng.integers(len(tones)))]


def _window(c: Canvas, x: float, y: float, rx: float, ry: float) -> None:
    c.rect(x - rx - 0.14, y - ry - 0.14, x + rx + 0.14, y + ry + 0.14, (250, 248, 242))
    c.rect(x - rx, y - ry, x + rx, y + ry, (168, 216, 242))
    c.rect(x - 0.06, y - ry, x + 0.06, y + ry, (250, 248, 242))


def _table(c: Canvas) -> None:
    c.rect(
        0,
        0,
        c.w,
        c.h,
        _choice(c, ((246, 232, 206), (216, 230, 226), (238, 222, 230), (226, 226, 242))),
    )
    _window(c, c.w * (0.22 if c.rng.random() < 0.5 else 0.78), c.h * 0.24, 0.85, 0.8)
    top = c.h * 0.68
    wood, dark, edge = (198, 138, 84), (150, 98, 56), (222, 166, 110)
    for x in (0.1, 0.9):
        c.rect(c.w * x - 0.25, top, c.w * x + 0.25, c.h, dark)
    c.rect(0, c.h * 0.9, c.w, c.h, (176, 158, 140))
    for x in (0.1, 0.9):
        c.rect(c.w * x - 0.25, top, c.w * x + 0.25, c.h - 0.1, dark)
    c.polygon(
        [(0.35, top - 0.1), (c.w - 0.35, top - 0.1), (c.w + 0.3, c.h * 0.84), (-0.3, c.h * 0.84)],
        wood,
    )
    c.rect(-0.3, c.h * 0.84, c.w + 0.3, c.h * 0.84 + 0.3, dark)
    c.rect(0.35, top - 0.1, c.w - 0.35, top + 0.02, edge)


def _kitchen(c: Canvas) -> None:
    c.rect(0, 0, c.w, c.h, _choice(c, ((226, 240, 238), (250, 240, 220), (228, 236, 248))))
    for y in np.arange(c.h * 0.34, c.h * 0.68, 0.5):
        for x in np.arange(0.25 * (round(y * 2) % 2), c.w, 0.5):
            c.rect(x, y, x + 0.46, y + 0.46, (250, 252, 252))
    front = _choice(c, ((110, 160, 170), (230, 150, 110), (130, 165, 120)))
    x = 0.0
    while x < c.w:
        c.rect(x, 0, x + 1.5, c.h * 0.2, front)
        c.ellipse(x + 0.75, c.h * 0.17, 0.07, 0.07, (250, 246, 236))
        x += 1.6
    c.rect(0, c.h * 0.68, c.w, c.h * 0.76, (240, 234, 224))
    c.rect(0, c.h * 0.76, c.w, c.h, front)
    for x in np.arange(0.9, c.w, 1.6):
        c.rect(x, c.h * 0.78, x + 0.05, c.h, (250, 246, 236))


def _bedroom(c: Canvas) -> None:
    c.rect(0, 0, c.w, c.h, _choice(c, ((226, 216, 242), (212, 228, 246), (250, 222, 222))))
    _window(c, c.w * (0.3 if c.rng.random() < 0.5 else 0.7), c.h * 0.2, 0.8, 0.8)
    sheet = _choice(c, ((112, 150, 206), (226, 134, 150), (130, 180, 150)))
    c.rect(0.2, c.h * 0.46, c.w - 0.2, c.h * 0.76, (150, 104, 68))
    c.rect(0.4, c.h * 0.62, c.w - 0.4, c.h * 0.74, (252, 250, 246))
    for x in (0.28, 0.72):
        c.ellipse(c.w * x, c.h * 0.6, c.w * 0.15, 0.42, (255, 255, 255))
    c.rect(0, c.h * 0.72, c.w, c.h, sheet)
    c.wave(
        c.h * 0.78,
        0.06,
        c.w * 0.6,
        (sheet[0] - 18, sheet[1] - 18, sheet[2] - 18),
        float(c.rng.uniform(0, 6)),
    )


def _flowers(c: Canvas) -> None:
    c.open_sky((120, 190, 244), (216, 238, 252), 0.25)
    c.wave(c.h * 0.48, 0.2, c.w * 0.9, (140, 200, 110), float(c.rng.uniform(0, 6)))
    petals = ((240, 92, 130), (250, 210, 80), (170, 120, 220), (255, 255, 255), (250, 140, 90))
    for row, y in enumerate(np.arange(c.h * 0.56, c.h, 0.62)):
        size = 0.13 + 0.05 * row
        for i, (x, _) in enumerate(c.spread(c.many(1.1), 0, 1)):
            c.rect(x - 0.03, y, x + 0.03, y + 0.4, (80, 150, 70))
            tone = petals[(i + 2 * row) % len(petals)]
            for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                c.ellipse(x + dx * size * 0.7, y + dy * size * 0.7, size * 0.6, size * 0.6, tone)
            c.ellipse(
                x,
                y,
                size * 0.45,
                size * 0.45,
                (250, 190, 60) if tone != petals[1] else (180, 110, 50),
            )


def _farm(c: Canvas) -> None:
    c.open_sky((110, 186, 242), (210, 236, 250), 0.25)
    c.wave(c.h * 0.55, 0.2, c.w, (156, 204, 104), float(c.rng.uniform(0, 6)))
    x = c.w * (0.2 if c.rng.random() < 0.5 else 0.8)
    y = c.h * 0.62
    c.rect(x - 1.1, y - 1.5, x + 1.1, y, (190, 58, 50))
    c.polygon([(x - 1.3, y - 1.5), (x, y - 2.5), (x + 1.3, y - 1.5)], (110, 66, 56))
    c.rect(x - 0.45, y - 0.95, x + 0.45, y, (250, 244, 234))
    c.polygon(
        [(x - 0.45, y - 0.95), (x - 0.37, y - 0.95), (x + 0.45, y), (x + 0.37, y)], (190, 58, 50)
    )
    c.wave(c.h * 0.7, 0.12, c.w * 1.2, (124, 184, 82), float(c.rng.uniform(0, 6)))
    for post in np.arange(0.2, c.w, 0.9):
        c.rect(post, c.h * 0.68, post + 0.14, c.h * 0.8, (236, 226, 208))
    for rail in (0.705, 0.75):
        c.rect(0, c.h * rail, c.w, c.h * rail + 0.11, (236, 226, 208))


def _autumn(c: Canvas) -> None:
    c.open_sky((190, 220, 238), (252, 236, 206), 0.15)
    leaves = ((226, 120, 44), (236, 170, 60), (206, 84, 48), (244, 196, 84))
    for base, size in ((0.6, 0.8), (0.72, 1.1)):
        for i, (x, _) in enumerate(c.spread(c.many(0.75), 0, 1)):
            y = c.h * base
            c.rect(x - 0.1, y - size, x + 0.1, y + 0.4, (112, 76, 52))
            tone = leaves[(i + round(size * 10)) % 4]
            for dx, dy, r in ((-0.5, -1.2, 0.6), (0.5, -1.2, 0.6), (0, -1.7, 0.7), (0, -1.1, 0.6)):
                c.ellipse(x + dx * size, y + dy * size, r * size, r * size * 0.9, tone)
    c.wave(c.h * 0.74, 0.12, c.w * 0.9, (206, 160, 84), float(c.rng.uniform(0, 6)))
    for i, (x, y) in enumerate(c.spread(c.many(1.8), c.h * 0.8, c.h - 0.15)):
        c.ellipse(x, y, 0.13, 0.08, leaves[i % 4])


def _library(c: Canvas) -> None:
    c.rect(0, 0, c.w, c.h, (118, 78, 52))
    for y in np.arange(0.25, c.h * 0.72 - 0.6, 1.25):
        c.rect(0.2, y, c.w - 0.2, y + 1.05, (86, 54, 36))
        x = 0.3
        while x < c.w - 0.5:
            width, height = float(c.rng.choice([0.2, 0.26, 0.32])), float(c.rng.uniform(0.7, 0.98))
            c.rect(x, y + 1.05 - height, x + width - 0.04, y + 1.05, _choice(c, BOOKS))
            x += width
    c.rect(0, c.h * 0.74, c.w, c.h, (190, 142, 96))
    c.ellipse(c.w / 2, c.h * 0.9, c.w * 0.4, 0.5, (166, 70, 64))


def _party(c: Canvas) -> None:
    c.rect(0, 0, c.w, c.h, _choice(c, ((252, 226, 236), (224, 240, 250), (254, 242, 214))))
    xs = np.arange(0.1, c.w, 0.62)
    for i, x in enumerate(xs):
        sag = 0.35 + 0.5 * float(np.sin(np.pi * x / c.w))
        c.polygon([(x, sag), (x + 0.52, sag), (x + 0.26, sag + 0.62)], BUNTING[i % len(BUNTING)])
    for i, (x, y) in enumerate(c.spread(c.many(0.6), c.h * 0.22, c.h * 0.45)):
        c.rect(x - 0.02, y, x + 0.02, y + 1.4, (180, 170, 170))
        c.ellipse(x, y, 0.36, 0.44, BUNTING[(i + 2) % len(BUNTING)])
    for i, (x, y) in enumerate(c.spread(c.many(4.0), 0.5, c.h * 0.78)):
        c.rect(x, y, x + 0.12, y + 0.07, BUNTING[i % len(BUNTING)])
    c.rect(0, c.h * 0.8, c.w, c.h, (214, 160, 120))


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    "table": _table, "kitchen": _kitchen, "bedroom": _bedroom, "flowers": _flowers,
    "farm": _farm, "autumn": _autumn, "library": _library, "party": _party,
}  # fmt: skip
