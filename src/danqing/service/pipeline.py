"""The use case: one call from a checked request to a settled charge. Knows no HTTP and no dialect's words.

resolve → moderate → HOLD + task row → extend → moderate what was added → draw → label, encode, store → POST or VOID
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from danqing.catalog import Catalog
from danqing.db.tables import EndState, ImageRow, NewTask
from danqing.domain.card import Card
from danqing.domain.errors import (
    Busy,
    Cancelled,
    ContentRefused,
    DanqingError,
    EngineFailed,
    ServerFault,
    Unavailable,
    WaiverRequired,
)
from danqing.domain.ids import uuid7
from danqing.domain.ports import DrawOrder, Provider
from danqing.domain.task import (
    SEED_MAX,
    DeliveredImage,
    Delivery,
    Drawn,
    Failed,
    ImageResult,
    ImageTask,
    SafetyLevel,
    Stepped,
)
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service import prompts
from danqing.service.auth import Principal
from danqing.service.delivery import Deliverer, LabelPlan, StoredImage
from danqing.service.ledger import Ledger, StaleTask
from danqing.service.moderation import Role, TextModerator
from danqing.settings import Settings

log = get_logger(__name__)
T = TypeVar("T")

LEASE_S = 30.0
"""A task's lease; renewed at a third of it while the work goes on."""
LARGE_CHARS = 20_000
"""A history above this is moderated off the event loop."""
LABEL_SWITCH = {"zhipu": "watermark_enabled"}
"""The field that switches the AI label, by dialect, for the error that names it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated, decoded request."""

    dialect: str
    principal: Principal
    card: Card
    task: ImageTask
    delivery: Delivery
    base_url: str
    """What links begin with."""
    received_s: float
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set before the call is cancelled because its client left; else it is the server that stops."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer and its facts for the headers."""

    result: ImageResult
    task_id: str
    charged: int
    seeds: tuple[int, ...]
    timing_ms: dict[str, float]


@dataclass(slots=True)
class _Work:
    """What one call has come to so far; lives as long as the call."""

    task_id: str
    epoch: int
    held: int
    order: DrawOrder
    plan: LabelPlan
    revised: str | None = None
    safety: tuple[SafetyLevel, ...] = ()
    steps_done: dict[int, int] = field(default_factory=dict[int, int])
    stored: dict[int, StoredImage] = field(default_factory=dict[int, StoredImage])
    images: dict[int, DeliveredImage | DanqingError] = field(
        default_factory=dict[int, DeliveredImage | DanqingError]
    )
    timing_ms: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def started(self) -> bool:
        return bool(self.steps_done or self.images)


class Pipeline:
    """Runs calls. One instance serves all requests of a server."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        ledger: Ledger,
        provider: Provider,
        moderator: TextModerator,
        deliverer: Deliverer,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._ledger = ledger
        self._provider = provider
        self._moderator = moderator
        self._deliverer = deliverer
        self._metrics = metrics
        self._running: set[asyncio.Task[Any]] = set()

    async def draw(self, call: Call) -> Outcome:
        """Draw, store and charge one call. Cancel the coroutine when the client hangs up (see Call.hung_up).

        Raises any DanqingError; whatever is raised, the hold is resolved by the card's rules.
        """
        card = self._catalog.drawable(call.card, self._settings.standin)
        if not call.task.ai_label and not call.principal.waiver:
            raise WaiverRequired(LABEL_SWITCH.get(call.dialect, "watermark"))
        safety = await self._moderate(call)
        # In a task of its own: a client that leaves while the hold is written must not lose sight of it.
        opening = self._keep(self._open(call, card, safety))
        try:
            work = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await self._unasked(self._abandon(call, opening))
            raise
        return await self._draw(call, work)

    async def _draw(self, call: Call, work: _Work) -> Outcome:
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                self._extend(call, work)
                await self._run(call, work)
        except asyncio.CancelledError:
            await self._unasked(self._cancelled(call, work))
            raise
        except TimeoutError:
            await self._failed(call, work, slow := EngineFailed("The drawing took too long."))
            raise slow from None
        except DanqingError as error:
            await self._failed(call, work, error)
            raise
        except Exception as error:
            log.exception("task_crashed", task=work.task_id)
            await self._failed(call, work, fault := ServerFault())
            raise fault from error
        return await self._delivered(call, work)

    async def _moderate(self, call: Call) -> tuple[SafetyLevel, ...]:
        """Check what the client wrote. A refusal is logged with the end user, so that one can be blocked."""
        task = call.task
        texts: dict[Role, Sequence[str]] = {
            "user": (task.prompt, task.negative_prompt),
            "history": task.history,
        }
        try:
            if sum(map(len, task.history)) > LARGE_CHARS:
                return await asyncio.to_thread(self._moderator.require, texts)
            return self._moderator.require(texts)
        except ContentRefused as error:
            log.warning(
                "prompt_refused",
                role=error.role,
                level=error.level,
                account=call.principal.account_id,
                end_user=task.end_user,
            )
            raise

    async def _open(self, call: Call, card: Card, safety: tuple[SafetyLevel, ...]) -> _Work:
        """HOLD the characters and write the task row, in one transaction."""
        task = call.task
        task_id = uuid7()
        held = card.price.of(task.quality, task.n)
        seed = task.seed if task.seed is not None else secrets.randbelow(SEED_MAX + 1)
        seeds = tuple((seed + index) % (SEED_MAX + 1) for index in range(task.n))
        row = NewTask(
            id=task_id,
            account_id=call.principal.account_id,
            token_id=call.principal.token_id,
            dialect=call.dialect,
            model=card.name,
            request=_as_json(task, call.delivery),
            end_user=task.end_user,
        )
        opened = await self._ledger.open_task(
            row, hold_id=uuid7(), characters=held, lease_s=LEASE_S
        )
        log.info("task_opened", task=task_id, model=card.name, held=held, n=task.n)
        return _Work(
            task_id=task_id,
            epoch=opened.epoch,
            held=held,
            order=DrawOrder(
                task=task,
                card=card,
                task_id=task_id,
                account_id=call.principal.account_id,
                prompt=task.prompt,
                seeds=seeds,
            ),
            plan=LabelPlan.of(card, task.ai_label, call.principal.waiver, self._settings.labels),
            safety=safety,
        )

    async def _abandon(self, call: Call, opening: asyncio.Task[_Work]) -> None:
        """The client left while the hold was being written: wait for it, then give it back."""
        try:
            work = await opening
        except DanqingError:
            return
        await self._cancelled(call, work)

    def _extend(self, call: Call, work: _Work) -> None:
        """Extend the prompt when asked for, and moderate what was added."""
        task = call.task
        if not task.prompt_extend:
            return
        extended = prompts.extend(task.prompt, task.style, call.card.prompt_chars_max)
        if extended != task.prompt:
            work.safety += self._moderator.require({"assistant": (extended,)})
        work.revised = extended
        work.order = DrawOrder(
            task=task,
            card=work.order.card,
            task_id=work.task_id,
            account_id=work.order.account_id,
            prompt=extended,
            seeds=work.order.seeds,
        )

    async def _run(self, call: Call, work: _Work) -> None:
        """Follow the drawing to its end while the lease is renewed. Raises StaleTask when the lease is lost."""
        storing: list[asyncio.Task[None]] = []
        following = asyncio.create_task(self._follow(call, work, storing))
        renewing = asyncio.create_task(self._renew(work))
        try:
            await asyncio.wait({following, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                renewing.result()
            await following
        finally:
            following.cancel()
            renewing.cancel()
            try:
                await _outlast(following, renewing)
            finally:
                # Not cancelled, whatever happened: a blob being written must be known, to be discarded.
                await _outlast(*storing)

    async def _follow(self, call: Call, work: _Work, storing: list[asyncio.Task[None]]) -> None:
        """Take the events; images are finished and stored beside the next ones' steps."""
        async with aclosing(self._provider.draw(work.order)) as events:
            async for event in events:
                match event:
                    case Stepped():
                        work.steps_done[event.index] = event.step
                    case Drawn():
                        storing.append(self._keep(self._store(call, work, event)))
                    case Failed():
                        work.images[event.index] = event.error
                    case _:
                        pass
                del event  # an image's pixels are large: not held until the next event

    async def _renew(self, work: _Work) -> None:
        """The heartbeat. Ends only by StaleTask: a renewal that fails otherwise is tried again."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            try:
                await self._ledger.renew(
                    work.task_id, work.epoch, LEASE_S, "running" if work.started else None
                )
            except StaleTask:
                raise
            except DanqingError as error:
                log.warning("lease_not_renewed", task=work.task_id, code=error.code)

    async def _store(self, call: Call, work: _Work, drawn: Drawn) -> None:
        """One image, finished and stored; what goes wrong with it is its own result."""
        try:
            image, data, timing_ms = await self._deliverer.store(
                drawn,
                card=call.card,
                delivery=call.delivery,
                plan=work.plan,
                prompt=call.task.prompt,
            )
        except Exception as error:
            if not isinstance(error, DanqingError):
                log.exception("store_crashed", task=work.task_id)
            work.images[drawn.index] = error if isinstance(error, DanqingError) else ServerFault()
            return
        work.stored[drawn.index] = image
        work.images[drawn.index] = self._deliverer.present(
            image, data, call.delivery, call.base_url
        )
        timing_ms = drawn.timing_ms | timing_ms
        self._metrics.on_timing(timing_ms)
        for stage, value in timing_ms.items():  # images run side by side: the slowest counts
            work.timing_ms[stage] = max(work.timing_ms.get(stage, 0.0), value)

    async def _delivered(self, call: Call, work: _Work) -> Outcome:
        """POST for the images delivered; the rest of the hold returns."""
        images = tuple(work.images.get(index, EngineFailed()) for index in range(call.task.n))
        delivered = [image for image in images if isinstance(image, DeliveredImage)]
        if not delivered:
            error = next(image for image in images if isinstance(image, DanqingError))
            await self._failed(call, work, error)
            raise error
        charge = work.held * len(delivered) // call.task.n
        result = ImageResult(
            created=int(call.received_s),
            model=call.card.name,
            images=images,
            prompt=call.task.prompt,
            revised_prompt=work.revised,
            safety=work.safety,
            quality=call.task.quality,
        )
        await self._unasked(self._settle(work, charge, "succeeded"))
        self._metrics.images.labels(call.card.name).inc(len(delivered))
        log.info("task_done", task=work.task_id, charged=charge, images=len(delivered))
        return Outcome(result, work.task_id, charge, work.order.seeds, work.timing_ms)

    async def _failed(self, call: Call, work: _Work, error: DanqingError) -> None:
        """An end without images: void, or the whole price where the card never refunds."""
        ours = isinstance(error, Busy | ServerFault)
        charge = work.held if call.card.refund == "never" and not ours else 0
        log.warning("task_failed", task=work.task_id, code=error.code, charged=charge)
        await self._unasked(self._settle(work, charge, "failed", error))

    async def _cancelled(self, call: Call, work: _Work) -> None:
        """The client hung up: free while queued, then by the card's rule. A server that stops is our failure."""
        if not call.hung_up.is_set():
            await self._failed(call, work, Unavailable("The server stopped."))
            return
        total = call.card.qualities[call.task.quality].steps * call.task.n
        match call.card.cancel:
            case _ if call.card.refund == "never":
                charge = work.held
            case _ if not work.started:
                charge = 0
            case "void":
                charge = 0
            case "full":
                charge = work.held
            case "prorata":
                done = sum(work.steps_done.values())
                charge = min(work.held, -(-work.held * done // total))
        log.info("task_cancelled", task=work.task_id, charged=charge)
        await self._settle(work, charge, "cancelled", Cancelled())

    async def _settle(
        self, work: _Work, charge: int, state: EndState, error: DanqingError | None = None
    ) -> None:
        """Resolve the hold with the task's end and its images, in one transaction; drop images nobody gets."""
        keep = False
        try:
            await self._ledger.settle(
                work.task_id,
                work.epoch,
                post=charge,
                state=state,
                error=None if error is None else {"code": error.code, "message": error.message},
                result={"revised_prompt": work.revised, "timing_ms": work.timing_ms},
                images=_rows(work) if state == "succeeded" else [],
            )
            keep = state == "succeeded"
        finally:
            if not keep:
                await self._discard(work)
        self._metrics.characters_posted.inc(charge)

    async def _discard(self, work: _Work) -> None:
        for image in work.stored.values():
            try:
                await self._deliverer.discard(image)
            except DanqingError as error:
                log.error("blob_left_behind", key=image.blob_key, code=error.code)

    async def _unasked(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end even when the caller is cancelled meanwhile: money is never left half moved."""
        return await asyncio.shield(self._keep(work))

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `drain` waits for."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def drain(self) -> None:
        """Wait until nothing is being settled any more; for shutdown, after the calls were cancelled."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)


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


def _rows(work: _Work) -> list[ImageRow]:
    return [
        ImageRow(
            id=image.image_id,
            task_id=work.task_id,
            account_id=work.order.account_id,
            idx=index,
            format=image.format,
            width=image.size.width,
            height=image.size.height,
            bytes=image.bytes_count,
            sha256=image.sha256,
            seed=image.seed,
            blob_key=image.blob_key,
            label_visible=image.plan.visible,
            label_metadata=image.plan.metadata,
            created_ms=image.created_ms,
            expires_ms=image.expires_s * 1000,
        )
        for index, image in sorted(work.stored.items())
    ]


def _as_json(task: ImageTask, delivery: Delivery) -> dict[str, object]:
    """The request as its row keeps it."""
    return {
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "size": str(task.size),
        "n": task.n,
        "quality": task.quality,
        "style": task.style,
        "seed": task.seed,
        "prompt_extend": task.prompt_extend,
        "ai_label": task.ai_label,
        "client_request_id": task.client_request_id,
        "form": delivery.form,
        "format": delivery.format,
    }
