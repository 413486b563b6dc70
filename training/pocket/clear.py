"""Which cell stands in for one with a cloud, the sun or the moon in it: clear.npz of the weights. Knows renders; no networks.

A place is drawn from a code a cell, clouds and all. Where a prompt wants none, a cell with cloud in it takes the code of
that cell of the same place and grid whose render is nearest to its own without. The moon of a night over a place, and the sun of a
sunset, are in the codes of the hour, and left out in the same way: `python -m training.pocket.clear`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from training.pocket import vocabulary as v
from training.pocket.backgrounds import background
from training.pocket.canvas import CELL_PX
from training.pocket.shipped import PACKAGE

from danqing.engine.families import pocket_layout as layout

SHOWN = 0.1  # mean of 255 by which a cell differs where there is anything to leave out
KINDS = ("cloud", "sun", "sun cloud", "moon")
HOURS = {"sun": "sunset", "moon": "night"}
_OVER = "meadow"  # the hour's codes are the same over every place


def _cells(scene: str, composition: int, grid: int, without: str = "", hour: int = 0) -> np.ndarray:
    """(cells, values) of a background."""
    rows, columns = layout.GRIDS[grid]
    picture = np.asarray(background(scene, composition, rows, columns, hour, without=without))
    parts = picture.reshape(rows, CELL_PX, columns, CELL_PX, 3).swapaxes(1, 2)
    return parts.reshape(rows * columns, -1).astype(np.float32)


def stand_ins(
    without: str, grids: Sequence[int] = range(len(layout.GRIDS))
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2): ground codes of cells that show it, and the codes to use instead; (scenes, compositions, grids): how far
    the worst of these is from what is wanted, mean of 255."""
    found: list[tuple[int, int]] = []
    worst = np.zeros((len(v.scenes()), layout.COMPOSITIONS, len(layout.GRIDS)), np.uint8)
    for number, scene in enumerate(v.scenes()[1:], 1):
        for grid in grids:
            compositions = range(layout.COMPOSITIONS)
            there = np.stack([_cells(scene.key, k, grid) for k in compositions])
            clear = np.stack([_cells(scene.key, k, grid, without) for k in compositions])
            codes = np.stack([layout.grounds(number, k, grid) for k in compositions])
            for place in zip(*np.nonzero(np.abs(there - clear).mean(2) > SHOWN), strict=True):
                apart = np.abs(there - clear[place]).mean(2)
                found.append((int(codes[place]), int(codes.flat[apart.argmin()])))
                at = (number, int(place[0]), grid)
                worst[at] = max(int(worst[at]), min(255, round(float(apart.min()))))
    return np.array(found, np.int32).reshape(-1, 2), worst


def hour_stand_ins(without: str, grids: Sequence[int] = range(len(layout.GRIDS))) -> np.ndarray:
    """(n, 2): codes of an hour's cells that show it, and the codes to use instead."""
    hour = layout.HOURS.index(HOURS[without])
    found: list[tuple[int, int]] = []
    for grid in grids:
        patterns = range(layout.AIR_PATTERNS)
        there = np.stack([_cells(_OVER, k, grid, hour=hour) for k in patterns])
        clear = np.stack([_cells(_OVER, k, grid, without, hour) for k in patterns])
        shown = np.abs(there - clear).mean(2)
        codes = np.stack([layout.airs(hour, 0, k, grid)[0] for k in patterns])
        for pattern, cell in zip(*np.nonzero(shown > SHOWN), strict=True):
            # The same cell of a pattern that shows nothing there, else its neighbour in the row.
            free = np.argwhere(shown <= SHOWN)
            away = np.abs(free[:, 1] - cell) + 0.5 * (free[:, 0] != pattern)
            instead = tuple(free[away.argmin()])
            found.append((int(codes[pattern, cell]), int(codes[instead])))
    return np.array(found, np.int32).reshape(-1, 2)


def write(folder: Path) -> None:
    """Make clear.npz of the weights in this folder."""
    arrays: dict[str, Any] = {}
    for kind in KINDS:
        arrays[kind], arrays[f"{kind}_worst"] = stand_ins(kind)
    for kind in HOURS:
        arrays[f"{kind}_hour"] = hour_stand_ins(kind)
    np.savez_compressed(folder / "clear.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder of the weights")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
