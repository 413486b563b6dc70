"""How a drawing ends: what is charged, what is kept, what is thrown away. Knows the card's rules, no HTTP and no engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from fractions import Fraction

from danqing.db.rows import EndState
from danqing.domain.errors import (
    Busy,
    Cancelled,
    DanqingError,
    EngineFailed,
    ServerFault,
    Unavailable,
)
from danqing.domain.ids import uuid7
from danqing.domain.task import DeliveredImage, ImageResult
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service.calls import Outcome, Work
from danqing.service.delivery import Deliverer
from danqing.service.ledger import Ledger, StaleTask
from danqing.service.records import StoredResult, error_json, is_kept
from danqing.service.references import References

log = get_logger(__name__)

_TRIES = 5
_FIRST_WAIT_S = 0.1


class TakenOver(Unavailable):
    """The task is another server's, or has ended otherwise."""

    def __init__(self) -> None:
        super().__init__("The task was taken over by another server.")


class Settler:
    """Resolves holds. A settlement is never given up half way: its caller may not be cancelled."""

    def __init__(
        self, ledger: Ledger, deliverer: Deliverer, references: References, metrics: Metrics
    ) -> None:
        self._ledger = ledger
        self._deliverer = deliverer
        self._references = references
        self._metrics = metrics

    async def delivered(self, work: Work, result: ImageResult) -> Outcome:
        """POST for the images delivered; the rest of the hold returns."""
        count = len(result.delivered)
        charge = work.order.card.price.charge(work.held, count, work.order.task.n)
        await self._settle(work, charge, "succeeded")
        self._metrics.images.labels(work.order.card.name).inc(count)
        log.info("task_done", task=work.task_id, charged=charge, images=count)
        return Outcome(
            result,
            work.task_id,
            charge,
            work.order.seeds if work.upstream.seeded else (),
            work.timing_ms,
            extension=work.extension,
            backend=work.order.card.backend,
        )

    async def failed(self, work: Work, error: DanqingError) -> None:
        """An end without images: void, or the whole price where the card never refunds."""
        # What trying again may cure is charged to nobody: its key is free again, too.
        charge = work.held if work.order.card.refund == "never" and is_kept(error) else 0
        work.cut_feed()
        log.warning("task_failed", task=work.task_id, code=error.code, charged=charge)
        await self._settle(work, charge, "failed", error)

    async def cancelled(self, work: Work) -> None:
        """The client left, or deleted the task: free while queued, then by the card's rule.

        What a stream has shown is charged: all of an image of which as much as a look has left. Those
        that have left whole stay, for the client may have no more than their links.
        """
        work.cut_feed()
        card = work.order.card
        match card.cancel:
            case _ if card.refund == "never":
                charge = work.held
            case _ if not work.started:
                charge = 0
            case "void":
                charge = _share(work, {})
            case "full":
                charge = work.held
            case "prorata":
                charge = _share(work, work.done)
        log.info("task_cancelled", task=work.task_id, charged=charge, shown=len(work.left))
        await self._settle(work, charge, "cancelled", Cancelled(), kept=work.kept)
        self._metrics.images.labels(card.name).inc(len(work.kept))

    async def undo(self, work: Work) -> None:
        """End as failed what could not be posted. Raises TakenOver where it was posted after all."""
        work.settle_id = uuid7()
        await self._write(work, 0, "failed", ServerFault())
        log.warning("task_taken_back", task=work.task_id)
        await self._references.discard(work.order.task)
        await self._discard(work)  # only now: until then they may have been paid for

    async def lost(self, work: Work) -> None:
        """Another server took the task over: it is theirs now; what they cannot know of is deleted."""
        log.warning("task_lost", task=work.task_id)
        work.cut_feed()
        row = await self._ledger.task(work.task_id)
        if row is None or row.is_open:
            return  # the new owner looks at the blobs, and the orphans' sweep behind both of us
        kept = {image.blob_key for image in await self._ledger.images(work.task_id)}
        await self._discard(work, kept)

    async def _settle(
        self,
        work: Work,
        charge: int,
        state: EndState,
        error: DanqingError | None = None,
        *,
        kept: Collection[int] = (),
    ) -> None:
        """Resolve the hold with the task's end and its images, in one transaction. A success keeps all
        images, any other end those of the indexes `kept`.

        Blobs are deleted only when it is known that nobody pays for them. A database that does not
        answer may have done it all the same: then the lease ends by itself, and who takes the task
        over finds the blobs of a success, and none of anything else.
        """
        try:
            await self._write(work, charge, state, error, kept)
        except TakenOver:
            raise
        except (Unavailable, Busy):
            if state != "succeeded":
                await self._discard(work, _keys(work, kept))  # nobody pays for the rest in any case
            raise
        await self._references.discard(work.order.task)  # it will not be drawn again
        if state != "succeeded":
            await self._discard(work, _keys(work, kept))
        elif work.epoch > 1:
            await self._clear(work)
        self._metrics.characters_posted.inc(charge)

    async def _write(
        self,
        work: Work,
        charge: int,
        state: EndState,
        error: DanqingError | None,
        kept: Collection[int] = (),
    ) -> None:
        only = None if state == "succeeded" else kept
        wait_s = _FIRST_WAIT_S
        for left in reversed(range(_TRIES)):
            try:
                await self._ledger.settle(
                    work.task_id,
                    work.epoch,
                    account_id=work.order.account_id,
                    post=charge,
                    state=state,
                    error=None if error is None else error_json(error),
                    result=StoredResult.of(work, only).as_json(),
                    images=work.rows(only),
                    transfer_id=work.settle_id,
                    release_key=error is not None and not is_kept(error),
                )
                return
            except StaleTask:
                await self.lost(work)
                raise TakenOver from None
            except (Unavailable, Busy) as fault:
                log.warning("not_settled_yet", task=work.task_id, code=fault.code, tries_left=left)
                if not left:
                    raise
                await asyncio.sleep(wait_s)
                wait_s *= 3

    async def _clear(self, work: Work) -> None:
        """Delete what earlier owners of a task had stored, now that it is decided what counts."""
        kept = {image.blob_key for image in work.stored.values()}
        for key in await self._deliverer.keys(work.task_id):
            if key not in kept:
                await self._delete(key)

    async def _discard(self, work: Work, kept: frozenset[str] | set[str] = frozenset()) -> None:
        for image in work.stored.values():
            if image.blob_key not in kept:
                await self._delete(image.blob_key)

    async def _delete(self, key: str) -> None:
        try:
            await self._deliverer.discard(key)
        except DanqingError as error:
            log.error("blob_left_behind", key=key, code=error.code)


def _share(work: Work, done: Mapping[int, Fraction]) -> int:
    """The hold's share of what was done of each image; rounded up.

    One that was shown counts whole, one that failed not at all.
    """
    n = work.order.task.n
    whole = Fraction(1)
    failed = {index for index, image in work.images.items() if isinstance(image, DanqingError)}
    images = sum(
        whole if index in work.left else done.get(index, 0)
        for index in range(n)
        if index in work.left or index not in failed
    )
    return min(work.held, math.ceil(work.held * images / n))


def _keys(work: Work, indexes: Collection[int]) -> set[str]:
    return {image.blob_key for index, image in work.stored.items() if index in indexes}


def result_of(work: Work, error: DanqingError | None = None) -> ImageResult | DanqingError:
    """What was delivered; the first image's error where nothing was. `error` is what others failed by."""
    missing = error or EngineFailed()
    images = tuple(work.images.get(index, missing) for index in range(work.order.task.n))
    if not any(isinstance(image, DeliveredImage) for image in images):
        return next(image for image in images if isinstance(image, DanqingError))
    return ImageResult(
        created=int(work.call.received_s),
        model=work.order.card.name,
        images=images,
        prompt=work.order.task.prompt,
        revised_prompt=work.revised,
        safety=work.safety,
        quality=work.order.task.quality,
        input_pixels=0 if work.inputs is None else work.inputs.pixels,
        transparent=work.order.task.transparent,
    )
