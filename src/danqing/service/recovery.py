"""Taking over the tasks of servers that died: post what they had stored, draw again, or give back.

Several servers may do it at once. Knows no HTTP; what is drawn again is drawn by the pipeline.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from danqing.db.rows import TaskRow
from danqing.domain.card import Price
from danqing.domain.errors import Cancelled
from danqing.domain.task import Relayed
from danqing.observability.logging import get_logger
from danqing.service.calls import image_row
from danqing.service.delivery import Deliverer, StoredImage
from danqing.service.ledger import Ledger, StaleTask
from danqing.service.pipeline import Pipeline
from danqing.service.records import StoredRequest, StoredResult, error_json
from danqing.service.retention import Retention
from danqing.service.upstream import Upstream

log = get_logger(__name__)

DRAWS_MAX = 2
"""A task is requeued once."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What one sweep did, as task ids."""

    posted: list[str]
    requeued: list[str]
    expired: list[str]


class Recovery:
    """Takes over the tasks of servers that died, and deletes what nobody keeps."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        pipeline: Pipeline,
        deliverer: Deliverer,
        retention: Retention,
        lease_s: float,
    ) -> None:
        self._ledger = ledger
        self._pipeline = pipeline
        self._deliverer = deliverer
        self._retention = retention
        self._lease_s = lease_s
        self._silent: dict[str, tuple[int, int, float]] = {}
        """Overdue tasks: epoch, lease, and since when (monotonic) neither has changed."""

    async def sweep(self) -> Recovered:
        """Take over each task whose owner is gone: post what it had stored, draw again, or give back.

        An owner that lives renews its lease every third of it. So a task is taken over only when
        its lease is over by the clock *and* has not moved for a whole one: a clock that jumps ahead
        takes no task from anybody. What an owner gave back (lease 0) is taken at once.
        """
        done = Recovered([], [], [])
        overdue = await self._ledger.overdue()
        self._silent = {row.id: self._silence(row) for row in overdue}
        for row in overdue:
            silent_s = time.monotonic() - self._silent[row.id][2]
            is_silent = row.lease_until_ms == 0 or silent_s >= self._lease_s
            if not is_silent or self._pipeline.is_drawing(row.id):
                continue
            try:
                claimed = await self._ledger.claim(row, self._lease_s)
                if claimed is not None:
                    await self._recover(claimed, done)
            except StaleTask:
                log.warning("task_lost", task=row.id)
            except Exception:  # its lease ends again, and the next sweep tries again
                log.exception("task_not_recovered", task=row.id)
        return done

    def _silence(self, row: TaskRow) -> tuple[int, int, float]:
        known = self._silent.get(row.id)
        if known is not None and known[:2] == (row.epoch, row.lease_until_ms):
            return known
        return row.epoch, row.lease_until_ms, time.monotonic()

    async def _recover(self, row: TaskRow, done: Recovered) -> None:
        stored = _request(row)
        if stored is not None and row.cancel_ms is None:
            found = await self._deliverer.found(
                row.id, seeds=stored.seeds, life=stored.life, plan=stored.plan
            )
            again = (
                (row.background or row.client_key is not None)
                and row.draws < DRAWS_MAX
                and self._pipeline.can_resume(row, stored)
            )
            if found and (len(found) == stored.task.n or not again):
                await self._post(row, stored, found)
                done.posted.append(row.id)
                return
            if again:
                # What there is stays: another server may be faster, and what it posts is not ours.
                await self._pipeline.resume(row, stored)
                log.warning("task_requeued", task=row.id)
                done.requeued.append(row.id)
                return
        await self._end(row)
        done.expired.append(row.id)
        await self._retention.delete(await self._deliverer.keys(row.id), "abandoned")

    async def _end(self, row: TaskRow) -> None:
        """Give the hold back."""
        if row.cancel_ms is None:
            await self._ledger.expire(row)
            log.warning("hold_expired", task=row.id)
            return
        await self._ledger.settle(
            row.id,
            row.epoch,
            account_id=row.account_id,
            post=0,
            state="cancelled",
            error=error_json(Cancelled()),
        )

    async def _post(
        self, row: TaskRow, stored: StoredRequest, found: dict[int, StoredImage]
    ) -> None:
        """Charge for what a server had stored when it died: its client can fetch it."""
        charge = Price.charge(stored.held, len(found), stored.task.n)
        upstream = Upstream()
        if not self._pipeline.knows_seeds(row, stored):
            upstream.requests.append(Relayed("", seeded=False))
        result = StoredResult(None, (), {}, {}, upstream)
        await self._ledger.settle(
            row.id,
            row.epoch,
            account_id=row.account_id,
            post=charge,
            state="succeeded",
            result=result.as_json(),
            images=[image_row(one, row.id, row.account_id, at) for at, one in found.items()],
        )
        log.warning("task_posted_after_crash", task=row.id, images=len(found), charged=charge)
        kept = {image.blob_key for image in found.values()}
        extra = [key for key in await self._deliverer.keys(row.id) if key not in kept]
        await self._retention.delete(extra, "extra")


def _request(row: TaskRow) -> StoredRequest | None:
    try:
        return StoredRequest.of_json(row.request)
    except ValueError:
        return None
