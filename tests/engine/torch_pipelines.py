"""What the tests of `diffusers_pipeline` share: jobs as each pipeline takes them, and the plain pipeline's picture. Needs torch and diffusers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from danqing.domain.pipelines import PIPELINES
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline, RunState
from danqing.engine.messages import Job
from tests.engine.torch_families import make_job

KINDS = ("sd", "sdxl", "sd3", "flux", "flux2_klein", "z_image", "pixart_sigma", "sana")
EDITING = tuple(kind for kind in KINDS if PIPELINES[kind].edits)
GUIDED = tuple(kind for kind in KINDS if PIPELINES[kind].negative_above is not None)


def job_of(kind: str, **fields: Any) -> Job:
    """A job that the pipeline can draw: distilled ones unguided."""
    fields = {"prompt": "red cat", "guidance": 1.0 if kind == "flux2_klein" else 3.5} | fields
    return make_job(**fields)


def draw(family: DiffusersPipeline, job: Job) -> tuple[list[torch.Tensor], np.ndarray]:
    """Alone: the latents after each step, and the picture."""
    state = family.start(job, family.encode([job])[0])
    seen = []
    while state.step < job.steps_drawn:
        family.step([state])
        seen.append(latents_of(state))
    return seen, family.decode([state])[0]


def latents_of(state: RunState) -> torch.Tensor:
    assert state.seen.latents is not None
    return state.seen.latents.clone()


@functools.cache
def _loaded(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    pipeline = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain(
    folder: Path, kind: str, job: Job, *, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list[torch.Tensor], np.ndarray]:
    """The same by diffusers' pipeline, loaded and called as its documentation has it; the picture in 0..255."""
    pipeline = _loaded(folder, kind, dtype)
    seen: list[torch.Tensor] = []

    def look(_: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return {}

    if kind == "PixArtSigmaPipeline":
        options |= {"use_resolution_binning": False, "clean_caption": False}
        options |= {"callback": lambda i, t, latents: seen.append(latents.clone())}
    else:
        options |= {"callback_on_step_end": look}
    if kind == "SanaPipeline":
        options |= {"use_resolution_binning": False}
    if job.negative_prompt:
        options["negative_prompt"] = job.negative_prompt
    image = pipeline(
        prompt=job.prompt, guidance_scale=job.guidance, output_type="np",
        generator=torch.Generator("cpu").manual_seed(job.seed), **options,
    ).images[0]  # fmt: skip
    return seen, image * 255


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
