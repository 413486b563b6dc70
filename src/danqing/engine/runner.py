"""Runs a family's calls for a batch and confines every failure to its members. Knows no queue, thread or account."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from danqing.domain.task import Pixels
from danqing.engine.families.base import Family, PromptTooLong, State
from danqing.engine.messages import Job

log = logging.getLogger(__name__)

FAILED_ENCODE = "The engine could not read this prompt."
FAILED_STEP = "The engine failed while drawing this image."
FAILED_MEMORY = "The engine ran out of memory while drawing this image."
FAILED_NUMBERS = "The engine's numbers overflowed while drawing this image."
FAILED_DECODE = "The engine failed while finishing this image."


@dataclass(slots=True, eq=False)
class Work:
    """One job in the making. Marks are clock seconds, each the end of a stage."""

    job: Job
    submitted_s: float
    picked_s: float = 0.0
    encoded_s: float = 0.0
    denoised_s: float = 0.0
    state: State | None = None
    fault: str | None = None
    """Why it failed; a safe message."""
    previews_sent: int = 0

    @property
    def wants_preview(self) -> bool:
        """It has just done a step after which somebody waits for a look."""
        return self.state is not None and self.state.step in self.job.preview_steps


@dataclass(slots=True)
class Advance:
    """What came of one step of a batch; failed members carry their fault."""

    stepped: list[Work] = field(default_factory=list[Work])
    calls: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """(batch size, seconds) of every forward that worked."""
    overflow: int | None = None
    """The smallest batch that did not fit into memory."""


class Runner:
    """Family calls, timed."""

    def __init__(
        self, family: Family, clock: Callable[[], float], hush: Callable[[], bool] = lambda: False
    ) -> None:
        """`clock` gives seconds. `hush` waits until nothing runs beside the steps and keeps it so; False where nothing did."""
        self._family = family
        self._clock = clock
        self._hush = hush

    def advance(self, works: Sequence[Work]) -> Advance:
        """Encode and start the new ones, then one step for all. Never raises for a family's fault.

        A batch whose step raises is repeated member by member, one that does not fit into memory half by
        half (a step that raised has changed no state), and only those that still raise fail. What ran beside a
        step that did not fit is waited for first.
        """
        self.begin(works)
        advance = Advance()
        self._step([work for work in works if work.state is not None], advance)
        return advance

    def begin(self, works: Sequence[Work], *, beside: bool = False) -> None:
        """Encode and start those that are not yet. Never raises for a family's fault, but for one.

        `beside` others' steps a MemoryError is raised: alone there may be room, and the call can be repeated.
        """
        self._begin([work for work in works if work.state is None and work.fault is None], beside)

    def preview(self, work: Work) -> Pixels | None:
        """A look at an unfinished image; None where that failed, which harms the image in no way."""
        try:
            pixels = self._family.preview(work.state)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != work.job.channels:
                raise ValueError(f"preview {pixels.dtype} {pixels.shape}")
        except Exception:
            log.exception("job %s: no preview", work.job.id)
            return None
        return pixels

    def finish(self, work: Work, *, beside: bool = False) -> tuple[Pixels, dict[str, float]] | None:
        """Decode one image: (pixels, stage → milliseconds), or None with `work.fault` set. `beside` as in `begin`.

        The stages follow each other without gaps: denoise includes other jobs' steps in between, decode the
        wait for its turn.
        """
        try:
            pixels = self._family.decode([work.state])[0]
            if pixels.dtype != np.uint8 or pixels.shape != (
                work.job.height,
                work.job.width,
                work.job.channels,
            ):
                raise ValueError(f"decoded {pixels.dtype} {pixels.shape}")
        except Exception as error:
            if beside and isinstance(error, MemoryError):
                raise
            self._fail(work, _told(error, FAILED_DECODE))
            return None
        marks = [
            work.submitted_s,
            work.picked_s,
            work.encoded_s,
            work.denoised_s,
            self._clock(),
        ]
        stages = ("queue", "encode", "denoise", "decode")
        timing_ms = {
            stage: round((marks[i + 1] - marks[i]) * 1000, 3) for i, stage in enumerate(stages)
        }
        return pixels, timing_ms

    def _begin(self, works: Sequence[Work], beside: bool) -> None:
        if not works:
            return
        try:
            conditionings = self._family.encode([work.job for work in works])
        except Exception as error:
            if beside and isinstance(error, MemoryError):
                raise
            if len(works) == 1:
                self._fail(works[0], _told(error, FAILED_ENCODE))
            else:
                for work in works:
                    self._begin([work], beside)
            return
        for work, conditioning in zip(works, conditionings, strict=True):
            self._start(work, conditioning, beside)

    def _start(self, work: Work, conditioning: Any, beside: bool) -> None:
        try:
            work.state = self._family.start(work.job, conditioning)
        except Exception as error:
            if beside and isinstance(error, MemoryError):
                raise
            self._fail(work, _told(error, FAILED_STEP))
        work.encoded_s = self._clock()

    def _step(self, works: Sequence[Work], advance: Advance) -> None:
        if not works:
            return
        began_s = self._clock()
        try:
            self._family.step([work.state for work in works])
        except MemoryError:
            if self._hush():
                self._step(works, advance)
                return
            advance.overflow = min(len(works), advance.overflow or len(works))
            half = len(works) // 2
            if half == 0:
                self._fail(works[0], FAILED_MEMORY)
                return
            self._step(works[:half], advance)
            self._step(works[half:], advance)
            return
        except Exception:
            if len(works) == 1:
                self._fail(works[0], FAILED_STEP)
                return
            for work in works:
                self._step([work], advance)
            return
        ended_s = self._clock()
        advance.calls.append((len(works), ended_s - began_s))
        for work in works:
            work.denoised_s = ended_s
            self._check(work, advance)

    def _check(self, work: Work, advance: Advance) -> None:
        """Keep a member whose numbers are sound: infinities would come out as a black image."""
        try:
            sound = self._family.is_finite(work.state)
        except Exception:
            self._fail(work, FAILED_STEP)
            return
        if sound:
            advance.stepped.append(work)
        else:
            work.fault = FAILED_NUMBERS
            work.state = None
            log.error("job %s: its latents are not finite", work.job.id)

    @staticmethod
    def _fail(work: Work, fault: str) -> None:
        """Called while handling the family's exception; the log has it, the client does not."""
        work.fault = fault
        work.state = None
        log.exception("job %s: %s", work.job.id, fault)


def _told(error: Exception, otherwise: str) -> str:
    """What a client hears of an exception."""
    if isinstance(error, PromptTooLong):
        return str(error)
    if isinstance(error, FloatingPointError):
        return FAILED_NUMBERS
    return FAILED_MEMORY if isinstance(error, MemoryError) else otherwise
