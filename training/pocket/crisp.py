"""Things drawn larger than their font has them, with edges as sharp as a vector's. Knows pixels only.

A glyph is enlarged smoothly, then a shock filter (Osher and Rudin 1990; smoothed as Alvarez and Mazorra 1994) moves
every pixel towards the brighter or the darker side of the edge that it lies on.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from training.pocket import scenes as s
from training.pocket import vocabulary as v
from training.pocket.backgrounds import background

from danqing.engine.families import pocket_layout as layout

ENLARGED = 4
PX = s.CELL_PX * ENLARGED
LARGEST_PX = 512
ROUNDS = 10
SMOOTH = 1.2  # pixels of the enlarged picture

Floats = npt.NDArray[np.float32]


def shocked(pixels: Floats) -> Floats:
    """h x w x 4 premultiplied, 0-255 -> the same with sharp edges."""
    for _ in range(ROUNDS):
        light = ndimage.gaussian_filter(pixels, (SMOOTH, SMOOTH, 0)).sum(-1)
        down, right = np.gradient(light)
        (down_down, _), (right_down, right_right) = np.gradient(down), np.gradient(right)
        curve = right_right * right**2 + 2 * right_down * right * down + down_down * down**2
        curve /= right**2 + down**2 + 1e-3
        pull = np.tanh(curve / 2)[..., None]
        above = ndimage.maximum_filter(pixels, (3, 3, 1)) - pixels
        below = ndimage.minimum_filter(pixels, (3, 3, 1)) - pixels
        pixels = pixels + 0.5 * np.abs(pull) * np.where(pull < 0, above, below)
    return pixels


def enlarged(glyph: Image.Image, longest_px: int = LARGEST_PX) -> Image.Image:
    """An RGBA glyph at `longest_px`."""
    scale = longest_px / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    pixels = np.asarray(glyph.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    pixels = shocked(pixels)
    pixels[..., :3] = np.clip(pixels[..., :3] * 255 / np.clip(pixels[..., 3:], 1, 255), 0, 255)
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


def keep(thing: int, folder: Path) -> Path:
    """A thing at its largest as a file, made on first use."""
    concept = v.concepts()[thing - 1]
    path = folder / f"{concept.key.replace(' ', '-')}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        enlarged(s.glyph(concept.glyph)).save(path, compress_level=1)
    return path


@lru_cache(maxsize=800)
def _thing(thing: int, folder: Path) -> Image.Image:
    return Image.open(keep(thing, folder)).convert("RGBA")


def render(scene: s.Scene, folder: Path) -> npt.NDArray[np.uint8]:
    """The picture of a scene at four times the size."""
    rows, columns = layout.GRIDS[scene.grid]
    wish = scene.wish
    key = v.scenes()[wish.scene].key
    image = background(key, scene.variant, rows, columns, wish.hour, wish.weather, PX).copy()
    for box in layout.place(wish, scene.grid, scene.pose):
        sprite = _thing(box.thing, folder)
        if box.colour:
            sprite = s.tint(sprite, box.colour)
        scale = box.side * PX * s.FILL / max(sprite.size)
        size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
        sprite = sprite.resize(size, Image.Resampling.BICUBIC)
        x = (box.left + box.side / 2) * PX - sprite.width / 2
        y = (box.top + box.side) * PX - sprite.height - ENLARGED
        image.paste(sprite, (round(x), round(y)), sprite)
    return np.asarray(image)
