"""An engine's first image, that nobody asked for: first calls are slow, and its step times are known after. Knows no queue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from danqing.domain.errors import EngineFailed
from danqing.engine.families.base import Family
from danqing.engine.messages import Job
from danqing.engine.pace import Pace
from danqing.engine.runner import FAILED_MEMORY, Runner, Work

log = logging.getLogger(__name__)

WARM_UP = Job(
    id="warm-up",
    task_id="warm-up",
    account_id="",
    prompt="红色的苹果",
    negative_prompt="",
    width=1024,
    height=1024,
    steps=3,
    guidance=1.5,  # as the presets: the step times learned here are the ones that count
    seed=0,
)
PX_MIN = 256
"""The shortest side that it is made smaller to."""


def draw_warm_up(
    job: Job, family: Family, runner: Runner, pace: Pace, clock: Callable[[], float]
) -> None:
    """Draw the job, or a smaller one where there is no room for it: a card that draws only those starts, too.

    `pace` learns its times. Raises EngineFailed.
    """
    fault = _draw_once(job, family, runner, pace, clock)
    while fault == FAILED_MEMORY and min(job.width, job.height) >= 2 * PX_MIN:
        size = job.width, job.height
        job = replace(job, width=job.width // 2, height=job.height // 2)
        log.warning("warm-up: no memory for %sx%s, so %sx%s", *size, job.width, job.height)
        fault = _draw_once(job, family, runner, pace, clock)
    if fault is not None:
        raise EngineFailed(f"warm-up: {fault}")


def _draw_once(
    job: Job, family: Family, runner: Runner, pace: Pace, clock: Callable[[], float]
) -> str | None:
    """Why it could not be drawn; None where it was."""
    work = Work(job, clock())
    for _ in range(job.steps_drawn):
        for size, seconds in runner.advance([work]).calls:
            pace.learn(family.batch_key(job), size, seconds)
        if work.fault is not None:
            return work.fault
    began_s = clock()
    if runner.finish(work) is None:
        return work.fault
    pace.learn_ending(family.batch_key(job), clock() - began_s)
    return None
