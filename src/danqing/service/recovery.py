"""Cleaning up behind servers that died: tasks nobody works on, blobs nobody knows, images past their time.

Several servers may do it at once. Knows no HTTP; what is drawn again is drawn by the pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from danqing.db import image_queries, log_queries, queries
from danqing.db.rows import TaskRow
from danqing.db.session import Database
from danqing.domain.card import Price
from danqing.domain.errors import Cancelled, DanqingError
from danqing.domain.task import Relayed
from danqing.observability.logging import get_logger
from danqing.service.calls import image_row
from danqing.service.delivery import Deliverer, StoredImage, day_folder, task_ms
from danqing.service.ledger import Ledger, StaleTask, wall_clock_ms
from danqing.service.pipeline import Pipeline
from danqing.service.records import StoredRequest, StoredResult, error_json
from danqing.service.references import is_input
from danqing.service.upstream import Upstream
from danqing.storage.blobs import Blobs

log = get_logger(__name__)

DRAWS_MAX = 2
"""A task is requeued once."""
ORPHAN_AGE_S = 3600.0
"""A blob that is no image's is deleted after this long: younger ones may be on their way into the books."""
ORPHAN_DAYS = 2
PRUNE_DAYS = 30
_DAY_MS = 86_400_000
_BATCH = 200


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
        db: Database,
        ledger: Ledger,
        pipeline: Pipeline,
        deliverer: Deliverer,
        blobs: Blobs,
        lease_s: float,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._pipeline = pipeline
        self._deliverer = deliverer
        self._blobs = blobs
        self._lease_s = lease_s
        self._clock_ms = clock_ms
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
                row.id, seeds=stored.seeds, link_ttl_s=stored.link_ttl_s, plan=stored.plan
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
        await self._delete(await self._deliverer.keys(row.id), "its task was given back")

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
        await self._delete(extra, "extra")

    async def delete_expired(self) -> int:
        """Delete images whose links have ended; how many."""
        count = 0
        while True:
            now_ms = self._clock_ms()
            rows = await self._db.read(
                lambda conn, now_ms=now_ms: image_queries.expired_images(conn, now_ms, _BATCH)
            )
            # The blobs first: whatever happens between, the rows are found again.
            gone = await self._delete([row.blob_key for row in rows], "past its time")
            ids = [row.id for row in rows if row.blob_key in gone]
            await self._db.write(
                lambda conn, ids=ids, now_ms=now_ms: image_queries.mark_images_deleted(
                    conn, ids, now_ms
                )
            )
            count += len(ids)
            if len(rows) < _BATCH or not ids:
                return count

    async def delete_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Delete the last days' blobs that are no image's and whose task is over; how many.

        Most are deleted with their tasks: these are of servers that were stopped for longer than
        their leases, and died right after they woke and wrote.
        """
        now_ms = self._clock_ms()
        count = await self._blobs.sweep_parts(now_ms / 1000 - older_than_s)
        for day in range(ORPHAN_DAYS):
            keys = await self._blobs.list(day_folder(now_ms - day * _DAY_MS))
            for at in range(0, len(keys), _BATCH):
                orphans = await self._orphans(keys[at : at + _BATCH], now_ms, older_than_s)
                await self._delete(orphans, "orphan")
                count += len(orphans)
        return count

    async def prune(self) -> None:
        """Forget webhooks that were delivered or given up, and sessions that were over, a month ago."""
        before_ms = self._clock_ms() - PRUNE_DAYS * _DAY_MS
        await self._db.write(lambda conn: log_queries.prune_outbox(conn, before_ms))
        await self._db.write(lambda conn: queries.prune_sessions(conn, before_ms))

    async def _orphans(self, keys: list[str], now_ms: int, older_than_s: float) -> list[str]:
        known = await self._db.read(lambda conn: image_queries.known_blobs(conn, keys))
        orphans: list[str] = []
        for key in keys:
            if key in known:
                continue
            task_id = key.split("/")[1]
            row = await self._ledger.task(task_id)
            if row is None and is_input(key):
                # The one kind of blob that is written before its task: a server died in between.
                if task_ms(task_id) < now_ms - older_than_s * 1000:
                    orphans.append(key)
            elif row is None:
                # A task is written before its blobs: these are another installation's, or of a
                # time that the database has lost. Not ours to delete.
                log.error("blob_without_task", key=key)
            elif row.finished_ms is not None and row.finished_ms < now_ms - older_than_s * 1000:
                orphans.append(key)
        return orphans

    async def _delete(self, keys: list[str], why: str) -> set[str]:
        """Delete blobs; those that are gone."""
        gone: set[str] = set()
        for key in keys:
            try:
                await self._deliverer.discard(key)
                gone.add(key)
                log.info("blob_deleted", key=key, why=why)
            except DanqingError as error:
                log.error("blob_left_behind", key=key, code=error.code)
        return gone


def _request(row: TaskRow) -> StoredRequest | None:
    try:
        return StoredRequest.of_json(row.request)
    except ValueError:
        return None
