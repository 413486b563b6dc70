"""A thing cut out of the plain ground it was drawn on, and a hole in a picture filled from its edges. Knows pixels only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from danqing.domain.task import Pixels
from danqing.engine.messages import Mask

Floats = npt.NDArray[np.float32]

SIDE_MAX = 256  # pocket's own size: nothing finer is in its pictures
GROUND, THING = (
    10.0,
    30.0,
)  # difference from the ground's tone up to which it is ground, and from which a thing


def filled(picture: Pixels, mask: Mask) -> Pixels:
    """The picture with what the mask marks filled smoothly from around it (pull-push); all marked: its mean."""
    colours = _pulled(picture.astype(np.float32), (~mask).astype(np.float32)[:, :, None])
    return np.where(mask[:, :, None], np.clip(np.round(colours), 0, 255), picture).astype(np.uint8)


def cut_out(drawn: Pixels) -> Floats:
    """Opacity, H x W x 1, of what stands before a plain ground. What the ground does not reach is opaque."""
    height, width = drawn.shape[:2]
    scale = min(1.0, SIDE_MAX / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(drawn).resize(size), np.float32)
    tone = np.median(small.reshape(-1, 3), axis=0)
    away = np.abs(small - tone).max(2)
    ground = away < (GROUND + THING) / 2
    outside = np.zeros_like(ground)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = (
        ground[0], ground[-1], ground[:, 0], ground[:, -1],
    )  # fmt: skip
    while True:  # it spreads over the ground from the edges, a pixel a round
        wider = outside.copy()
        wider[1:] |= outside[:-1]
        wider[:-1] |= outside[1:]
        wider[:, 1:] |= outside[:, :-1]
        wider[:, :-1] |= outside[:, 1:]
        wider &= ground
        if (wider == outside).all():
            break
        outside = wider
    soft = np.clip((away - GROUND) / (THING - GROUND), 0, 1)
    alpha = Image.fromarray(np.where(outside, soft, 1.0).astype(np.float32))
    return np.asarray(alpha.resize((width, height), Image.Resampling.BILINEAR))[:, :, None]


def _pulled(colours: Floats, weight: Floats) -> Floats:
    """Every pixel: its own colour as far as it has weight, else that of a picture of half the size."""
    height, width = colours.shape[:2]
    if max(height, width) == 1 or weight.min() > 0:
        total = weight.sum()
        mean = (colours * weight).sum((0, 1)) / total if total else colours.mean((0, 1))
        return np.where(weight > 0, colours, mean).astype(np.float32)
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    seen, known = (np.pad(part, odd, mode="edge") for part in (colours * weight, weight))

    def halved(part: Any) -> Any:
        return part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2]

    known = halved(known)
    half = _pulled(halved(seen) / np.maximum(known, 1e-6), (known > 0).astype(np.float32))
    planes = [
        np.asarray(
            Image.fromarray(half[:, :, c]).resize((width, height), Image.Resampling.BILINEAR)
        )
        for c in range(3)
    ]
    return np.where(weight > 0, colours, np.stack(planes, axis=2)).astype(np.float32)
