"""Draws with the local engine: one order becomes one job per image. Knows the engine's messages, not its insides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from danqing.domain.card import Card
from danqing.domain.errors import Cancelled, EngineFailed, PromptTooLong, UnsupportedField
from danqing.domain.ports import DrawOrder
from danqing.domain.task import (
    Drawn,
    Event,
    Failed,
    ImageTask,
    Pixels,
    Preview,
    Queued,
    Started,
    Stepped,
)
from danqing.engine.messages import (
    Job,
    JobCancelled,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobPreview,
    JobQueued,
    JobStarted,
    JobStepped,
    Mask,
)
from danqing.engine.pixels import fit, fit_mask
from danqing.storage import codecs

CUTS_OUT = frozenset({"pocket"})
READS_NEGATIVES = frozenset({"pocket"})
"""What reads a negative prompt as words, and needs no guidance to leave out what it names."""
"""Families that can leave the background out."""
DECODES = 2
"""References decoded at once: a large one needs hundreds of megabytes for a moment."""


class EngineClient(Protocol):
    """The face of every engine transport."""

    def draw(self, jobs: tuple[Job, ...]) -> AsyncGenerator[JobEvent, None]: ...
    async def measure(self, prompt: str) -> tuple[int, int] | None: ...
    @property
    def pixels_max(self) -> int | None: ...


class LocalProvider:
    """The Provider port over an engine client."""

    def __init__(self, client: EngineClient, side_max: int | None = None) -> None:
        """`side_max`: the longest side that its network can draw, pixels; None = any."""
        self._client = client
        self._side_max = side_max
        self._decodes = asyncio.Semaphore(DECODES)

    async def check(self, task: ImageTask, card: Card) -> None:
        """See Provider.check. The families honour all that their cards' requests can say, if it is not too much, but for some pipelines of diffusers."""
        _check_fields(task, card)
        if self._side_max is not None and max(task.size) > self._side_max:
            raise UnsupportedField(
                f"'size' is too large: {task.size} has a side of more than {self._side_max} pixels, which is the longest that what draws '{card.name}' knows positions for.",
                "size",
            )
        most = self._client.pixels_max
        if most is not None and task.size.pixels > most:
            raise UnsupportedField(
                f"'size' is too large: {task.size} has {task.size.pixels} pixels, and what draws '{card.name}' has memory for {most} here.",
                "size",
            )
        for name, text in (("prompt", task.prompt), ("negative_prompt", task.negative_prompt)):
            length = await self._client.measure(text) if text else None
            if length is not None and length[0] > length[1]:
                raise PromptTooLong(name, *length, unit="tokens")

    async def draw(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        """See Provider.draw. Raises Busy (nothing admitted) and EngineFailed (engine lost)."""
        preset = order.card.qualities[order.task.quality]
        reference, mask = None, None
        if order.references:
            async with self._decodes:
                reference, mask = await asyncio.to_thread(_inputs, order)
        strength = order.task.strength
        if strength is None:
            is_variation = not order.prompt.strip()
            strength = order.card.backend.strength.of(
                masked=mask is not None, variation=is_variation
            )
        jobs = tuple(
            Job(
                id=f"{order.task_id}.{index}",
                task_id=order.task_id,
                account_id=order.account_id,
                prompt=order.prompt,
                negative_prompt=order.task.negative_prompt or preset.negative_prompt,
                width=order.task.size.width,
                height=order.task.size.height,
                steps=preset.steps,
                guidance=preset.guidance,
                seed=seed,
                priority=order.priority,
                reference=reference,
                mask=mask,
                strength=strength,
                previews=order.previews,
                transparent=order.task.transparent,
                lora=preset.lora,
                guidance_interval=preset.guidance_interval,
            )
            for index, seed in enumerate(order.seeds)
        )
        place = {job.id: (index, job.seed) for index, job in enumerate(jobs)}
        async with aclosing(self._client.draw(jobs)) as events:
            async for event in events:
                yield _translated(event, *place[event.job_id])
                del event  # its pixels are not to be held while waiting for the next one


def _check_fields(task: ImageTask, card: Card) -> None:
    """Raises UnsupportedField for what the card's network has no place for."""
    most = card.backend.references_max
    if len(task.references) > most:
        param = task.references[0].param.partition("[")[0]
        raise UnsupportedField(f"'{param}' may hold {most} here, not more.", param)
    if task.transparent and card.backend.family not in CUTS_OUT:
        raise UnsupportedField(
            f"'background' may not be 'transparent': what draws '{card.name}' always paints one.",
            "background",
        )
    if task.transparent and task.is_edit:
        raise UnsupportedField(
            f"'background' may not be 'transparent' for edits: what draws '{card.name}' keeps it.",
            "background",
        )
    facts, guidance = card.backend.pipeline, card.qualities[task.quality].guidance
    if facts is None:
        is_guided = guidance > 1 or card.backend.family in READS_NEGATIVES
    else:
        is_guided = facts.takes_negative(guidance)
    if task.negative_prompt.strip() and not is_guided:
        raise UnsupportedField(
            f"'negative_prompt' is not supported by the quality '{task.quality}' of '{card.name}', which is drawn without guidance.",
            "negative_prompt",
        )
    if facts is None:
        return
    if task.is_edit and task.mask is None and (fault := facts.look_fault(task.size)):
        raise UnsupportedField(
            f"'size' may not be {task.size} for an edit by '{card.name}': {fault}.", "size"
        )
    refused = {
        "mask": task.mask is not None and facts.inpaint is None,
        "strength": task.strength is not None and facts.reads_references and task.mask is None,
    }
    for field, is_refused in refused.items():
        if is_refused:
            raise UnsupportedField(f"'{field}' is not supported by '{card.name}'.", field)


def _inputs(order: DrawOrder) -> tuple[Pixels, Mask | None]:
    """The reference at the task's size, and where it is repainted. One array for all images of the task.

    A family takes one reference; more were refused by the card. Raises EngineFailed for a picture that
    cannot be decoded: it was checked when it came.
    """
    width, height = order.task.size
    try:
        reference = fit(codecs.decode(order.references[0].data), width, height)
        mask = order.mask and fit_mask(codecs.decode_mask(order.mask.data), width, height)
    except OSError as error:
        raise EngineFailed("The engine could not read the picture to start from.") from error
    return reference, mask


def _translated(event: JobEvent, index: int, seed: int) -> Event:
    match event:
        case JobQueued():
            return Queued(event.position, event.eta_s)
        case JobStarted():
            return Started(index)
        case JobStepped():
            return Stepped(index, event.step, event.steps)
        case JobPreview():
            return Preview(index, event.number, event.step, event.steps, event.pixels)
        case JobDrawn():
            return Drawn(index, event.pixels, seed, event.timing_ms)
        case JobFailed():
            return Failed(index, EngineFailed(event.message))
        case JobCancelled():
            return Failed(index, Cancelled())
        case _:  # a refusal is raised by the client before the first event
            raise EngineFailed
