"""Pixels to another size, and what was painted laid over what it began from. Knows numpy and Pillow, no network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from danqing.domain.task import Pixels

FEATHER = 96  # a repainted place fades in over one 96th of the shorter side


def fit(picture: Pixels, width: int, height: int) -> Pixels:
    """Cover width x height: scale until both sides reach, then cut what is over, evenly."""
    image = Image.fromarray(picture)
    box = _cut(image, width, height)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def fit_mask(mask: npt.NDArray[np.bool_], width: int, height: int) -> npt.NDArray[np.bool_]:
    """The same for a mask: it stays over the same part of its picture."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    box = _cut(image, width, height)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box)) >= 128


def _cut(image: Image.Image, width: int, height: int) -> tuple[float, float, float, float]:
    scale = max(width / image.width, height / image.height)
    cut_x, cut_y = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    return (cut_x, cut_y, image.width - cut_x, image.height - cut_y)


def alpha_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """H x W x 1, the mask as opacity of what is painted: it fades in inside the mask, and nothing outside changes."""
    radius = max(1.0, min(mask.shape) / FEATHER)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
    return (np.clip(2 * soft - 1, 0, 1) * mask)[:, :, None]


def laid_over(picture: Pixels, drawn: Pixels, alpha: npt.NDArray[np.float32] | None) -> Pixels:
    """What was drawn, over the picture where it is opaque. Picture and alpha are brought to the drawing's size, a preview's."""
    height, width = drawn.shape[:2]
    if alpha is None:
        return drawn
    if picture.shape != drawn.shape:
        picture = np.asarray(Image.fromarray(picture).resize((width, height)))
    if alpha.shape[:2] != drawn.shape[:2]:
        flat = Image.fromarray(alpha[:, :, 0]).resize((width, height))
        alpha = np.asarray(flat, np.float32)[:, :, None]
    mixed = picture + alpha * (drawn.astype(np.float32) - picture)
    return np.round(mixed).astype(np.uint8)
