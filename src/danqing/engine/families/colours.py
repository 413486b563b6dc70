"""Latents to colours, learnt from the pictures that were drawn: previews of any network without its decoder. Knows torch, no model."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from danqing.domain.task import Pixels

BLOCK_PX = 8
"""A colour stands for a block of this side, smaller cells than that of the latents aside."""
MEMORY = 0.8
"""What an older picture counts beside the next one."""
RIDGE = 1e-3
"""Of the features' mean square: what one picture alone does not tell stays small."""

Floats = npt.NDArray[np.float64]


def cells_of(latents: Tensor, size: tuple[int, int]) -> Tensor:
    """The one image's latents, 1 x F x h x w or 1 x (h x w) x F, as F x h x w. `size`: (height, width) in pixels."""
    if latents.ndim == 4:
        return latents[0]
    _, tokens, features = latents.shape
    height, width = size
    rows = round((tokens * height / width) ** 0.5)
    return latents[0].T.reshape(features, rows, tokens // rows)


class Colours:
    """The linear map, with a constant, from a cell's features to the colours of its blocks: least squares over what was drawn.

    One thread may learn while another looks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inner: Floats | None = None
        self._outer: Floats | None = None
        self._map: Floats | None = None

    @property
    def is_learnt(self) -> bool:
        return self._inner is not None

    def learn(self, cells: Tensor, picture: Pixels) -> None:
        """`cells`: F x h x w, the latents that the picture, H x W x 3, was decoded from."""
        rows, columns = cells.shape[1:]
        side = picture.shape[0] // rows  # of a cell, pixels
        across = max(1, side // BLOCK_PX)  # blocks in it
        block = side // across
        seen = picture[: rows * side, : columns * side].astype(np.float64)
        seen = seen.reshape(rows, across, block, columns, across, block, 3).mean((2, 5))
        wanted = seen.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1) / 127.5 - 1
        features = self._features(cells)
        inner, outer = features.T @ features, features.T @ wanted
        with self._lock:
            if self._inner is not None and self._outer is not None:
                inner, outer = inner + MEMORY * self._inner, outer + MEMORY * self._outer
            self._inner, self._outer, self._map = inner, outer, None

    def look(self, cells: Tensor) -> Pixels:
        """The colours, (across x h) x (across x w) x 3, uint8. Only once something was learnt."""
        colours = self._fitted()
        rows, columns = cells.shape[1:]
        across = round((colours.shape[1] / 3) ** 0.5)
        found = (self._features(cells) @ colours).reshape(rows, columns, across, across, 3)
        rgb = found.transpose(0, 2, 1, 3, 4).reshape(rows * across, columns * across, 3)
        return np.clip(np.round((rgb / 2 + 0.5) * 255), 0, 255).astype(np.uint8)

    def _fitted(self) -> Floats:
        with self._lock:
            assert self._inner is not None
            assert self._outer is not None
            if self._map is None:
                ridge = RIDGE * np.trace(self._inner) / len(self._inner) * np.eye(len(self._inner))
                self._map = np.linalg.solve(self._inner + ridge, self._outer)
            return self._map

    @staticmethod
    def _features(cells: Tensor) -> Floats:
        flat = cells.flatten(1).T.to("cpu", torch.float64).numpy()
        return np.concatenate([flat, np.ones((len(flat), 1))], 1)
