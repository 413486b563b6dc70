"""Edits by flow matching: the noise level to begin at, what a mask keeps, and the pixels laid back. Knows torch, no one model.

The reference's latents are noised to the level of the first step that is drawn. What a mask keeps is put back at every
step with the noise of that step, so that the rest grows to fit it, and at the end in pixels, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from danqing.domain.task import Pixels
from danqing.engine.messages import Job, Mask
from danqing.engine.pixels import alpha_of, laid_over
from danqing.engine.samplers import Schedule

CELL_PX = 8
"""A latent's side in pixels."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """What an edit is laid on."""

    picture: Pixels
    """The reference, at the job's size."""
    latents: Tensor
    """Tokens x 4 channels: the reference's."""
    noise: Tensor
    """The same, the seed's."""
    kept: Tensor | None
    """The same, True where the reference stays; None = nowhere."""
    alpha: npt.NDArray[np.float32] | None

    def noised(self, level: float) -> Tensor:
        """The reference at a noise level."""
        return (1 - level) * self.latents + level * self.noise

    def put_back(self, latents: Tensor, level: float) -> Tensor:
        """The latents, with what the mask keeps as it is at this level."""
        return latents if self.kept is None else torch.where(self.kept, self.noised(level), latents)

    def laid(self, drawn: Pixels, strength: float) -> Pixels:
        """A drawing or a look at it, with what is kept."""
        if strength == 0:
            return laid_over(
                self.picture, drawn, np.zeros((*self.picture.shape[:2], 1), np.float32)
            )
        return laid_over(self.picture, drawn, self.alpha)


def make_canvas(
    job: Job,
    grid: tuple[int, int],
    noise: Tensor,
    encode: Callable[[Tensor], Tensor],
    pack: Callable[[Tensor], Tensor],
) -> Canvas:
    """For a job with a reference. `noise`: tokens x 4 channels; `encode`: pixels 1 x 3 x H x W in -1..1 -> latents."""
    assert job.reference is not None
    frame = padded(job.reference, grid)
    pixels = torch.from_numpy(frame.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    latents = encode(pixels.to(noise.device))[0].float()
    kept = alpha = None
    if job.mask is not None:
        alpha = alpha_of(job.mask)
        cells = torch.from_numpy(~repainted(job.mask, grid)).to(noise.device)
        kept = pack(cells.expand(latents.shape[0], *cells.shape))
    return Canvas(job.reference, pack(latents), noise, kept, alpha)


def rest(schedule: Schedule, skipped: int) -> Schedule:
    """A schedule without its first steps."""
    return Schedule(schedule.sigmas[skipped:], schedule.timesteps[skipped:])


def padded(picture: npt.NDArray[np.generic], grid: tuple[int, int]) -> npt.NDArray[np.generic]:
    """Drawn out at the right and the bottom by its own edge, to whole tokens."""
    down, across = 16 * grid[0] - picture.shape[0], 16 * grid[1] - picture.shape[1]
    return np.pad(picture, [(0, down), (0, across), *[(0, 0)] * (picture.ndim - 2)], mode="edge")


def repainted(mask: Mask, grid: tuple[int, int]) -> Mask:
    """2 rows x 2 columns of the grid: the latents of which any pixel is repainted."""
    whole = padded(mask, grid)
    cells = whole.reshape(2 * grid[0], CELL_PX, 2 * grid[1], CELL_PX)
    return np.asarray(cells.any(axis=(1, 3)), np.bool_)
