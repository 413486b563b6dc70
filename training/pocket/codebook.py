"""The start of the denoiser's codebooks: the renders' own latents. Knows the renderer and the basis, no training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from training.pocket import vocabulary as v
from training.pocket.backgrounds import background
from training.pocket.canvas import CELL_PX
from training.pocket.data import to_tensor
from training.pocket.networks import Basis
from training.pocket.scenes import paste

from danqing.engine.families import pocket_layout as layout

GROUNDS = (
    (255, 255, 255),
    (0, 0, 0),
)  # seen on both, a part shows its shape as well as its colours


@torch.no_grad()
def glyph_latents(basis: Basis) -> Tensor:
    """(things * parts, grounds * channels) in the order of pocket_layout's contents."""
    rows: list[Tensor] = []
    for thing in range(1, len(v.concepts()) + 1):
        for side in layout.SIDES:
            box = layout.Placement(thing, 0, 0, 0, side)
            pictures: list[np.ndarray] = []
            for ground in GROUNDS:
                image = Image.new("RGB", (side * CELL_PX, side * CELL_PX), ground)
                paste(image, box)
                pictures.append(np.asarray(image))
            z = basis.encode(to_tensor(pictures))
            rows.append(z.flatten(2).permute(2, 0, 1).flatten(1))
    return torch.cat(rows)


@torch.no_grad()
def ground_latents(basis: Basis) -> Tensor:
    """(scenes but the plain one * compositions * all cells, channels), as pocket_layout numbers them."""
    rows: list[Tensor] = []
    for scene in v.scenes()[1:]:
        for composition in range(layout.COMPOSITIONS):
            for size in layout.GRIDS:
                picture = np.asarray(background(scene.key, composition, *size))
                rows.append(basis.encode(to_tensor([picture]))[0].flatten(1).T)
    return torch.cat(rows)


@torch.no_grad()
def air_latents(basis: Basis) -> Tensor:
    """(kinds * patterns * all cells, channels): what each hour and weather changes over a meadow."""
    rows: list[Tensor] = []
    kinds = [(hour, 0) for hour in range(1, len(layout.HOURS))]
    kinds += [(0, weather) for weather in range(1, len(layout.WEATHERS))]
    for hour, weather in kinds:
        for pattern in range(layout.AIR_PATTERNS):
            for size in layout.GRIDS:
                fair = background("meadow", pattern, *size)
                other = background("meadow", pattern, *size, hour, weather)
                pair = basis.encode(to_tensor([np.asarray(fair), np.asarray(other)]))
                rows.append((pair[1] - pair[0]).flatten(1).T)
    return torch.cat(rows)


@torch.no_grad()
def start_codebook(table: nn.Embedding, latents: Tensor, first: int) -> None:
    """Fill the table from its row `first` with the latents' leading components, at unit spread.

    The rows before are for what is no part of anything; they start apart from each other.
    """
    centred = latents - latents.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    codes = centred @ axes.flip(1)[:, : table.embedding_dim]
    table.weight[:first].zero_()
    table.weight[torch.arange(first), torch.arange(first)] = 1.0
    table.weight[first:] = codes / codes.square().mean().sqrt()
