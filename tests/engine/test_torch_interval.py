"""Guidance kept to an interval of noise levels: step by step what plain loops over diffusers' networks give, alone and in any company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine extra: make install-engine")
pytest.importorskip("diffusers", reason="the engine extra: make install-engine")

from diffusers.pipelines.cogview4 import pipeline_cogview4  # noqa: E402
from diffusers.pipelines.qwenimage import pipeline_qwenimage  # noqa: E402

from danqing.engine.families.flow import FlowFamily, pack, unpack  # noqa: E402
from danqing.engine.messages import Job  # noqa: E402
from tests.engine.torch_families import FAMILIES, alone, make_job  # noqa: E402

pytestmark = pytest.mark.slow

TOLERANCE, SEED_LAW = 1e-4, 1e-5
JOB: dict[str, Any] = {"negative_prompt": "blue", "steps": 6, "guidance": 5.0, "width": 96}
INTERVALS = [(0.0, 1.0), (0.3, 0.9), (0.0, 0.5), (0.5, 1.0), (0.99999, 1.0)]


def cogview4_loop(pipeline: Any, job: Job, noise: torch.Tensor) -> list[torch.Tensor]:
    wanted, unwanted = pipeline.encode_prompt(
        job.prompt, job.negative_prompt, do_classifier_free_guidance=True
    )
    tokens = noise.shape[1] * noise.shape[2] // 4
    times = np.linspace(1000, 1.0, job.steps).astype(np.int64).astype(np.float32)
    mu = pipeline_cogview4.calculate_shift(tokens, 256, 0.25, 0.75)
    pipeline.scheduler.set_timesteps(sigmas=times / 1000, timesteps=times, mu=mu)
    size = torch.tensor([[float(job.height), float(job.width)]])

    def network(latents: torch.Tensor, text: torch.Tensor, time: Any) -> torch.Tensor:
        corner = torch.zeros(1, 2)
        return pipeline.transformer(latents, text, time.expand(1), size, size, corner).sample

    latents, found = noise[None], []
    for time, level in zip(pipeline.scheduler.timesteps, pipeline.scheduler.sigmas, strict=False):
        velocity = network(latents, wanted, time)
        if job.guidance_interval[0] <= float(level) <= job.guidance_interval[1]:
            other = network(latents, unwanted, time)
            velocity = other + job.guidance * (velocity - other)
        latents = pipeline.scheduler.step(velocity, time, latents).prev_sample
        found.append(pack(latents[0]))
    return found


def qwen_loop(pipeline: Any, job: Job, noise: torch.Tensor) -> list[torch.Tensor]:
    grid = noise.shape[1] // 2, noise.shape[2] // 2
    mu = pipeline_qwenimage.calculate_shift(grid[0] * grid[1], 256, 8192, 0.5, 0.9)
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / job.steps, job.steps), mu=mu)

    def network(latents: torch.Tensor, text: str, time: Any) -> torch.Tensor:
        embedding, mask = pipeline.encode_prompt(prompt=text)
        return pipeline.transformer(
            hidden_states=latents, timestep=time.expand(1) / 1000, encoder_hidden_states=embedding,
            encoder_hidden_states_mask=mask, img_shapes=[[(1, *grid)]],
        ).sample  # fmt: skip

    latents, found = pack(noise)[None], []
    for time, level in zip(pipeline.scheduler.timesteps, pipeline.scheduler.sigmas, strict=False):
        velocity = network(latents, job.prompt, time)
        if job.guidance_interval[0] <= float(level) <= job.guidance_interval[1]:
            other = network(latents, job.negative_prompt, time)
            guided = other + job.guidance * (velocity - other)
            velocity = guided * velocity.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)  # fmt: skip
        latents = pipeline.scheduler.step(velocity, time, latents).prev_sample
        found.append(latents[0])
    return found


LOOPS = {"cogview4": cogview4_loop, "qwen_image": qwen_loop}


@pytest.mark.parametrize("interval", INTERVALS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_step_is_a_plain_loops(
    name: str, interval: tuple[float, float], families: Any, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    family: FlowFamily = families[name]
    segments: list[int] = []
    velocity = type(family.denoiser).velocity

    def counted(self: Any, latents: Any, *rest: Any) -> Any:
        segments.append(len(latents))
        return velocity(self, latents, *rest)

    monkeypatch.setattr(type(family.denoiser), "velocity", counted)
    job = make_job(**JOB, guidance_interval=interval)
    state = family.start(job, family.encode([job])[0])
    noise = unpack(state.latents, state.grid)
    ours = alone(family, job)
    levels = state.schedule.sigmas[:-1]
    guided = [interval[0] <= level <= interval[1] for level in levels]
    assert segments == [2 if each else 1 for each in guided], (
        "a step beyond the interval costs half"
    )
    assert any(guided)
    assert all(guided) is (interval == (0.0, 1.0))
    with torch.no_grad():
        theirs = LOOPS[name](pipelines[name], job, noise)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_jobs_of_unlike_intervals_share_steps(name: str, families: Any) -> None:
    """In one forward: members in both halves, in one, and unguided at that step."""
    family: FlowFamily = families[name]
    jobs = [
        make_job(
            **JOB | {"seed": i, "steps": 4 + i, "prompt": "猫 " * 4 * i}, guidance_interval=each
        )
        for i, each in enumerate(INTERVALS)
    ]
    assert len({family.batch_key(job) for job in jobs}) == 1
    states = [family.start(job, family.encode([job])[0]) for job in jobs]
    while left := [state for state in states if state.step < state.job.steps]:
        family.step(left)
    for job, state in zip(jobs, states, strict=True):
        assert (state.latents - alone(family, job)[-1]).abs().max() <= SEED_LAW


@pytest.mark.parametrize("name", FAMILIES)
def test_without_guidance_the_interval_says_nothing(name: str, families: Any) -> None:
    family: FlowFamily = families[name]
    plain = alone(family, make_job(**JOB | {"guidance": 1.0}))
    kept = alone(family, make_job(**JOB | {"guidance": 1.0}, guidance_interval=(0.3, 0.9)))
    for mine, other in zip(plain, kept, strict=True):
        assert torch.equal(mine, other)
