"""The only types that cross between the service and an engine. Plain data: no callbacks, no tensors but pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from danqing.domain.task import Pixels


@dataclass(frozen=True, slots=True)
class Job:
    """One image to draw. A task with n images is n jobs, admitted together or not at all."""

    id: str
    task_id: str
    account_id: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    priority: Literal["interactive", "background"] = "interactive"


# service → engine


@dataclass(frozen=True, slots=True)
class Submit:
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    job_ids: tuple[str, ...]


# engine → service


@dataclass(frozen=True, slots=True)
class JobQueued:
    job_id: str
    position: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class JobRefused:
    """The queue was full when the job came; nothing of its task was admitted."""

    job_id: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class JobStarted:
    job_id: str


@dataclass(frozen=True, slots=True)
class JobStepped:
    job_id: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class JobDrawn:
    job_id: str
    pixels: Pixels = field(repr=False)
    timing_ms: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class JobFailed:
    job_id: str
    message: str


@dataclass(frozen=True, slots=True)
class JobCancelled:
    job_id: str


JobEvent = JobQueued | JobRefused | JobStarted | JobStepped | JobDrawn | JobFailed | JobCancelled
