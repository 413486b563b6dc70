"""Skies without clouds or the sun: which cells' codes stand in for theirs. Knows plans and clear.npz; no words, no pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from danqing.engine.families import pocket_layout as layout

WELL = 4
"""Of 255: where the worst stand-in of a composition is further from what is wanted, another one is drawn."""


class Clear:
    """Made by training/pocket/clear.py, which says what is in the file."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as found:
            kinds = [name for name in found if not name.endswith("_worst")]
            self._instead = {kind: dict(found[kind].tolist()) for kind in kinds}
            self._worst = {kind: found[f"{kind}_worst"] for kind in kinds}

    def variant(self, without: str, scene: int, variant: int, grid: int) -> int:
        """The variant, or the next one whose composition can do without."""
        if not without or not scene:
            return variant
        worst = self._worst[without][scene, :, grid]
        around = [(variant + i) % layout.COMPOSITIONS for i in range(layout.COMPOSITIONS)]
        chosen = next((k for k in around if worst[k] <= WELL), int(worst.argmin()))
        return variant - variant % layout.COMPOSITIONS + chosen

    def plan(self, without: str, plan: layout.Plan) -> layout.Plan:
        """The plan with cells of clear sky in place of those that show what is not wanted."""
        instead = self._instead.get(without, {})
        grounds = [instead.get(code, code) for code in plan.grounds.tolist()]
        return replace(plan, grounds=np.array(grounds, np.int64))
