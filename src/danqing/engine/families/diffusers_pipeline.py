"""The family `diffusers_pipeline`: any other text-to-image checkpoint, by diffusers' own pipeline, run from step to step.

A pipeline's whole call is paused where its loop begins and after each of its steps (paused.py), so that the engine can
cancel it, show it, and do other images' steps in between. Every image has a scheduler and a generator of its own.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from danqing.domain.pipelines import PIPELINES, PipelineFacts
from danqing.domain.sizes import Size
from danqing.domain.task import Pixels
from danqing.engine.families.base import preview_size
from danqing.engine.families.colours import Colours, cells_of
from danqing.engine.families.diffusers_parts import Limits, Texts, driven, load_parts, takes
from danqing.engine.families.flow import SEEDS, memory_error, to_pixels
from danqing.engine.families.paused import Gate, Paused
from danqing.engine.families.streams import Streams
from danqing.engine.messages import Job
from danqing.engine.pixels import alpha_of, laid_over

STRENGTH_OFF_MAX = 0.05
"""How far from its strength an edit may be by the number of its steps."""
STEPS_MAX = 1000
PRACTICE_PX = 256
"""The side of the picture that teaches the colours of previews where none was drawn yet."""


@dataclass(slots=True)
class Seen:
    """What a pipeline's run tells while it goes on."""

    total: int = 0
    """Steps of its loop; they may be more than were asked for, by its scheduler's way of counting."""
    done: int = 0
    latents: Tensor | None = None
    clean: Tensor | None = None
    """The scheduler's guess at the finished latents."""
    stream: Any = None
    """On a graphics device: the stream of whoever moves the run."""


@dataclass(slots=True, eq=False)
class RunState:
    """One image in the making."""

    job: Job
    step: int
    run: Paused[Tensor]
    seen: Seen
    finite: bool = True
    clean: Tensor | None = field(default=None, repr=False)


class DiffusersPipeline:
    """A Family (see base.py). One image a step: the pipelines' loops cannot be shared."""

    name = "diffusers_pipeline"

    def __init__(
        self, facts: PipelineFacts, parts: Mapping[str, Any], device: torch.device
    ) -> None:
        """`parts`: the pipeline's arguments, its networks on the device."""
        self.facts = facts
        self._device = device
        self._limits = Limits(parts, facts)
        self._texts = Texts()
        self._reading = threading.RLock()
        self._painting = threading.RLock()
        """Of the VAE, whose precision some pipelines change while they encode a reference."""
        self.pixels_max: int | None = None
        self.overlaps = True
        """Let itself be called beside its steps."""
        self._streams = Streams(device)
        self._colours = Colours()
        kinds = (facts.text_to_image, facts.image_to_image, facts.inpaint)
        self._pipelines = {
            kind: driven(kind, parts, device, self._texts) for kind in kinds if kind is not None
        }

    @classmethod
    def load(
        cls, folder: Path, *, pipeline: str, device: str = "cpu", dtype: str = "float32",
        compiled: bool = False, text_device: str | None = None,
    ) -> DiffusersPipeline:  # fmt: skip
        """From a folder in diffusers' layout. `pipeline`: one of PIPELINES. Raises CheckpointError."""
        facts = PIPELINES[pipeline]
        place = {"device": device, "dtype": dtype, "text_device": text_device}
        return cls(
            facts, load_parts(folder, facts, compiled=compiled, **place), torch.device(device)
        )

    def batch_key(self, job: Job) -> Hashable:
        """What costs the same; nothing shares a step."""
        above = self.facts.negative_above
        guided = job.guidance > (1.0 if above is None else above)
        return (self.name, *self._drawn_size(job), guided, job.reference is not None)

    def measure(self, prompt: str) -> tuple[int, int]:
        return self._limits.measure(prompt)

    def beside(self) -> AbstractContextManager[None] | None:
        return self._streams.beside() if self.overlaps else None

    @memory_error
    def encode(self, jobs: Sequence[Job]) -> list[tuple[Paused[Tensor], Seen]]:
        """The pipelines, up to where their loops begin: prompts are read, references encoded, noise is drawn.

        Raises PromptTooLong, and ValueError for what the pipeline has no place for.
        """
        found = []
        for job in jobs:
            seen = Seen()
            run: Paused[Tensor] = Paused(self._call(job, seen), name=f"pipeline-{job.id}")
            with self._reading, nullcontext() if job.reference is None else self._painting:
                self._follows_here(seen)
                run.advance()
            found.append((run, seen))
        return found

    def start(self, job: Job, conditioning: tuple[Paused[Tensor], Seen]) -> RunState:
        return RunState(job, 0, *conditioning)

    @memory_error
    def step(self, states: Sequence[RunState]) -> None:
        """Raises MemoryError for more than one: they are split."""
        if len(states) > 1:
            raise MemoryError("one image at a time")
        state, seen = states[0], states[0].seen
        self._follows_here(seen)
        wanted = math.ceil(seen.total * (state.step + 1) / state.job.steps_drawn)
        while seen.done < wanted and state.run.advance():
            pass
        state.finite = seen.latents is None or bool(torch.isfinite(seen.latents).all())
        state.step += 1
        self._streams.stepped()

    def _follows_here(self, seen: Seen) -> None:
        """The run's thread, when it is moved next, works in this thread's stream."""
        if self._device.type == "cuda":
            seen.stream = torch.cuda.current_stream(self._device)

    def is_finite(self, state: RunState) -> bool:
        return state.finite

    @memory_error
    def preview(self, state: RunState) -> Pixels:
        """The scheduler's guess at the finished picture, its latents' colours as those of the pictures drawn before."""
        if not self._colours.is_learnt:
            self._practise(state.job)
        seen = state.seen
        latents = seen.latents if seen.clean is None else seen.clean
        assert latents is not None
        width, height = self._drawn_size(state.job)
        look = self._colours.look(cells_of(latents, (height, width)))
        rows = round(look.shape[0] * state.job.height / height)
        columns = round(look.shape[1] * state.job.width / width)
        small = Image.fromarray(np.ascontiguousarray(look[:rows, :columns]))
        resized = small.resize(preview_size(state.job), Image.Resampling.BICUBIC)
        return self._laid(state.job, np.asarray(resized))

    @memory_error
    def decode(self, states: Sequence[RunState]) -> list[Pixels]:
        return [self._decoded(state) for state in states]

    def _decoded(self, state: RunState) -> Pixels:
        with self._painting:
            self._follows_here(state.seen)
            rgb = state.run.finish()
        drawn = to_pixels(2 * rgb.float() - 1)
        if state.seen.latents is not None:
            self._colours.learn(cells_of(state.seen.latents, drawn.shape[:2]), drawn)
        return self._laid(state.job, drawn[: state.job.height, : state.job.width])

    @staticmethod
    def _laid(job: Job, drawn: Pixels) -> Pixels:
        """What a mask keeps is the reference, exactly; without strength all of it is."""
        if job.reference is None or (job.mask is None and job.strength > 0):
            return drawn
        if job.strength == 0 or job.mask is None:
            alpha = np.zeros((job.height, job.width, 1), np.float32)
        else:
            alpha = alpha_of(job.mask)
        return laid_over(job.reference, drawn, alpha)

    def _practise(self, like: Job) -> None:
        """Draw a small picture for its colours alone."""
        small = min(PRACTICE_PX, like.width, like.height)
        job = Job(
            id="practice", task_id="practice", account_id="", prompt="", negative_prompt="",
            width=small, height=small, steps=1, guidance=like.guidance, seed=0,
        )  # fmt: skip
        with self._reading, self._painting:
            state = self.start(job, self.encode([job])[0])
            self.step([state])
            self._decoded(state)

    def _drawn_size(self, job: Job) -> tuple[int, int]:
        """(width, height): the job's, on the pipeline's grid."""
        return self.facts.drawn(Size(job.width, job.height))

    def _call(self, job: Job, seen: Seen) -> Any:
        """The pipeline's run for a job, for Paused: -> the picture, 3 x H x W in 0..1."""
        pipeline = self._pipelines[self._kind(job)]
        options = {
            name: value for name, value in self._options(job).items() if takes(pipeline, name)
        }

        def call(gate: Gate[Tensor]) -> Tensor:
            def on_step(latents: Tensor) -> None:
                seen.latents, seen.done = latents, seen.done + 1
                wait()

            def on_begin(total: int) -> None:
                seen.total = total
                wait()

            def wait() -> None:
                gate.pause()
                if seen.stream is not None:
                    torch.cuda.set_stream(seen.stream)

            mine = copy.copy(pipeline)
            mine.__dict__["scheduler"] = _watched(copy.deepcopy(pipeline.scheduler), seen)
            mine.__dict__["on_begin"] = on_begin
            if takes(pipeline, "callback_on_step_end"):
                hook = {
                    "callback_on_step_end": lambda _, i, t, values: on_step(values["latents"]) or {}
                }
            else:
                hook = {"callback": lambda i, t, latents: on_step(latents), "callback_steps": 1}
            # Its latents may have been made in another stream, by a call that has ended there.
            with nullcontext() if seen.stream is None else torch.cuda.stream(seen.stream):
                return mine(**options, **hook)[0][0]

        return call

    def _options(self, job: Job) -> dict[str, Any]:
        """The call's arguments, those that the pipeline has of them."""
        facts = self.facts
        width, height = self._drawn_size(job)
        options: dict[str, Any] = {
            "prompt": job.prompt, "width": width, "height": height, "num_inference_steps": job.steps,
            "guidance_scale": job.guidance, "output_type": "pt", "return_dict": False,
            "generator": torch.Generator("cpu").manual_seed(job.seed % SEEDS),
            "use_resolution_binning": False, "clean_caption": False,
        }  # fmt: skip
        if job.negative_prompt:
            if not facts.takes_negative(job.guidance):
                fault = f"{facts.text_to_image} has no negative prompt at guidance {job.guidance}"
                raise ValueError(fault)
            options["negative_prompt"] = job.negative_prompt
        if job.reference is not None:
            options["image"] = Image.fromarray(_padded(job.reference, width, height))
            steps, options["strength"] = how_far(job)
            if takes(self._pipelines[str(self._kind(job))], "strength"):
                options["num_inference_steps"] = steps
            if job.mask is not None:
                mask = _padded(job.mask, width, height).astype(np.uint8) * 255
                options["mask_image"] = Image.fromarray(mask)
        return options

    def _kind(self, job: Job) -> str:
        """The pipeline's class for a job."""
        kind = self.facts.text_to_image
        if job.reference is not None:
            kind = self.facts.inpaint if job.mask is not None else self.facts.image_to_image
        if kind is None:
            what = "a mask" if job.mask is not None else "a picture"
            raise ValueError(f"{self.facts.text_to_image} cannot begin with {what}")
        return kind


def how_far(job: Job) -> tuple[int, float]:
    """(steps, strength) of which a pipeline, whichever way it rounds, makes `job.steps_drawn` steps: their product is whole.

    With few steps none of them is near the job's strength: then they are as many as bring it there.
    """
    drawn, steps = job.steps_drawn, job.steps
    if job.strength > 0 and abs(drawn / steps - job.strength) > STRENGTH_OFF_MAX:
        steps = min(STEPS_MAX, max(drawn + 1, round(drawn / job.strength)))
    near = drawn / steps
    for strength in (near, math.nextafter(near, 2), math.nextafter(near, 0)):
        if steps * strength == drawn:
            return steps, strength
    return steps, near


def _padded(picture: Any, width: int, height: int) -> Any:
    """Drawn out at the right and the bottom by its own edge."""
    down, across = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, [(0, down), (0, across), *[(0, 0)] * (picture.ndim - 2)], mode="edge")


def _watched(scheduler: Any, seen: Seen) -> Any:
    """The same scheduler, whose steps leave their guess at the finished latents in `seen`."""
    kind = type(scheduler)

    @functools.wraps(kind.step)  # pipelines look at its signature
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        found = kind.step(self, model_output, timestep, sample, *args, **kwargs)
        seen.clean = _clean(self, model_output, sample, found)
        return found

    scheduler.__class__ = type(
        kind.__name__, (kind,), {"step": step, "__module__": kind.__module__}
    )
    return scheduler


def _clean(scheduler: Any, model_output: Tensor, sample: Tensor, found: Any) -> Tensor | None:
    """What the scheduler, after a step, takes for the finished latents; None where it does not say."""
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        sigma = scheduler.sigmas[scheduler.step_index - 1]
        return sample.float() - float(sigma) * model_output.float()
    if isinstance(found, tuple) and len(found) > 1 and isinstance(found[1], Tensor):
        return found[1]
    kept = getattr(scheduler, "model_outputs", None)  # DPM-Solver's, in its ++ form
    is_clean = getattr(scheduler.config, "algorithm_type", "").endswith("++")
    return kept[-1] if kept and is_clean and isinstance(kept[-1], Tensor) else None
