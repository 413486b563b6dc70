"""Noise schedules as pure functions: a checkpoint's scheduler settings and a step count -> sigmas. Knows no tensor.

Every image holds its own schedule, so images with different step counts share a forward. Flow matching: latents at
noise level s are (1 - s) x clean + s x noise, the network tells d latents / d s, and an Euler step goes to the next s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

REFUSED = (
    "invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlowMatch:
    """A `FlowMatchEulerDiscreteScheduler`'s scheduler_config.json, as far as it shapes the schedule."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    """Shift by the image's size (mu) instead of by `shift`."""
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    shift_terminal: float | None = None
    """Stretch the schedule so that its last noise level is this one."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> FlowMatch:
        """Raises ValueError for a sampler that this one is not."""
        kind = config.get("_class_name")
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"the scheduler is a {kind}, not a FlowMatchEulerDiscreteScheduler")
        for name in REFUSED:
            if config.get(name):
                raise ValueError(f"the scheduler's {name} is not supported")
        known = {field.name for field in fields(cls)}
        found = cls(
            **{key: value for key, value in config.items() if key in known and value is not None}
        )
        if found.time_shift_type not in ("exponential", "linear"):
            raise ValueError(f"the scheduler's time_shift_type is {found.time_shift_type!r}")
        return found

    def shifted(self, sigmas: Floats, mu: float) -> Floats:
        """Noise levels bent towards the noisy end, more so for larger images, and stretched to the last one."""
        if not self.use_dynamic_shifting:
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        elif self.time_shift_type == "exponential":
            sigmas = math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1))
        else:
            sigmas = mu / (mu + (1 / sigmas - 1))
        if (
            self.shift_terminal and sigmas[-1] < 1
        ):  # one step alone is at noise level 1: nothing to stretch
            cleanness = 1 - sigmas
            sigmas = 1 - cleanness / (cleanness[-1] / (1 - self.shift_terminal))
        return np.asarray(sigmas, np.float32)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One image's way from noise to picture."""

    sigmas: tuple[float, ...]
    """Noise levels, steps + 1 of them; the last is 0."""
    timesteps: tuple[float, ...]
    """What the network is told at each step, 0..num_train_timesteps."""


def _schedule(sigmas: Floats, timesteps: Floats) -> Schedule:
    return Schedule((*map(float, sigmas), 0.0), tuple(map(float, timesteps)))


def cogview4(config: FlowMatch, steps: int, image_tokens: int) -> Schedule:
    """CogView4's: whole timesteps, which the network hears as they are while only the noise levels are shifted."""
    timesteps = np.linspace(config.num_train_timesteps, 1.0, steps)
    timesteps = timesteps.astype(np.int64).astype(np.float32)
    size = (image_tokens / config.base_image_seq_len) ** 0.5
    mu = size * config.max_shift + config.base_shift
    sigmas = config.shifted(timesteps / np.float32(config.num_train_timesteps), mu)
    return _schedule(sigmas, timesteps)


def qwen_image(config: FlowMatch, steps: int, image_tokens: int) -> Schedule:
    """Qwen-Image's: even noise levels, shifted by the image's size; the network hears the shifted ones."""
    span = config.max_image_seq_len - config.base_image_seq_len
    slope = (config.max_shift - config.base_shift) / span
    mu = image_tokens * slope + config.base_shift - slope * config.base_image_seq_len
    sigmas = config.shifted(np.linspace(1.0, 1 / steps, steps).astype(np.float32), mu)
    return _schedule(sigmas, sigmas * np.float32(config.num_train_timesteps))
