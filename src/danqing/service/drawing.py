"""Following one drawing to its images while the lease is renewed. Knows no money: how it ends is settling's."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

from danqing.domain.card import Card
from danqing.domain.errors import (
    ContentRefused,
    DanqingError,
    PromptTooLong,
    ServerFault,
    UnsupportedField,
)
from danqing.domain.ports import Provider
from danqing.domain.task import (
    Drawn,
    Event,
    Failed,
    ImageTask,
    Linked,
    Preview,
    Relayed,
    Started,
    Stepped,
    Turned,
)
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service.calls import Call, Work
from danqing.service.delivery import Deliverer
from danqing.service.extension import Extender
from danqing.service.ledger import Ledger, StaleTask
from danqing.service.looks import Looks
from danqing.service.references import References
from danqing.service.screening import Screen
from danqing.service.upstream import worst_of

log = get_logger(__name__)


class Artist:
    """Draws the images of a task and stores each as it comes."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        provider: Provider,
        screen: Screen,
        extender: Extender,
        deliverer: Deliverer,
        references: References,
        metrics: Metrics,
        lease_s: float,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._screen = screen
        self._extender = extender
        self._deliverer = deliverer
        self._references = references
        self._metrics = metrics
        self._lease_s = lease_s

    async def check(self, call: Call) -> None:
        """Raises UnsupportedField and PromptTooLong for what nothing that draws the card can honour."""
        await self._provider.check(call.task, call.card)

    async def draw(self, work: Work) -> None:
        """Fill `work` with what comes of it. May be cancelled at any time; ends with nothing going on.

        Meanwhile somebody renews the lease (`beat`). Raises StaleTask where it is lost when a provider is
        to be asked, ContentRefused, and what the provider raises.
        """
        storing: list[asyncio.Task[None]] = []
        looks = Looks(self._deliverer, self._screen, work)
        try:
            await self._draw_and_store(work, storing, looks)
        finally:
            try:
                await _outlast(*looks.cancel())
            finally:
                # Not cancelled, whatever happened: a blob being written must be known, to be discarded.
                await _outlast(*storing)

    async def _extend(self, work: Work) -> None:
        """Extend the prompt when asked for, and moderate what came of it; where that is refused or too long the original is drawn."""
        task, card = work.order.task, work.order.card
        if not task.prompt_extend or not task.prompt:
            return
        extended = await self._extender.extend(task.prompt, task.style, card.prompt_chars_max)
        if extended.prompt != task.prompt:
            try:
                await self._check_length(task, extended.prompt, card)
                block_level = work.call.principal.block_level
                found = await self._screen.texts({"assistant": (extended.prompt,)}, block_level)
                work.safety = worst_of(*work.safety, *found)
            except PromptTooLong:  # nor was what the client wrote
                extended = self._extender.original(task.prompt, "too long", extended.how)
            except ContentRefused:
                extended = self._extender.original(task.prompt, "refused", extended.how)
        work.revised, work.extension = extended.prompt, extended.how
        if work.call.feed is not None:
            work.call.feed.extension = extended.how
        work.order = replace(work.order, prompt=extended.prompt)

    async def _check_length(self, task: ImageTask, prompt: str, card: Card) -> None:
        """Raises PromptTooLong where one that may draw the task cannot read the longer prompt to its end."""
        for face in card.faces():
            alone = replace(face, fallbacks=())
            try:
                await self._provider.check(task, alone)
            except (UnsupportedField, PromptTooLong):
                continue  # it will not be asked
            await self._provider.check(replace(task, prompt=prompt), alone)

    async def _draw_and_store(
        self, work: Work, storing: list[asyncio.Task[None]], looks: Looks
    ) -> None:
        await self._extend(work)  # while the lease is renewed: who is asked may take a while
        if (
            work.order.task.is_edit and work.inputs is None
        ):  # another server, or we before, took it on
            order = work.order
            inputs = await self._references.load(order.task, order.account_id, order.task_id)
            work.begin_from(inputs)
        await self._follow(work, storing, looks)
        if storing:
            await asyncio.wait(storing)

    async def _follow(self, work: Work, storing: list[asyncio.Task[None]], looks: Looks) -> None:
        """Take the events; images are finished and stored beside the next ones' steps."""
        feed = work.call.feed
        told = not work.call.background and feed is None
        # Whoever takes the task over must know that a provider may have been asked: it may not be again.
        sealed = not (work.call.background or work.call.client_key)
        async with aclosing(self._provider.draw(work.order)) as events:
            async for event in events:
                if feed is not None and not _may_be_refused(work, event):
                    feed.admit()
                match event:
                    case Stepped():
                        work.done[event.index] = Fraction(event.step, event.steps)
                    case Drawn():
                        storing.append(asyncio.create_task(self._store(work, event)))
                    case Preview():
                        looks.show(event)
                    case Failed():
                        work.fail(event.index, event.error)
                    case Relayed() | Linked() | Turned():
                        work.hear(event)
                    case Started() if not sealed and work.order.card.backend.is_relay:
                        sealed = True
                        await self._seal(work)
                    case _:
                        pass
                del event  # an image's pixels are large: not held until the next event
                if work.started and not told:  # somebody may be looking at the task
                    told = True
                    storing.append(asyncio.create_task(self._tell(work)))

    async def _seal(self, work: Work) -> None:
        """Write "running" before a provider is asked. Raises StaleTask, Unavailable, Busy."""
        if await self._ledger.renew(work.task_id, work.epoch, self._lease_s, "running"):
            work.stop("client")

    async def _tell(self, work: Work) -> None:
        """Write "running", beside the drawing: an event that waits is one that nobody is charged for."""
        with suppress(StaleTask):  # the next heartbeat hears it, or the end
            await self.beat(work)

    async def beat(self, work: Work) -> None:
        """The heartbeat. Raises StaleTask: a renewal that fails otherwise is tried again with the next one."""
        try:
            state = "running" if work.started else None
            if await self._ledger.renew(work.task_id, work.epoch, self._lease_s, state):
                work.stop("client")
        except StaleTask:
            raise
        except DanqingError as error:
            log.warning("lease_not_renewed", task=work.task_id, code=error.code)

    async def _store(self, work: Work, drawn: Drawn) -> None:
        """One image, finished and stored; what goes wrong with it is its own result."""
        delivery = work.call.delivery
        started = time.perf_counter()
        try:
            if self._screen.sees_images:
                found = await self._screen.image(
                    drawn.pixels, "assistant", work.call.principal.block_level
                )
                work.safety = worst_of(*work.safety, *found)
                drawn.timing_ms["moderate"] = (time.perf_counter() - started) * 1000
            image, data, timing_ms = await self._deliverer.store(
                drawn,
                task_id=work.task_id,
                life=work.life,
                delivery=delivery,
                plan=work.plan,
                prompt=work.order.task.prompt,
            )
        except Exception as error:
            if not isinstance(error, DanqingError):
                log.exception("store_crashed", task=work.task_id)
            work.fail(drawn.index, error if isinstance(error, DanqingError) else ServerFault())
            return
        presented = self._deliverer.present(image, data, delivery, work.call.base_url)
        work.deliver(drawn.index, image, presented)
        timing_ms = drawn.timing_ms | timing_ms
        self._metrics.on_timing(timing_ms)
        for stage, value in timing_ms.items():  # images run side by side: the slowest counts
            work.timing_ms[stage] = max(work.timing_ms.get(stage, 0.0), value)


def _may_be_refused(work: Work, event: Event) -> bool:
    """A relay's task may still come to nothing: then the provider's error is the answer, not a stream's event."""
    is_relay = work.order.card.backend.is_relay
    return is_relay and isinstance(event, Started | Stepped | Turned | Relayed | Failed)


async def _outlast(*tasks: asyncio.Task[Any]) -> None:
    """Wait until all have ended, however they end. A cancellation meanwhile takes effect only then."""
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
