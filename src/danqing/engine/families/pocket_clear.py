"""Skies without clouds, the sun or the moon: which cells' codes stand in for theirs. Knows plans and clear.npz; no words, no pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from danqing.engine.families import pocket_layout as layout

WELL = 4
"""Of 255: where the worst stand-in of a composition is further from what is wanted, another one is drawn."""


class Clear:
    """Made by training/pocket/clear.py, which says what is in the file. `without`: as `pocket_text.sky_of` has it."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as found:
            self._worst = {name: found[name] for name in found if name.endswith("_worst")}
            self._instead = {
                name: dict(found[name].tolist()) for name in found if name not in self._worst
            }

    def variant(self, without: str, scene: int, variant: int, grid: int) -> int:
        """The variant, or the next one whose composition can do without."""
        if not without or not scene:
            return variant
        worst = np.max(
            [self._worst[f"{kind}_worst"][scene, :, grid] for kind in _kinds(without)], axis=0
        )
        around = [(variant + i) % layout.COMPOSITIONS for i in range(layout.COMPOSITIONS)]
        chosen = next((k for k in around if worst[k] <= WELL), int(worst.argmin()))
        return variant - variant % layout.COMPOSITIONS + chosen

    def plan(self, without: str, plan: layout.Plan) -> layout.Plan:
        """The plan with cells of clear sky in place of those that show what is not wanted."""
        grounds = self._replaced(plan.grounds, _kinds(without))
        airs = self._replaced(plan.airs, [f"{kind}_hour" for kind in without.split()])
        return replace(plan, grounds=grounds, airs=airs)

    def _replaced(self, codes: np.ndarray, tables: list[str]) -> np.ndarray:
        instead = {k: v for table in tables for k, v in self._instead.get(table, {}).items()}
        found = [instead.get(code, code) for code in codes.reshape(-1).tolist()]
        return np.array(found, np.int64).reshape(codes.shape)


def _kinds(without: str) -> list[str]:
    """The tables of grounds: sun and clouds have one together."""
    said = without.split()
    day = " ".join(kind for kind in said if kind != "moon")
    return [kind for kind in (day, "moon" if "moon" in said else "") if kind]
