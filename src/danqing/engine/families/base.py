"""The contract between the engine and a network architecture. A family knows tensors; it never knows queues or accounts.

All calls come from the engine's one thread, so a family needs no locks; one that lets itself be called beside its steps
is called by three (see `Family.beside`). Random numbers come from a CPU generator
seeded per image, and every member of a batch advances by its own schedule: an image is the same alone and in company.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from danqing.domain.task import Pixels
from danqing.engine.messages import Job


class DeviceLost(BaseException):
    """The device can be used no more (a CUDA context in error). It ends the engine, and its process where it has one.

    For a family to raise, from any call. No Exception: it is not to be taken for one job's own fault.
    """


class LoadError(Exception):
    """A family that cannot be loaded as its backend says: `FIELD: what is wrong with it`."""

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field}: {fault}")


class PromptTooLong(ValueError):
    """More tokens than a family reads; the message may be told to whoever asked."""

    def __init__(self, tokens: int, tokens_max: int) -> None:
        super().__init__(f"The prompt has {tokens} tokens, at most {tokens_max} are read.")


PREVIEW_SIDE_MAX = 512
"""The longer side of a look at an unfinished image, pixels."""


def preview_size(job: Job) -> tuple[int, int]:
    """(width, height) of the job's previews: its aspect ratio, within PREVIEW_SIDE_MAX."""
    scale = min(1.0, PREVIEW_SIDE_MAX / max(job.width, job.height))
    return max(1, round(job.width * scale)), max(1, round(job.height * scale))


class State(Protocol):
    """One image in the making. A family's own class adds its tensors."""

    job: Job
    step: int
    """Denoising steps done so far, 0..job.steps_drawn; `Family.step` raises it by one."""


class Family(Protocol):
    """One network architecture with its weights loaded."""

    name: str
    pixels_max: int | None
    """Of the largest picture that its device has memory for; None = any."""

    def batch_key(self, job: Job) -> Hashable:
        """Only jobs with equal keys may share a step (grid shape, guidance on or off, adapters).

        Depends on the job alone: any thread may make this call.
        """
        ...

    def measure(self, prompt: str) -> tuple[int, int] | None:
        """(tokens, tokens at most) of a prompt, a template's own tokens among them; None = of any length.

        A family with several text encoders tells of the one that is the nearest to its limit. Any thread may ask.
        """
        ...

    def encode(self, jobs: Sequence[Job]) -> list[Any]:
        """Text conditioning for each job, cached by text."""
        ...

    def start(self, job: Job, conditioning: Any) -> State:
        """The noise to begin with, from the job's seed."""
        ...

    def step(self, states: Sequence[Any]) -> None:
        """Advance every member by its own next step; both guidance halves in one forward.

        Raises any exception on failure; then no member's state has changed. MemoryError means
        that the batch was too large: it is split and tried again.
        """
        ...

    def is_finite(self, state: Any) -> bool:
        """False when the latents hold NaN or infinity."""
        ...

    def preview(self, state: Any) -> Pixels:
        """A cheap look at the image so far: uint8 RGB, best at `preview_size` of the job."""
        ...

    def decode(self, states: Sequence[Any]) -> list[Pixels]:
        """Final images, uint8 H x W x 3 at each job's height x width. Raises FloatingPointError for NaN or infinity in one."""
        ...

    def beside(self) -> AbstractContextManager[object] | None:
        """What a call is made in that runs beside others' steps; None = every call takes turns with them.

        Then one thread makes all calls of `encode` and `start`, another those of `decode`, the engine's the rest; where
        memory was short or for a warm-up the engine's makes them too, while the other two are idle.
        """
        ...
