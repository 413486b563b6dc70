"""Batches of rendered scenes as tensors, and the run folder's checkpoints. Knows no networks but the basis."""

from __future__ import annotations

import multiprocessing
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
AIRS = layout.air_rows()
COLOURS = len(v.COLOUR_KEYS)
SCENES = len(v.scenes())


AIR_KINDS = ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (0, 3), (2, 1), (2, 2))
"""Hours with weathers that are drawn together."""


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 h x w x 3 pictures of one size -> (b, 3, h, w) in -1..1."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


def random_grid(rng: np.random.Generator) -> int:
    """A grid by the shares of training."""
    return int(rng.choice(len(layout.GRIDS), p=s.GRID_SHARES))


PLAN = ("contents", "grounds", "airs", "colours", "place")


def plan_arrays(plans: list[layout.Plan]) -> dict[str, np.ndarray]:
    """Plans of one grid: contents, grounds, colours (b, cells), airs (b, 2, cells), place (b, 4):
    scene, variant, hour, weather."""
    return {
        "contents": np.stack([p.contents for p in plans]),
        "grounds": np.stack([p.grounds for p in plans]),
        "airs": np.stack([p.airs for p in plans]),
        "colours": np.stack([p.colours for p in plans]),
        "place": np.array([[p.scene, p.variant, p.hour, p.weather] for p in plans]),
    }


def drawn(
    rng: np.random.Generator, size: int, drop: float = 0.0
) -> tuple[dict[str, np.ndarray], int]:
    """(pictures, uint8, and plans; their grid) of random scenes; a share of the plans is dropped for guidance."""
    grid = random_grid(rng)
    chosen = [s.sample(rng, grid) for _ in range(size)]
    plans = [
        layout.dropped_plan(grid, SCENES)
        if rng.random() < drop
        else layout.plan(c.wish, grid, c.pose, c.variant)
        for c in chosen
    ]
    return {"pictures": np.stack([s.render(c) for c in chosen]), **plan_arrays(plans)}, grid


Plans = tuple[Tensor, ...]
"""As PLAN names them."""


def on_device(arrays: dict[str, np.ndarray], device: str = "cpu") -> tuple[Tensor, Plans]:
    """Pictures (b, 3, h, w) in -1..1, and plans."""
    pictures = torch.from_numpy(arrays["pictures"]).to(device).permute(0, 3, 1, 2)
    return pictures.float() / 127.5 - 1.0, tuple(
        torch.from_numpy(arrays[name]).to(device) for name in PLAN
    )


def batch(rng: np.random.Generator, size: int, drop: float = 0.0) -> tuple[int, Tensor, Plans]:
    """(grid, pictures, plans) of random scenes."""
    arrays, grid = drawn(rng, size, drop)
    return grid, *on_device(arrays)


def paint_all(processes: int) -> None:
    """Paint every background there is, so that forked workers find them painted."""
    from training.pocket import backgrounds as b

    jobs = [(scene.key, variant, *size, *air)
            for number, scene in enumerate(v.scenes())
            for variant in range(layout.COMPOSITIONS)
            for size in layout.GRIDS
            for air in (AIR_KINDS if number in v.open_air() else AIR_KINDS[:1])]  # fmt: skip
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for job, picture in zip(jobs, pool.starmap(b.background, jobs, chunksize=8), strict=True):
            b.remember(job, picture)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none yet."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None
