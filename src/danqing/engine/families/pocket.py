"""The embedded family: a small latent diffusion network in ONNX, drawn on CPU. Knows numpy and onnxruntime, no torch.

A prompt is read into a wish (pocket_text.py and text.onnx), the seed lays it out on a grid of cells
(pocket_layout.py), and the denoiser draws the plan from noise, step by step. An edit begins from its reference
(pocket_start.py) and ends in its pixels (pocket_edit.py).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from danqing.domain.task import Pixels
from danqing.engine.families import pocket_layout as layout
from danqing.engine.families.base import preview_size
from danqing.engine.families.pocket_clear import Clear
from danqing.engine.families.pocket_cut import without_ground
from danqing.engine.families.pocket_edit import Canvas, laid
from danqing.engine.families.pocket_prompt import Conditioning, Prompts
from danqing.engine.families.pocket_read import Reader
from danqing.engine.families.pocket_sky import Sky
from danqing.engine.families.pocket_start import Chance, Editor
from danqing.engine.families.pocket_words import Words
from danqing.engine.messages import Job
from danqing.engine.pixels import fit

Floats = npt.NDArray[np.float32]

WEIGHTS = Path(__file__).with_name("pocket_weights")
UPSCALED_PX = 40
"""Pixels a cell beyond which a picture is upscaled."""
LAST_LEVEL = 0.5
"""Noise at which the last step begins. Below it the network trusts what it has drawn over its plan, faults and all: renders were
met to 4.2 of 255 this way, to 4.6 by equal steps."""
GROUND_TO_CUT, GROUND_FOR_WHITE = 0, 4
"""Variants of the plain ground, near white and pale blue: before these, things are told apart best."""
OPEN_AIR = ("meadow", "beach", "sea", "mountains", "forest", "night", "sunset", "sky", "snow")


@dataclass(slots=True)
class PocketState:
    """One picture in the making."""

    job: Job
    step: int
    grid: int
    mirrored: bool
    plan: layout.Plan
    latents: Floats
    clean: Floats
    """The last guess of the finished latents, for previews."""
    level: float = 1.0
    """How much noise there was to begin with: less than 1 where a reference was kept in part."""
    canvas: Canvas | None = None
    """What an edit is laid on."""

    def noise_left(self, steps_done: int) -> float:
        """0-1, after so many steps: from what is left of them, so that the last begins at LAST_LEVEL (a flow's shift)."""
        steps = self.job.steps_drawn
        shift = max(1.0, (steps - 1) * LAST_LEVEL / (1 - LAST_LEVEL))
        left = 1 - steps_done / steps
        return self.level * shift * left / (1 + (shift - 1) * left)


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Between steps a spinning pool would take the CPU from the rest of the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def seeded(seed: int) -> np.random.Generator:
    """The generator of one picture; any integer is a seed."""
    return np.random.Generator(np.random.PCG64(seed % 2**64))


class Pocket:
    """The family `pocket`. Loading takes well under a second; nothing is downloaded."""

    name = "pocket"
    pixels_max: int | None = None

    def __init__(self, threads: int = 2, weights: Path = WEIGHTS) -> None:
        about = json.loads((weights / "pocket.json").read_text("utf-8"))
        self.channels: int = about["channels"]
        self._slots: list[str] = about["slots"]
        self.things: list[str] = about["things"]
        self.colours: list[str] = about["colours"]
        self.scenes: list[str] = about["scenes"]
        self._sky = Sky(self.scenes, about["open_air"])
        self._text = _session(weights / "text.onnx", threads)
        self._denoiser = _session(weights / "denoiser.onnx", threads)
        self._decoder = _session(weights / "decoder.onnx", threads)
        self._upscaler = _session(weights / "upscaler.onnx", threads)
        self._clear = Clear(weights / "clear.npz")
        self._weights = weights
        self._threads = threads
        self._editor: Editor | None = None  # made for the first edit
        self.prompts = Prompts(self._answers, Words(weights / "words.json"), self._sky)
        self._positions = [layout.positions(grid) for grid in range(len(layout.GRIDS))]

    def batch_key(self, job: Job) -> Hashable:
        """Pictures of one grid share steps, apart from those that need no guidance half."""
        return (self.name, layout.nearest_grid(job.width, job.height), job.guidance != 1.0)

    def beside(self) -> None:
        """Its networks take turns: each uses all cores of the CPU."""

    def measure(self, prompt: str) -> None:
        """It reads texts of any length."""

    def encode(self, jobs: Sequence[Job]) -> list[Conditioning]:
        return [self.prompts.asked(job.prompt, job.negative_prompt) for job in jobs]

    def start(self, job: Job, conditioning: Conditioning) -> PocketState:
        rng = seeded(job.seed)
        pose, variant = int(rng.integers(layout.POSES)), int(rng.integers(layout.VARIANTS))
        mirrored, elsewhere = bool(rng.integers(2)), int(rng.integers(len(OPEN_AIR)))
        wish = conditioning.wish
        if (
            job.reference is None and not conditioning.understood
        ):  # a landscape is better than an empty page
            places = [self.scenes.index(key) for key in OPEN_AIR]
            around = places[elsewhere:] + places[:elsewhere]
            wish = replace(wish, scene=next(k for k in around if k not in conditioning.nowhere))
        if (
            job.transparent and wish.thing
        ):  # the thing alone, before a ground that it can be told from
            wish = replace(wish, scene=0)
            is_white = self.colours[wish.colour] == "white"
            variant = GROUND_FOR_WHITE if is_white else GROUND_TO_CUT
        grid = layout.nearest_grid(job.width, job.height)
        rows, columns = layout.GRIDS[grid]
        noise = rng.standard_normal((rows * columns, self.channels), dtype=np.float32)
        latents, level, canvas = noise, 1.0, None
        if job.reference is None:
            variant = self._clear.variant(conditioning.without, wish.scene, variant, grid)
            plan = layout.plan(wish, grid, pose, variant)
        else:
            chance = Chance(pose, variant, mirrored, noise)
            begun = self._edits().begin(job, job.reference, wish, chance)
            plan, pose, variant, mirrored = begun.plan, begun.pose, begun.variant, begun.mirrored
            level, canvas = begun.level, begun.canvas
            latents = (1 - level) * canvas.latents + level * noise
        plan = self._clear.plan(conditioning.without, plan)
        return PocketState(job, 0, grid, mirrored, plan, latents, latents, level, canvas)

    def step(self, states: Sequence[PocketState]) -> None:
        """One denoising step of each: t runs from its level (1: noise) to 0 in job.steps_drawn equal steps.

        What a mask keeps is put back at every step, with the noise of that step: so the rest grows to fit it.
        """
        t = np.array([s.noise_left(s.step) for s in states], np.float32)
        after = np.array([s.noise_left(s.step + 1) for s in states], np.float32)
        clean = self._guided(states, t)
        for state, guess, left, keep in zip(states, clean, after, after / t, strict=True):
            canvas = state.canvas
            if canvas is not None and canvas.leash < 1:
                guess = canvas.latents + canvas.leash * (guess - canvas.latents)
            state.latents = keep * state.latents + (1 - keep) * guess
            if canvas is not None and canvas.kept is not None:
                known = (1 - left) * canvas.latents + left * canvas.noise
                state.latents = np.where(canvas.kept[:, None], known, state.latents)
                guess = np.where(canvas.kept[:, None], canvas.latents, guess)
            state.clean = guess
            state.step += 1

    def is_finite(self, state: PocketState) -> bool:
        return bool(np.isfinite(state.latents).all())

    def preview(self, state: PocketState) -> Pixels:
        """The guess under half as much noise as there are steps left.

        The guess alone is sharp from the first step on and would look finished; the noise tells how far it is.
        """
        left = 1 - state.step / state.job.steps_drawn
        noise = state.noise_left(state.step)
        share = 0.5 * state.level * left / noise if noise else 0.0
        look = state.clean + share * (state.latents - state.clean)
        shown = self._shown(state, look, *preview_size(state.job))
        if not state.job.transparent:
            return shown
        guess = self._shown(state, state.clean, *preview_size(state.job))
        return np.dstack([shown, _cut(state, guess)[:, :, 3]])

    def decode(self, states: Sequence[PocketState]) -> list[Pixels]:
        drawn = [
            self._shown(state, state.latents, state.job.width, state.job.height) for state in states
        ]
        return [
            _cut(state, pixels) if state.job.transparent else pixels
            for state, pixels in zip(states, drawn, strict=True)
        ]

    def _answers(self, tokens: npt.NDArray[np.int64]) -> dict[str, Floats]:
        found: Any = self._text.run(None, {"tokens": tokens})
        return {slot: answer[0] for slot, answer in zip(self._slots, found, strict=True)}

    def _guided(self, states: Sequence[PocketState], t: Floats) -> Floats:
        """The clean latents, away from what is drawn for no plan at all (guidance)."""
        latents = np.stack([s.latents for s in states])
        plans = [s.plan for s in states]
        guidance = np.array([s.job.guidance for s in states], np.float32)[:, None, None]
        guided = any(s.job.guidance != 1.0 for s in states)
        if guided:
            latents, t = np.concatenate([latents, latents]), np.concatenate([t, t])
            plans += [layout.dropped_plan(s.grid, len(self.scenes)) for s in states]
        clean = self.guess(latents, t, plans, states[0].grid)
        if not guided:
            return clean
        wanted, unwanted = np.split(clean, 2)
        return unwanted + guidance * (wanted - unwanted)

    def guess(self, latents: Floats, t: Floats, plans: Sequence[layout.Plan], grid: int) -> Floats:
        """The denoiser, once: what it takes the clean latents to be."""
        inputs: dict[str, Any] = {
            "latents": latents,
            "t": t,
            "contents": np.stack([p.contents for p in plans]),
            "grounds": np.stack([p.grounds for p in plans]),
            "airs": np.stack([p.airs for p in plans]),
            "colours": np.stack([p.colours for p in plans]),
            "place": np.array([(p.scene, p.variant, p.hour, p.weather) for p in plans], np.int64),
            "positions": self._positions[grid],
        }
        clean: Any = self._denoiser.run(None, inputs)[0]
        return clean

    def _edits(self) -> Editor:
        if self._editor is None:
            encoder = _session(self._weights / "encoder.onnx", self._threads)

            def encode(frame: Pixels) -> Floats:
                picture = frame.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
                inputs = {"picture": np.ascontiguousarray(picture)}
                latents: Any = encoder.run(None, inputs)[0]
                return np.ascontiguousarray(latents[0].reshape(self.channels, -1).T)

            def guess(latents: Floats, t: float, plans: Sequence[layout.Plan], grid: int) -> Floats:
                return self.guess(latents, np.full(len(plans), t, np.float32), plans, grid)

            reader = Reader(guess, self._sky, self._weights / "looks.npz")
            self._editor = Editor(reader, encode, self._sky)
        return self._editor

    def _shown(self, state: PocketState, latents: Floats, width: int, height: int) -> Pixels:
        """Latents as a picture of this size; an edit's, laid on its canvas."""
        canvas = state.canvas
        if canvas is not None and state.job.strength == 0:
            return fit(canvas.picture, width, height)
        drawn = fit(self._picture(state, latents, width, height), width, height)
        if canvas is None:
            return drawn
        before = None
        if canvas.adds_detail:
            before = fit(self._picture(state, canvas.latents, width, height), width, height)
        return laid(canvas, drawn, before)

    def _picture(self, state: PocketState, latents: Floats, width: int, height: int) -> Pixels:
        """Latents -> pixels, 32 a cell, or 128 where that is nearer to what is wanted.

        One at a time: batches gain nothing here on a CPU.
        """
        rows, columns = layout.GRIDS[state.grid]
        cells = latents.reshape(rows, columns, -1).transpose(2, 0, 1)[None]
        rgb: Any = self._decoder.run(None, {"latents": np.ascontiguousarray(cells)})[0]
        if max(width / columns, height / rows) > UPSCALED_PX:
            rgb = self._upscaler.run(None, {"small": np.clip(rgb, -1, 1)})[0]
        scaled = np.clip((rgb[0].transpose(1, 2, 0) + 1) * 127.5, 0, 255)
        pixels = np.round(scaled).astype(np.uint8)
        return np.ascontiguousarray(pixels[:, ::-1] if state.mirrored else pixels)


def _cut(state: PocketState, pixels: Pixels) -> Pixels:
    """Without the background, where it is one that can be told from the thing: a landscape stays as it is, opaque."""
    if state.plan.scene == 0:
        return without_ground(pixels)
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
