"""Seeded renderer: a wish -> pixels, from emoji glyphs on drawn backgrounds. No torch, no words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from training.pocket import vocabulary as v
from training.pocket.backgrounds import background
from training.pocket.canvas import CELL_PX

from danqing.engine.families import pocket_layout as layout

FONT_PATH = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_PX = 109  # the only size this bitmap font has
FILL = 0.97  # share of its box that a glyph fills
GRID_SHARES: tuple[float, ...] = (0.42, 0.10, 0.10, 0.10, 0.10, 0.07, 0.06, 0.025, 0.025)


@dataclass(frozen=True)
class Scene:
    """A wish and the choices that the seed makes: the whole truth of one picture."""

    wish: layout.Wish
    pose: int = 1
    variant: int = 0
    grid: int = 0


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT_PATH, FONT_PX)


@lru_cache(maxsize=512)
def glyph(name: str) -> Image.Image:
    image = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((8, 8), name, font=_font(), embedded_color=True)
    return image.crop(image.getbbox())


def tint(image: Image.Image, colour: int) -> Image.Image:
    """Repaint in one colour, keeping light and shade so that the thing stays recognisable."""
    pixels = np.asarray(image).astype(np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255.0
    alpha = pixels[..., 3] / 255.0
    mean = float((light * alpha).sum() / max(float(alpha.sum()), 1.0))
    shade = np.clip(1.0 + 1.1 * (light - mean), 0.25, 1.6)[..., None]
    target = np.array(v.COLOURS[v.COLOUR_KEYS[colour]][0], np.float32)
    toned = np.where(shade < 1, target * shade, target + (255 - target) * (shade - 1) / 0.9)
    out = np.clip(0.85 * toned + 0.15 * pixels[..., :3], 0, 255)
    return Image.fromarray(np.dstack([out, pixels[..., 3]]).round().astype(np.uint8))


@lru_cache(maxsize=40000)
def _sprite(thing: int, side_px: int, colour: int) -> Image.Image:
    image = glyph(v.concepts()[thing - 1].glyph)
    scale = side_px * FILL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if colour:
        image = tint(image, colour)
    return image.resize(size, Image.Resampling.BICUBIC)


def paste(image: Image.Image, box: layout.Placement) -> None:
    """Draw one thing into its box, standing on the box's floor."""
    sprite = _sprite(box.thing, box.side * CELL_PX, box.colour)
    x = (box.left + box.side / 2) * CELL_PX - sprite.width / 2
    y = (box.top + box.side) * CELL_PX - sprite.height - 1
    image.paste(sprite, (round(x), round(y)), sprite)


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: rows*32 x columns*32 x 3, uint8."""
    rows, columns = layout.GRIDS[scene.grid]
    wish = scene.wish
    key = v.scenes()[wish.scene].key
    image = background(key, scene.variant, rows, columns, wish.hour, wish.weather).copy()
    for box in layout.place(wish, scene.grid, scene.pose):
        paste(image, box)
    return np.asarray(image)


def sample_air(rng: np.random.Generator) -> tuple[int, int]:
    """(hour, weather) of a place in the open: half of the time a fair day."""
    kind = rng.random()
    if kind < 0.5:
        return 0, 0
    if kind < 0.8:
        return 1 + int(rng.random() < 0.6), 0
    weather = 1 + int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    at_night = layout.WEATHERS[weather] != "rainbow" and rng.random() < 0.25
    return (layout.HOURS.index("night") if at_night else 0), weather


def sample_wish(rng: np.random.Generator) -> layout.Wish:
    """A random wish: most often one thing somewhere, sometimes several, tinted, sized or with another."""
    things = len(v.concepts())
    thing, count, colour, second, relation, scene = 1 + int(rng.integers(things)), 1, 0, 0, 0, 0
    second_colour, size, hour, weather = 0, 0, 0, 0
    if rng.random() < 0.75:
        scene = 1 + int(rng.integers(len(v.scenes()) - 1))
        if scene in v.open_air():
            hour, weather = sample_air(rng)
    kind = rng.random()
    if kind < 0.25:
        count = 2 + int(rng.choice(4, p=(0.2, 0.2, 0.25, 0.35)))
    elif kind < 0.47:
        second = 1 + int(rng.integers(things))
        relation = 1 + int(rng.choice(5, p=(0.4, 0.22, 0.14, 0.14, 0.10)))
    elif kind < 0.51:
        thing = 0
    if thing and rng.random() < 0.25:
        colour = 1 + int(rng.integers(len(v.COLOUR_KEYS) - 1))
    if second and rng.random() < 0.25:
        second_colour = 1 + int(rng.integers(len(v.COLOUR_KEYS) - 1))
    if thing and rng.random() < 0.12 and (not second or layout.RELATIONS[relation] == "beside"):
        size = 1 + int(rng.random() < 0.5)
    return layout.Wish(
        thing, count, colour, second, relation, scene, second_colour, size, hour, weather
    )


def sample(rng: np.random.Generator, grid: int | None = None) -> Scene:
    """A random scene, of the given grid or of any."""
    if grid is None:
        grid = int(rng.choice(len(layout.GRIDS), p=GRID_SHARES))
    pose, variant = int(rng.integers(layout.POSES)), int(rng.integers(layout.VARIANTS))
    return Scene(sample_wish(rng), pose, variant, grid)
