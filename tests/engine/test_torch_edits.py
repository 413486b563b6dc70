"""Edits by the torch families: diffusers' image-to-image step for step, masks to the pixel, and the seed law."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from diffusers import QwenImageImg2ImgPipeline  # noqa: E402
from diffusers.pipelines.qwenimage import pipeline_qwenimage_img2img  # noqa: E402

from danqing.domain.task import Pixels  # noqa: E402
from danqing.engine.families.flow import FlowFamily, FlowState, pack  # noqa: E402
from danqing.engine.messages import Job  # noqa: E402
from tests.engine.torch_families import FAMILIES, make_job  # noqa: E402

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
SEED_LAW = 1e-5


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def box(width: int, height: int) -> Any:
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 3 * 2 + 3, 5 : width // 2] = True
    return mask


def begin(family: FlowFamily, job: Job) -> FlowState:
    return family.start(job, family.encode([job])[0])


def finish(family: FlowFamily, state: FlowState) -> list[torch.Tensor]:
    found = []
    while state.step < state.job.steps_drawn:
        family.step([state])
        found.append(state.latents.clone())
    return found


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (6, 1.0), (10, 0.3)])
def test_qwen_images_edits_are_diffusers(
    steps: int, strength: float, families: Any, folders: dict[str, Path], monkeypatch: Any
) -> None:
    """diffusers draws the reference's latents by the seed; the likeliest ones are taken here on both sides."""
    monkeypatch.setattr(
        pipeline_qwenimage_img2img,
        "retrieve_latents",
        lambda out, generator=None: out.latent_dist.mode(),
    )
    pipeline = QwenImageImg2ImgPipeline.from_pretrained(folders["qwen_image"])
    pipeline.set_progress_bar_config(disable=True)
    reference = picture(96, 64)
    job = make_job(
        width=96, height=64, steps=steps, strength=strength, reference=reference, negative_prompt="blue"
    )  # fmt: skip
    seen: list[torch.Tensor] = []

    def look(_: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"][0].clone())
        return {}

    theirs = pipeline(
        prompt=job.prompt, negative_prompt=job.negative_prompt, true_cfg_scale=job.guidance,
        image=Image.fromarray(reference), strength=strength, width=96, height=64, num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(job.seed), output_type="np", callback_on_step_end=look,
    ).images[0]  # fmt: skip
    state = begin(families["qwen_image"], job)
    ours = finish(families["qwen_image"], state)
    assert len(ours) == len(seen) == job.steps_drawn
    for mine, other in zip(ours, seen, strict=True):
        assert (mine - other).abs().max() <= TOLERANCE
    pixels = families["qwen_image"].decode([state])[0]
    assert np.abs(pixels.astype(int) - (theirs * 255).round().astype(int)).max() <= 1


def test_cogview4_reads_a_reference_as_its_vae_does(families: Any, pipelines: Any) -> None:
    """There is no image-to-image pipeline of it: the beginning is flow matching's, over the VAE's own latents."""
    reference, pipeline = picture(64, 48), pipelines["cogview4"]
    job = make_job(width=64, height=48, steps=4, strength=0.5, reference=reference)
    state = begin(families["cogview4"], job)
    pixels = pipeline.image_processor.preprocess(Image.fromarray(reference))
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mode()[0]
    latents = latents * pipeline.vae.config.scaling_factor
    noise = torch.randn((1, 4, 6, 8), generator=torch.Generator().manual_seed(job.seed))[0]
    level = families["cogview4"].schedule(4, 12).sigmas[2]
    wanted = pack((1 - level) * latents + level * noise)
    assert (state.latents - wanted).abs().max() <= TOLERANCE
    assert (job.steps_drawn, state.schedule.sigmas[0], len(state.schedule.sigmas)) == (2, level, 3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_what_a_mask_keeps_is_the_reference_to_the_pixel(
    name: str, size: tuple[int, int], families: Any
) -> None:
    width, height = size
    reference, mask = picture(*size), box(*size)
    job = make_job(width=width, height=height, reference=reference, mask=mask, strength=1.0)
    state = begin(families[name], job)
    families[name].step([state])
    look = families[name].preview(state)
    finish(families[name], state)
    assert state.canvas is not None
    assert state.canvas.kept is not None
    kept = state.canvas.kept
    assert 0 < kept.float().mean() < 1
    assert torch.equal(state.latents[kept], state.canvas.latents[kept])  # no noise is left in it
    painted = families[name].decode([state])[0]
    for shown in (look, painted):
        np.testing.assert_array_equal(shown[~mask], reference[~mask])
    assert np.abs(painted[mask].astype(int) - reference[mask]).mean() > 4


@pytest.mark.parametrize("name", FAMILIES)
def test_no_strength_keeps_the_picture_and_more_leaves_it(name: str, families: Any) -> None:
    reference = picture(64, 64)
    family = families[name]
    distances = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        job = make_job(steps=8, reference=reference, strength=strength)
        state = begin(family, job)
        assert job.steps_drawn == max(1, round(8 * strength))
        assert state.canvas is not None
        distances.append(float((state.latents - state.canvas.latents).norm()))
        finish(family, state)
        if strength == 0:
            np.testing.assert_array_equal(family.decode([state])[0], reference)
    assert distances == sorted(distances)


EDITS = st.builds(
    make_job,
    prompt=st.sampled_from(["", "x", "a red apple", "a cat and a dog " * 6]),
    negative_prompt=st.sampled_from(["", "blue"]),
    width=st.just(48),
    height=st.just(40),
    steps=st.integers(1, 5),
    guidance=st.just(2.0),
    seed=st.integers(0, 2**31 - 1),
    reference=st.sampled_from([None, picture(48, 40, 1), picture(48, 40, 2)]),
    strength=st.floats(0, 1),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    jobs=st.lists(EDITS, min_size=2, max_size=5),
    name=st.sampled_from(list(FAMILIES)),
    masked=st.booleans(),
)
def test_an_edit_is_the_same_alone_and_in_any_company(
    jobs: list[Job], name: str, masked: bool, families: Any
) -> None:
    family: FlowFamily = families[name]
    if masked:
        jobs = [job if job.reference is None else replace(job, mask=box(48, 40)) for job in jobs]
    jobs = [job for job in jobs if family.batch_key(job) == family.batch_key(jobs[0])]
    solo = [begin(family, job) for job in jobs]
    for state in solo:
        finish(family, state)
    together = [begin(family, job) for job in jobs]
    while left := [state for state in together if state.step < state.job.steps_drawn]:
        family.step(left)
    for one, other in zip(solo, together, strict=True):
        assert (one.latents - other.latents).abs().max() <= SEED_LAW
