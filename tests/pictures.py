"""Comparing pictures that carry different marks. Knows no server."""

from __future__ import annotations

import numpy as np
from PIL import Image


def are_alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures differ by no more than their pixel marks: each is at 40 dB or more, which is 2.55 grey levels."""
    first, second = (np.asarray(image.convert("RGB"), np.float32) for image in (one, other))
    difference = np.abs(first - second)
    return float(np.sqrt((difference**2).mean())) < 4 and float(difference.max()) <= 64
