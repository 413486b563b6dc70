"""Batches of rendered scenes as tensors, and the run folder's checkpoints. Knows no networks but the basis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training.pocket import scenes as s
from training.pocket import vocabulary as v

from danqing.engine.families import pocket_layout as layout

CONTENTS = 2 + len(v.concepts()) * layout.PARTS
GROUNDS = layout.ground_rows(len(v.scenes()))
COLOURS = len(v.COLOUR_KEYS)
SCENES = len(v.scenes())


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 h x w x 3 pictures of one size -> (b, 3, h, w) in -1..1."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


def random_grid(rng: np.random.Generator) -> int:
    """A grid by the shares of training."""
    return int(rng.choice(len(layout.GRIDS), p=s.GRID_SHARES))


def plan_tensors(plans: list[layout.Plan]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Plans of one grid -> contents, grounds, colours, scene, variant."""
    return (
        torch.from_numpy(np.stack([p.contents for p in plans])),
        torch.from_numpy(np.stack([p.grounds for p in plans])),
        torch.from_numpy(np.stack([p.colours for p in plans])),
        torch.tensor([p.scene for p in plans]),
        torch.tensor([p.variant for p in plans]),
    )


def batch(
    rng: np.random.Generator, size: int, drop: float = 0.0
) -> tuple[int, Tensor, list[layout.Plan]]:
    """(grid, pictures, plans) of random scenes; a share of the plans is dropped for guidance."""
    grid = random_grid(rng)
    chosen = [s.sample(rng, grid) for _ in range(size)]
    plans = [
        layout.dropped_plan(grid, SCENES)
        if rng.random() < drop
        else layout.plan(c.wish, grid, c.pose, c.variant)
        for c in chosen
    ]
    return grid, to_tensor([s.render(c) for c in chosen]), plans


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none yet."""
    return torch.load(path, weights_only=True) if path.exists() else None
