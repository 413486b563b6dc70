"""Draws every thing of pocket once by its own networks and keeps the latents, by which it reads references.

Needs the exported weights and no torch: `python -m training.pocket.looks`. To be run again after every export.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket import WEIGHTS, Pocket
from danqing.engine.messages import Job

COUNT_OF_SIDE = {5: 1, 4: 2, 3: 3}  # on the square grid, so many things are so many cells high
NOISE_SEED = 0


def looks(pocket: Pocket, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(things, side * side, channels) of every thing's cells, and how much of each cell it hides (sum 1)."""
    count = COUNT_OF_SIDE[side]
    box = layout.place(layout.Wish(1, count), 0, 1)[0]
    rows, columns = layout.GRIDS[0]
    cells = np.arange(rows * columns).reshape(rows, columns)
    mine = cells[box.top : box.top + side, box.left : box.left + side].reshape(-1)
    shape = (1, rows * columns, pocket.channels)
    noise = np.random.default_rng(NOISE_SEED).standard_normal(shape, dtype=np.float32)

    def drawn(wish: layout.Wish) -> np.ndarray:
        plan = layout.plan(wish, 0, 1, 0)
        return pocket.guess(noise, np.ones(1, np.float32), [plan], 0)[0, mine]

    bare = drawn(layout.Wish(0))
    found = np.stack([drawn(layout.Wish(k, count)) for k in range(1, len(pocket.things))])
    hidden = ((found - bare) ** 2).mean(2)
    return found, hidden / hidden.sum(1, keepdims=True)


def write(folder: Path) -> None:
    """Make looks.npz of the weights in this folder."""
    pocket = Pocket(weights=folder)
    made = {side: looks(pocket, side) for side in COUNT_OF_SIDE}
    scale = max(float(np.abs(found).max()) for found, _ in made.values()) / 127
    arrays: dict[str, Any] = {"scale": np.float32(scale)}
    for side, (found, weights) in made.items():
        arrays[f"looks{side}"] = np.round(found / scale).astype(np.int8)
        arrays[f"weights{side}"] = weights.astype(np.float16)
    np.savez_compressed(folder / "looks.npz", **arrays)


def check(pocket: Pocket, pictures: int) -> Counter[str]:
    """Draw random plans, read them back, and count what was right."""
    rng = np.random.default_rng(NOISE_SEED)
    right: Counter[str] = Counter()
    for _ in range(pictures):
        tint = int(rng.integers(1, 13)) if rng.random() < 0.3 else 0
        count, scene = int(rng.choice([1, 1, 1, 2, 3])), int(rng.integers(len(pocket.scenes)))
        wish = layout.Wish(int(rng.integers(1, len(pocket.things))), count, tint, scene=scene)
        plan = layout.plan(wish, 0, int(rng.integers(layout.POSES)), int(rng.integers(4)))
        job = Job("", "", "", "", "", 256, 256, 8, 1.0, int(rng.integers(2**31)))
        state = pocket.start(job, pocket.encode([job])[0])
        state.plan = plan
        for _ in range(job.steps):
            pocket.step([state])
        asked = replace(job, reference=pocket.decode([state])[0], strength=0.5)
        found = pocket.start(asked, pocket.encode([asked])[0])
        told = "tinted" if tint else "plain"
        same = set(found.plan.contents) == set(plan.contents)
        sure = found.canvas is not None and not found.canvas.adds_detail
        right[f"{told}: drawn"] += 1
        right[f"{told}: scene right"] += sure and found.plan.scene == scene
        right[f"{told}: things right"] += sure and same
        right[f"{told}: sure but wrong"] += sure and not (same and found.plan.scene == scene)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--check", type=int, default=0, metavar="N", help="only read N pictures")
    asked = parser.parse_args()
    if asked.check:
        for name, count in sorted(check(Pocket(weights=asked.weights), asked.check).items()):
            print(f"{name}: {count}")
    else:
        write(asked.weights)


if __name__ == "__main__":
    main()
