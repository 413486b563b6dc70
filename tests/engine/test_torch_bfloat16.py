"""bfloat16, in which families draw unless they are told otherwise: every one is loaded, drawn, edited and looked at in it, near float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from danqing.domain.pipelines import PIPELINES  # noqa: E402
from danqing.engine.families.base import preview_size  # noqa: E402
from danqing.engine.families.diffusers_pipeline import DiffusersPipeline  # noqa: E402
from danqing.engine.messages import Job  # noqa: E402
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402
from tests.engine.torch_pipelines import EDITING, KINDS, draw, job_of, picture, plain  # noqa: E402

pytestmark = pytest.mark.slow

ERROR_MAX = 0.2
"""Of the last latents by their norm. These networks are small and their weights wide: a few hundredths are usual, 0.3 with flux."""
PIXEL_ERROR_MAX = 0.4
"""Of the pixels' spread, in the mean."""


def relative(found: Any, wanted: Any) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def edits(job: Job) -> list[Job]:
    mask = np.arange(job.height)[:, None].repeat(job.width, 1) < job.height // 2
    reference = picture(job.width, job.height)
    return [replace(job, reference=reference, strength=0.6, mask=each) for each in (None, mask)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_in_bfloat16_what_it_draws_in_float32(
    name: str, folders: dict[str, Path], families: dict[str, Any]
) -> None:
    half = FAMILIES[name].load(folders[name], dtype="bfloat16")
    job = make_job(negative_prompt=" ")
    for each in (job, make_job(guidance=1.0, width=96, prompt="猫 " * 30)):
        error = relative(alone(half, each)[-1], alone(families[name], each)[-1])
        assert 0 < error < ERROR_MAX
    for each in [job, *edits(job)]:
        pixels = []
        for family in (half, families[name]):
            state = family.start(each, family.encode([each])[0])
            family.step([state])
            assert state.latents.dtype == torch.float32
            width, height = preview_size(each)
            assert family.preview(state).shape == (height, width, 3)
            while state.step < each.steps_drawn:
                family.step([state])
            assert family.is_finite(state)
            pixels.append(family.decode([state])[0].astype(float))
        assert np.abs(pixels[0] - pixels[1]).mean() < PIXEL_ERROR_MAX * pixels[1].std()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_draws_in_bfloat16_what_it_draws_in_float32(
    kind: str, pipeline_folders: dict[str, Path], pipeline_families: dict[str, Any]
) -> None:
    half = DiffusersPipeline.load(pipeline_folders[kind], pipeline=kind, dtype="bfloat16")
    job = job_of(kind, steps=3)
    for each in [job, *(edits(job) if kind in EDITING else [])]:
        latents, drawn = draw(half, each)
        wanted, whole = draw(pipeline_families[kind], each)
        assert 0 < relative(latents[-1], wanted[-1]) < (0.7 if kind == "flux" else ERROR_MAX)
        assert np.abs(drawn.astype(float) - whole).mean() < PIXEL_ERROR_MAX * whole.std()
    size = {"width": 64, "height": 64, "num_inference_steps": 3}
    theirs, _ = plain(
        pipeline_folders[kind], PIPELINES[kind].text_to_image, job, dtype=torch.bfloat16, **size
    )
    ours, _ = draw(half, job)
    assert (
        relative(ours[-1], theirs[-1].float()) < 0.01
    )  # as far off as diffusers' own is, and there
    state = half.start(job, half.encode([job])[0])
    half.step([state])
    width, height = preview_size(job)
    assert half.preview(state).shape == (height, width, 3)
