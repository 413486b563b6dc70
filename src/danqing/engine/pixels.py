"""Pixels to another size. Knows numpy and Pillow, no network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.task import Pixels


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
