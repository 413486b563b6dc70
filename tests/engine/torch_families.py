"""What the tests of the torch families share: jobs, and a job drawn alone. Needs torch and diffusers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import CogView4Pipeline, QwenImagePipeline

from danqing.engine.families.cogview4 import CogView4
from danqing.engine.families.flow import FlowFamily
from danqing.engine.families.qwen_image import QwenImage
from danqing.engine.messages import Job

FAMILIES = {"cogview4": CogView4, "qwen_image": QwenImage}
PIPELINES = {"cogview4": CogView4Pipeline, "qwen_image": QwenImagePipeline}


def make_job(**fields: Any) -> Job:
    base = Job(
        id="job", task_id="task", account_id="account", prompt="a red apple on a wooden table",
        negative_prompt="", width=64, height=64, steps=4, guidance=3.5, seed=7,
    )  # fmt: skip
    return replace(base, **fields)


def alone(family: FlowFamily, job: Job) -> list[torch.Tensor]:
    """The packed latents after each step of a job drawn by itself."""
    state = family.start(job, family.encode([job])[0])
    found = []
    for _ in range(job.steps):
        family.step([state])
        found.append(state.latents.clone())
    return found
