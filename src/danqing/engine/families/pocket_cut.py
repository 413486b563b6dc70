"""A thing cut out of the plain ground it was drawn on, and a hole in a picture filled from its edges. Knows pixels only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from danqing.domain.task import Pixels
from danqing.engine.messages import Mask

Floats = npt.NDArray[np.float32]

SIDE_MAX = 256  # pocket's own size: nothing finer is in its pictures
GROUND, THING = (
    10.0,
    30.0,
)  # difference from the ground's tone up to which it is ground, and from which a thing
EDGE_SHARE = 128  # an edge is as wide as this part of the longer side
NOISY_GROUND = 20.0
"""The first of the two where nothing lies behind: what is left of the noise must not show."""


def filled(picture: Pixels, mask: Mask) -> Pixels:
    """The picture with what the mask marks filled smoothly from around it (pull-push); all marked: its mean."""
    colours = _pulled(picture.astype(np.float32), (~mask).astype(np.float32)[:, :, None])
    return np.where(mask[:, :, None], np.clip(np.round(colours), 0, 255), picture).astype(np.uint8)


def without_ground(drawn: Pixels) -> Pixels:
    """What stands before a plain ground, H x W x 4: its edges keep nothing of the ground's tone.

    Near an edge a pixel is thing and ground mixed (Porter and Duff's "over"). How much of it is thing is told by how far
    it has come from the ground's tone towards the colours a little further inside.
    """
    rough = cut_out(drawn, ground=NOISY_GROUND)
    beside = rough[:, :, 0] == 0
    tone = np.median(drawn[beside], axis=0).astype(np.float32) if beside.any() else np.zeros(3)
    inside = Image.fromarray((rough[:, :, 0] == 1).astype(np.uint8) * 255)
    width_px = 2 * max(1, round(max(drawn.shape[:2]) / EDGE_SHARE)) + 1
    sure = np.asarray(inside.filter(ImageFilter.MinFilter(width_px))) > 0
    colours = drawn.astype(np.float32)
    towards = _pulled(colours, sure[:, :, None].astype(np.float32)) - tone
    length = (towards**2).sum(2)
    share = ((colours - tone) * towards).sum(2) / np.maximum(length, 1)
    # What has the ground's own tone is told by the rough cut alone.
    share = np.where(length > THING**2, np.clip(share, 0, 1), rough[:, :, 0])
    alpha = np.where(sure, 1, np.where(beside, 0, share))[:, :, None]
    own = (colours - (1 - alpha) * tone) / np.maximum(alpha, 1 / 16)
    pixels = np.where(alpha > 0, np.clip(own, 0, 255), colours)
    return np.round(np.dstack([pixels, alpha * 255])).astype(np.uint8)


def cut_out(drawn: Pixels, ground: float = GROUND) -> Floats:
    """Opacity, H x W x 1, of what stands before a plain ground. What the ground does not reach is opaque."""
    height, width = drawn.shape[:2]
    scale = min(1.0, SIDE_MAX / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(drawn).resize(size), np.float32)
    tone = np.median(small.reshape(-1, 3), axis=0)
    away = np.abs(small - tone).max(2)
    is_ground = away < (ground + THING) / 2
    outside = np.zeros_like(is_ground)
    outside[0], outside[-1], outside[:, 0], outside[:, -1] = (
        is_ground[0], is_ground[-1], is_ground[:, 0], is_ground[:, -1],
    )  # fmt: skip
    while True:  # it spreads over the ground from the edges, a pixel a round
        wider = outside.copy()
        wider[1:] |= outside[:-1]
        wider[:-1] |= outside[1:]
        wider[:, 1:] |= outside[:, :-1]
        wider[:, :-1] |= outside[:, 1:]
        wider &= is_ground
        if (wider == outside).all():
            break
        outside = wider
    soft = np.clip((away - ground) / (THING - ground), 0, 1)
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
