"""Which cell stands in for one with a cloud or the sun in it: clear.npz of the weights. Knows renders; no networks.

A place is drawn from a code a cell, clouds and all. Where a prompt wants none, a cell with cloud in it takes the code of
that cell of the same place and grid whose render is nearest to its own without: `python -m training.pocket.clear`.
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
KINDS = ("cloud", "sun", "sun cloud")


def _cells(scene: str, composition: int, grid: int, without: str = "") -> np.ndarray:
    """(cells, values) of a background."""
    rows, columns = layout.GRIDS[grid]
    picture = np.asarray(background(scene, composition, rows, columns, without=without))
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


def write(folder: Path) -> None:
    """Make clear.npz of the weights in this folder."""
    arrays: dict[str, Any] = {}
    for kind in KINDS:
        arrays[kind], arrays[f"{kind}_worst"] = stand_ins(kind)
    np.savez_compressed(folder / "clear.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="folder of the weights")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
