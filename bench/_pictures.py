"""Pictures to try marks on, made from seeds: there is no photograph in this repository. Knows no mark and no label.

Photographs' statistics: power falling as 1/f² (D. J. Field, 1987), occlusion of discs whose sizes follow a power law ("dead
leaves"; Lee, Mumford and Huang, 2001), smooth skies and sensor noise, blur outside a focus; and what drawings add: flat colours,
gradients, hard edges, regular windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Random = np.random.Generator


def picture(kind: str, seed: int, height: int, width: int) -> Pixels:
    """A picture of one of KINDS, H x W x 3."""
    return KINDS[kind](np.random.default_rng(seed), height, width)


def _bytes(values: npt.NDArray[np.floating]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _spectral(random: Random, height: int, width: int, slope: float) -> Floats:
    """Noise of variance 1 whose amplitude falls as f^-slope."""
    down = np.fft.fftfreq(height)[:, None] * height
    across = np.fft.rfftfreq(width)[None] * width
    radius = np.hypot(down, across)
    radius[0, 0] = 1
    phases = random.standard_normal(radius.shape) + 1j * random.standard_normal(radius.shape)
    spectrum = phases * radius**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(height, width))
    return (field / field.std()).astype(np.float32)


def _tinted(random: Random, light: Floats, spread: float = 0.25) -> Floats:
    height, width = light.shape
    channels = [light + spread * _spectral(random, height, width, 1.4) for _ in range(3)]
    return np.stack(channels, -1)


def _color(random: Random, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = random.integers(low, high, 3).tolist()
    return red, green, blue


def texture(random: Random, height: int, width: int) -> Pixels:
    """Rough ground: strong noise of a photograph's spectrum."""
    light = _spectral(random, height, width, random.uniform(0.9, 1.3))
    return _bytes(random.uniform(90, 160) + random.uniform(25, 55) * _tinted(random, light))


def leaves(random: Random, height: int, width: int) -> Pixels:
    """Things that cover each other, small ones more often."""
    image = Image.new("RGB", (width, height), _color(random))
    draw = ImageDraw.Draw(image)
    side, base = min(height, width), random.uniform(60, 190, 3)
    least, most = (side / 64) ** -2, (side / 4) ** -2
    for radius in np.sort((least + (most - least) * random.random(400)) ** -0.5)[::-1]:
        x, y, tall = random.random() * width, random.random() * height, random.uniform(0.6, 1.4)
        shade = np.clip(base + random.normal(0, 45) + random.normal(0, 20, 3), 0, 255)
        box = (x - radius, y - radius * tall, x + radius, y + radius * tall)
        draw.ellipse(box, fill=tuple(int(value) for value in shade))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    grain = 8 * _spectral(random, height, width, 0.8)[..., None]
    return _bytes(soft + grain + random.normal(0, 2, (height, width, 1)))


def landscape(random: Random, height: int, width: int) -> Pixels:
    """A smooth sky above textured ground."""
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = random.uniform(40, 200, 3) * (1 - down) + random.uniform(120, 250, 3) * down
    ridge = np.cumsum(random.standard_normal(width)) / math.sqrt(width)
    horizon = height * random.uniform(0.35, 0.75) + height * 0.05 * ridge
    rough = _tinted(random, _spectral(random, height, width, 1.0), 0.2)
    ground = random.uniform(30, 140, 3) + random.uniform(15, 40) * rough
    is_ground = (np.arange(height)[:, None] > horizon[None])[..., None]
    return _bytes(np.where(is_ground, ground, sky) + random.normal(0, 1.2, (height, width, 1)))


def portrait(random: Random, height: int, width: int) -> Pixels:
    """Something in focus before a blurred ground."""
    ground = random.uniform(30, 220, 3) + 18 * _tinted(
        random, _spectral(random, height, width, 2.0)
    )
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.hypot((y / height - 0.5) / 0.33, (x / width - 0.5) / 0.24)[..., None]
    inside = 1 / (1 + np.exp(np.clip((distance - 1) * 25, -50, 50)))
    skin = np.array([205, 165, 140]) * (1.1 - 0.35 * distance)
    face = skin + 7 * _spectral(random, height, width, 0.9)[..., None]
    noise = random.normal(0, 0.8, (height, width, 1))
    return _bytes(ground * (1 - inside) + face * inside + noise)


def night(random: Random, height: int, width: int) -> Pixels:
    """Nearly black, with lights."""
    dark = 18 + 10 * _tinted(random, _spectral(random, height, width, 1.3))
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = random.random() * width, random.random() * height
        radius = min(height, width) * random.uniform(0.003, 0.03)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_color(random, 60))
    return _bytes(dark + np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32))


def snow(random: Random, height: int, width: int) -> Pixels:
    """Nearly white."""
    light = _spectral(random, height, width, 1.2)
    return _bytes(random.uniform(215, 235) + 14 * _tinted(random, light, 0.1))


def poster(random: Random, height: int, width: int) -> Pixels:
    """Flat colours and hard edges."""
    image = Image.new("RGB", (width, height), _color(random, 20, 230))
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(2, 7))):
        x, y = random.random() * width, random.random() * height
        wide, tall = min(height, width) * random.uniform(0.05, 0.25, 2)
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x - wide, y - tall, x + wide, y + tall), fill=_color(random))
    return np.asarray(image)


def gradient(random: Random, height: int, width: int) -> Pixels:
    """One colour that passes into another, and nothing else."""
    first, last = random.uniform(10, 245, (2, 3))
    turn = random.uniform(0, 2 * math.pi)
    down, across = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    ramp = math.cos(turn) * down + math.sin(turn) * across
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)
    return _bytes(first + (last - first) * ramp[..., None])


def facade(random: Random, height: int, width: int) -> Pixels:
    """Rows of windows: regular, full of contrast, and the hardest for a mark."""
    wide, tall = int(random.integers(8, 24)), int(random.integers(10, 30))
    y, x = np.mgrid[0:height, 0:width]
    is_window = ((y % tall > tall * 0.3) & (x % wide > wide * 0.35))[..., None]
    light = random.uniform(0.2, 1, (height // tall + 1, width // wide + 1))
    panes = random.uniform(40, 200, 3) * light[y // tall, x // wide][..., None]
    wall = random.uniform(100, 220, 3)
    return _bytes(
        np.where(is_window, panes, wall) + 6 * _spectral(random, height, width, 1.0)[..., None]
    )


KINDS: dict[str, Callable[[Random, int, int], Pixels]] = {
    "texture": texture,
    "leaves": leaves,
    "landscape": landscape,
    "portrait": portrait,
    "night": night,
    "snow": snow,
    "poster": poster,
    "gradient": gradient,
    "facade": facade,
}
