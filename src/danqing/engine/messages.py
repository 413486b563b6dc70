"""The only types that cross between the service and an engine. Plain data: no callbacks, no tensors but pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from danqing.domain.task import Pixels

Mask = npt.NDArray[np.bool_]


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
    reference: Pixels | None = field(default=None, repr=False, compare=False)
    """The picture to start from, H x W x 3 at the job's height x width; None = from noise alone."""
    mask: Mask | None = field(default=None, repr=False, compare=False)
    """H x W, True where the reference is repainted; None = everywhere."""
    strength: float = 1.0
    """How far to leave the reference: the last strength x steps steps are drawn, at least one."""
    previews: int = 0
    """Looks at the unfinished image to send, spread evenly over its steps."""
    lora: str = ""
    """Which of the backend's LoRAs is added to the network; "" = none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels between which steps are guided, both included; the others run the prompt's half alone."""
    transparent: bool = False
    """Leave the background out: the pixels have opacity. Only of families that can (see providers/local.py)."""

    @property
    def channels(self) -> int:
        """Of the pixels, the look's too."""
        return 4 if self.transparent else 3

    @property
    def steps_drawn(self) -> int:
        """Denoising steps that are really done: fewer than `steps` where a reference is kept in part."""
        if self.reference is None:
            return self.steps
        return max(1, min(self.steps, round(self.steps * self.strength)))

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """After which steps a look is sent: ascending, never the last step, so at most one less than steps."""
        steps = self.steps_drawn
        count = min(self.previews, steps - 1)
        return tuple(steps * (number + 1) // (count + 1) for number in range(count))


INPUT_BYTES_MAX = 512_000_000
"""Of the references and masks of all jobs not yet ended: pictures of 16 MP from many clients would fill the memory."""


def input_bytes(jobs: Iterable[Job]) -> int:
    """Bytes of the jobs' references and masks. Images of one task share theirs."""
    arrays = {
        id(array): array.nbytes
        for job in jobs
        for array in (job.reference, job.mask)
        if array is not None
    }
    return sum(arrays.values())


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
    """`step` of the job's `steps_drawn` are done."""

    job_id: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class JobPreview:
    """A look at the unfinished image, of any size; `number` counts from 0."""

    job_id: str
    number: int
    step: int
    steps: int
    pixels: Pixels = field(repr=False)


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


JobEvent = (
    JobQueued
    | JobRefused
    | JobStarted
    | JobStepped
    | JobPreview
    | JobDrawn
    | JobFailed
    | JobCancelled
)


# between a service and the process of an engine; see worker.py


@dataclass(frozen=True, slots=True)
class KeptPace:
    """Where an engine's step times outlive it; see pace_file.py."""

    path: str
    of: dict[str, Any]
    """What the times depend on, of JSON's types."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message to a new process: what to load, and how to queue."""

    factory: str
    """`MODULE:FUNCTION` that makes the family."""
    options: dict[str, Any]
    """The function's keyword arguments, of JSON's types."""
    queue_max: int
    live_max: int
    batch_max: int
    warm_up: Job | None
    hang_s: float | None = None
    """As EngineCore's."""
    pace: KeptPace | None = None
    """As EngineCore's."""


@dataclass(frozen=True, slots=True)
class Returned:
    """Nobody holds the pixels of this drawn job any more."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Measure:
    """How long is this prompt? Answered at once, whatever step is being done."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Measured:
    """(tokens, tokens at most) of the text of a Measure; None = of any length."""

    number: int
    length: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the step at hand."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The process takes jobs."""

    pixels_max: int | None = None
    """See Family.pixels_max."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """A forward of `size` images took `seconds`."""

    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Fault:
    """The engine of the process died of this; it ends."""

    reason: str
