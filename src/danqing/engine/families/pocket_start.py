"""How an edit begins: what of its reference stays, what its prompt changes, and where. Knows plans and latents, no session.

A prompt changes what it names and leaves the rest as the reference has it: its scene, its things, where they stand. A
prompt that names nothing asks for a variation: the same things and scene, placed anew by the seed. A picture that
cannot be read (of another origin) is varied itself, in framing and tones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from danqing.domain.task import Pixels
from danqing.engine.families import pocket_edit as edit
from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.pocket_cut import filled
from danqing.engine.families.pocket_read import (
    SCENE_ERROR_MAX,
    Cells,
    Floats,
    Ground,
    Reader,
    Reading,
)
from danqing.engine.families.pocket_sky import Sky
from danqing.engine.messages import Job
from danqing.engine.pixels import alpha_of

LEVEL_MIN = 0.02
"""The least noise an edit starts from; strength 0 keeps the picture whatever comes out."""
STRENGTH_FREE = 0.5
"""The network trusts its plan over what it sees, so that little noise already means a new picture: strengths below
this one hold it back."""
LEVEL_VARIED = 0.15
"""Noise, at full strength, that leaves a picture of another origin recognisable."""
READINGS_MAX = 4


@dataclass(frozen=True, slots=True)
class Chance:
    """What the seed says of a picture."""

    pose: int
    variant: int
    mirrored: bool
    noise: Floats


@dataclass(frozen=True, slots=True)
class Beginning:
    """An edit about to be drawn. `level`: how much noise it starts from, 0-1."""

    plan: layout.Plan
    pose: int
    variant: int
    mirrored: bool
    level: float
    canvas: edit.Canvas


@dataclass(slots=True)
class _Seen:
    """A reference as latents, as it is and mirrored, and what was read in it."""

    both: tuple[Floats, Floats]
    ground: Ground
    reading: Reading | None = None


class Editor:
    """`encode`: framed pixels -> latents, one a cell. What was read of a reference is kept for its other images."""

    def __init__(self, reader: Reader, encode: Callable[[Pixels], Floats], sky: Sky) -> None:
        self._reader = reader
        self._encode = encode
        self._sky = sky
        self._recent: OrderedDict[tuple[object, ...], _Seen] = OrderedDict()

    def begin(self, job: Job, picture: Pixels, wish: layout.Wish, chance: Chance) -> Beginning:
        """`picture`: the job's reference."""
        grid = layout.nearest_grid(job.width, job.height)
        cells = None if job.mask is None else edit.repainted_cells(job.mask, grid)
        seen = self._look(picture, grid, cells)
        if cells is not None:
            return self._masked(job, picture, wish, chance, seen, cells)
        if wish.thing:
            return self._redrawn(job, picture, wish, chance, seen)
        if seen.reading is None:
            ground = seen.ground
            seen.reading = self._reader.things(seen.both[ground.mirrored], grid, ground)
        if seen.reading.is_sure:
            return self._reread(job, picture, wish, chance, seen, seen.reading)
        if wish.scene:  # nothing of the picture is known: the scene is all there is to draw
            plan = layout.plan(wish, grid, chance.pose, chance.variant)
            return _beginning(
                job, picture, seen, plan, chance, (chance.pose, chance.variant, chance.mirrored)
            )
        return self._varied(job, picture, chance, grid)

    def _look(self, picture: Pixels, grid: int, cells: Cells | None) -> _Seen:
        kept = None if cells is None else ~cells
        mark = blake2b(np.ascontiguousarray(picture).data).digest()
        key = (mark, grid, b"" if kept is None else kept.tobytes())
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        frame = edit.framed(picture, grid)
        both = (self._encode(frame), self._encode(frame[:, ::-1]))
        seen = self._recent[key] = _Seen(both, self._reader.ground(both, grid, kept))
        if len(self._recent) > READINGS_MAX:
            self._recent.popitem(last=False)
        return seen

    def _masked(
        self,
        job: Job,
        picture: Pixels,
        wish: layout.Wish,
        chance: Chance,
        seen: _Seen,
        cells: Cells,
    ) -> Beginning:
        """What the prompt names goes into the mask, before the scene around it.

        Where that scene is none of pocket's own the hole is filled from its edges, and the thing put before that.
        """
        assert job.mask is not None
        grid, ground = layout.nearest_grid(job.width, job.height), seen.ground
        is_strange = not wish.scene and ground.error > SCENE_ERROR_MAX
        if is_strange:
            ground = replace(ground, scene=0, variant=chance.variant)
        wish = self._set_in(wish, ground)
        variant = ground.variant if wish.scene == ground.scene else chance.variant
        mirrored = ground.mirrored if ground.scene else chance.mirrored
        turned = cells[:, ::-1] if mirrored else cells
        area = edit.area_of(turned)
        if area is not None:
            wish = edit.that_fits(wish, area)
        plan = layout.plan(wish, grid, chance.pose, variant, area)
        begun = _beginning(job, picture, seen, plan, chance, (chance.pose, variant, mirrored))
        begun.canvas.alpha = alpha_of(job.mask)
        if is_strange:  # nothing of the picture may show in what is cut out
            begun.canvas.filled, begun.canvas.leash = filled(picture, job.mask), 1.0
            return replace(begun, level=1.0)
        begun.canvas.kept = ~turned.reshape(-1)
        return begun

    def _redrawn(
        self, job: Job, picture: Pixels, wish: layout.Wish, chance: Chance, seen: _Seen
    ) -> Beginning:
        """Other things, standing where the reference's stand."""
        grid, ground = layout.nearest_grid(job.width, job.height), seen.ground
        wish = self._set_in(wish, ground)
        variant = ground.variant if wish.scene == ground.scene else chance.variant
        sides = (ground.mirrored,) if ground.scene else (False, True)
        poses = [(wish, pose) for pose in range(layout.POSES)]
        tried = [
            (float(error), pose, mirrored)
            for mirrored in sides
            for pose, error in enumerate(
                self._reader.errors(seen.both[mirrored], grid, poses, variant)
            )
        ]
        _, pose, mirrored = min(tried)
        plan = layout.plan(wish, grid, pose, variant)
        return _beginning(job, picture, seen, plan, chance, (pose, variant, mirrored))

    def _reread(
        self,
        job: Job,
        picture: Pixels,
        wish: layout.Wish,
        chance: Chance,
        seen: _Seen,
        reading: Reading,
    ) -> Beginning:
        """The reference's own things: in another colour or scene, or all of it once more, by the seed."""
        ground = seen.ground
        wanted = self._set_in(wish, ground)
        scene = wanted.scene
        found = replace(
            reading.wish, colour=wish.colour or reading.wish.colour, scene=scene,
            hour=wanted.hour, weather=wanted.weather,
        )  # fmt: skip
        if wish.scene or wish.colour:
            variant = ground.variant if scene == ground.scene else chance.variant
            where = (reading.pose, variant, ground.mirrored)
        else:
            where = (chance.pose, chance.variant, chance.mirrored)
        grid = layout.nearest_grid(job.width, job.height)
        plan = layout.plan(found, grid, where[0], where[1])
        return _beginning(job, picture, seen, plan, chance, where)

    def _set_in(self, wish: layout.Wish, ground: Ground) -> layout.Wish:
        """The wish in its own place, or in the reference's, under what is said of hour and weather."""
        set_in = self._sky.over(wish, ground.scene)
        if not wish.scene and not (wish.hour or wish.weather):
            set_in = replace(set_in, hour=ground.hour, weather=ground.weather)
        return set_in

    def _varied(self, job: Job, picture: Pixels, chance: Chance, grid: int) -> Beginning:
        rng = np.random.default_rng(job.seed % 2**64)
        picture = edit.reframed(picture, rng, job.strength)
        latents = self._encode(edit.framed(picture, grid))
        canvas = edit.Canvas(picture, latents, chance.noise, adds_detail=True)
        plan = layout.dropped_plan(grid, self._sky.scenes)
        level = max(LEVEL_MIN, LEVEL_VARIED * job.strength)
        return Beginning(plan, chance.pose, chance.variant, False, level, canvas)


def _beginning(
    job: Job,
    picture: Pixels,
    seen: _Seen,
    plan: layout.Plan,
    chance: Chance,
    where: tuple[int, int, bool],
) -> Beginning:
    pose, variant, mirrored = where
    leash = min(1.0, job.strength / STRENGTH_FREE)
    canvas = edit.Canvas(picture, seen.both[mirrored], chance.noise, leash)
    return Beginning(plan, pose, variant, mirrored, max(LEVEL_MIN, job.strength), canvas)
