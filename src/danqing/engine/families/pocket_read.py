"""What a picture shows, in pocket's own terms: reads a reference into a wish. Knows latents and plans, no pixels.

Analysis by synthesis. The scene is the one whose bare drawing the least covered cells resemble; where the picture
differs from it, things stand; looks.npz names the likeliest, and the denoiser tells which of them, drawn in place,
would be this very picture. A picture of another origin resembles none, and the reading says that it is unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_sky import Sky

Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.bool_]
Guess = Callable[[Floats, float, Sequence[layout.Plan], int], Floats]
"""(latents, noise level, plans, grid) -> the denoiser's guess of the clean latents, one a plan."""

COLOURS = 13
BARE_SHARE = 0.45  # of a picture's cells show the scene, whatever stands before it
COVERED = 0.06  # mean square by which a cell differs from the scene where a thing stands
SCENE_ERROR_MAX = 0.06  # own pictures: 0.00 to 0.02; others from 0.12
ERROR_MAX = 0.12  # own pictures read rightly: 0.01 to 0.10; wrongly, and others: from 0.18
LEVEL = 0.9  # noise at which the denoiser says what it would draw
BATCH = 16
PLACEMENTS_TRIED, THINGS_TRIED, COLOURED = 3, 6, 3


@dataclass(frozen=True, slots=True)
class Ground:
    """The scene behind everything. `distances`: how far each cell is from it (mean square)."""

    scene: int
    variant: int
    mirrored: bool
    error: float
    distances: Floats
    hour: int = 0
    weather: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The things of a picture; thing 0 where nothing stands before the scene."""

    wish: layout.Wish
    pose: int
    is_sure: bool


class Reader:
    """Reads latents. What bare scenes look like is drawn once a grid, at first use."""

    def __init__(self, guess: Guess, sky: Sky, looks: Path) -> None:
        self._guess = guess
        self._known = (list(sky.fair()), list(sky.unfair()))
        self._grounds: dict[tuple[int, int], Floats] = {}
        self._looks: dict[int, Floats] = {}
        self._weights: dict[int, Floats] = {}
        with np.load(looks) as stored:
            for side in (3, 4, 5):
                self._looks[side] = stored[f"looks{side}"] * np.float32(stored["scale"])
                self._weights[side] = stored[f"weights{side}"].astype(np.float32)

    def ground(self, both: tuple[Floats, Floats], grid: int, known: Cells | None = None) -> Ground:
        """The scene of a picture, given as it is and mirrored. Only `known` cells are looked at.

        Fair days are tried first: other hours and weathers are many.
        """
        fair = self._nearest(both, grid, known, 0)
        if fair.error < SCENE_ERROR_MAX:
            return fair
        return min(fair, self._nearest(both, grid, known, 1), key=lambda ground: ground.error)

    def _nearest(
        self, both: tuple[Floats, Floats], grid: int, known: Cells | None, which: int
    ) -> Ground:
        found: Ground | None = None
        for mirrored, latents in enumerate(both):
            distances = ((self._bare(grid, which) - latents) ** 2).mean(2)
            seen = distances
            if known is not None and known.any():
                seen = distances[:, known[:, ::-1].reshape(-1) if mirrored else known.reshape(-1)]
            bare = max(1, round(BARE_SHARE * seen.shape[1]))
            errors = np.sort(seen, 1)[:, :bare].mean(1)
            best = int(errors.argmin())
            if found is None or errors[best] < found.error - 1e-6:
                scene, variant, hour, weather = self._known[which][best]
                error = float(errors[best])
                found = Ground(
                    scene, variant, bool(mirrored), error, distances[best], hour, weather
                )
        assert found is not None
        return found

    def things(self, latents: Floats, grid: int, ground: Ground) -> Reading:
        """What stands before the ground; `latents` mirrored as the ground is."""
        bare = layout.Wish(0, scene=ground.scene, hour=ground.hour, weather=ground.weather)
        covered = ground.distances > max(COVERED, 3 * ground.error)
        if covered.sum() < 3:
            return Reading(bare, 1, ground.error < SCENE_ERROR_MAX)
        rows, columns = layout.GRIDS[grid]
        candidates = [
            (replace(wish, scene=ground.scene, hour=ground.hour, weather=ground.weather), pose)
            for wish, pose, boxes in _placements(grid, covered.reshape(rows, columns))
            for wish in self._named(wish, boxes, latents.reshape(rows, columns, -1))
        ]
        if not candidates:
            return Reading(bare, 1, False)
        errors = self.errors(latents, grid, candidates, ground.variant)
        tinted = [
            (replace(candidates[best][0], colour=colour), candidates[best][1])
            for best in np.argsort(errors)[:COLOURED]
            for colour in range(COLOURS)
        ]
        errors = self.errors(latents, grid, tinted, ground.variant)
        wish, pose = tinted[int(errors.argmin())]
        sure = float(errors.min()) < ERROR_MAX and ground.error < SCENE_ERROR_MAX
        return Reading(wish, pose, sure)

    def errors(
        self, latents: Floats, grid: int, wishes: Sequence[tuple[layout.Wish, int]], variant: int
    ) -> Floats:
        """How far these latents are from what each (wish, pose) would make of them."""
        noise = np.random.default_rng(1).standard_normal(latents.shape, dtype=np.float32)
        noisy = (1 - LEVEL) * latents + LEVEL * noise
        plans = [layout.plan(wish, grid, pose, variant) for wish, pose in wishes]
        return ((self._drawn(noisy, LEVEL, plans, grid) - latents) ** 2).mean((1, 2))

    def _drawn(
        self, noisy: Floats, level: float, plans: Sequence[layout.Plan], grid: int
    ) -> Floats:
        parts = [plans[i : i + BATCH] for i in range(0, len(plans), BATCH)]
        return np.concatenate(
            [self._guess(np.stack([noisy] * len(part)), level, part, grid) for part in parts]
        )

    def _bare(self, grid: int, which: int) -> Floats:
        """Every scene without things, by fair days (0) or otherwise (1): (grounds, cells, channels)."""
        if (grid, which) not in self._grounds:
            plans = [
                layout.plan(
                    layout.Wish(0, scene=scene, hour=hour, weather=weather), grid, 1, variant
                )
                for scene, variant, hour, weather in self._known[which]
            ]
            rows, columns = layout.GRIDS[grid]
            shape = (rows * columns, self._looks[3].shape[2])
            noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            self._grounds[grid, which] = self._drawn(noise, 1.0, plans, grid)
        return self._grounds[grid, which]

    def _named(
        self, wish: layout.Wish, boxes: list[layout.Placement], cells: Floats
    ) -> Iterator[layout.Wish]:
        """The likeliest things for a placement."""
        likeness = [self._likeness(box, cells) for box in boxes]
        if wish.second:
            for first in np.argsort(-likeness[0])[: THINGS_TRIED // 2]:
                for second in np.argsort(-likeness[1])[: THINGS_TRIED // 2]:
                    yield replace(wish, thing=int(first) + 1, second=int(second) + 1)
            return
        for thing in np.argsort(-np.sum(likeness, axis=0))[:THINGS_TRIED]:
            yield replace(wish, thing=int(thing) + 1)
        if wish.count > 1:  # or the last of them is another thing
            for first in np.argsort(-np.sum(likeness[:-1], axis=0))[:2]:
                for second in np.argsort(-likeness[-1])[:3]:
                    if first != second:
                        yield layout.Wish(
                            int(first) + 1, wish.count - 1, second=int(second) + 1, relation=1
                        )

    def _likeness(self, box: layout.Placement, cells: Floats) -> Floats:
        """How like each thing the box is: a cosine, weighted by where a thing hides the ground."""
        area = cells[box.top : box.top + box.side, box.left : box.left + box.side]
        seen = area.reshape(1, box.side**2, -1)
        looks, weights = self._looks[box.side], self._weights[box.side][:, :, None]
        both = (looks * seen * weights).sum((1, 2))
        return both / np.sqrt(
            (looks**2 * weights).sum((1, 2)) * (seen**2 * weights).sum((1, 2)) + 1e-9
        )


def _placements(
    grid: int, covered: Cells
) -> Iterator[tuple[layout.Wish, int, list[layout.Placement]]]:
    """The arrangements that explain best which cells are covered, as (wish, pose, boxes)."""
    on = layout.RELATIONS.index("on")
    shapes = [layout.Wish(1, count) for count in range(1, layout.COUNT_MAX + 1)]
    shapes.append(layout.Wish(1, second=1, relation=on))
    scored: list[tuple[float, layout.Wish, int, list[layout.Placement]]] = []
    known: set[tuple[tuple[int, int, int], ...]] = set()
    for wish in shapes:
        for pose in range(layout.POSES):
            boxes = layout.place(wish, grid, pose)
            shape = tuple((box.left, box.top, box.side) for box in boxes)
            if shape in known or any(box.side < 3 for box in boxes):
                continue
            known.add(shape)
            inside = np.zeros_like(covered)
            for box in boxes:
                inside[box.top : box.top + box.side, box.left : box.left + box.side] = True
            hits, missed = (inside & covered).sum(), (covered & ~inside).sum()
            score = float(hits - 2 * missed - 0.5 * (inside & ~covered).sum())
            scored.append((score, wish, pose, boxes))
    scored.sort(key=lambda each: -each[0])
    for _, wish, pose, boxes in scored[:PLACEMENTS_TRIED]:
        yield wish, pose, boxes
