"""The ledger: two-phase transfers of characters and the tasks they pay for. Knows rules, not SQL or prices.

After TigerBeetle: a hold (pending) resolves once, by post (what was used is charged, the rest
returns), void, or expire. Transfers are immutable; the id of each is the caller's, so that a
retry answers what is there. The invariant, per account and to the character:
balance = grants ± adjustments - posts - open holds >= 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from danqing.db import book_queries, checks, image_queries, queries, task_queries
from danqing.db.book_queries import OpenHolds
from danqing.db.rows import (
    CHARACTERS_MAX,
    EndState,
    ImageRow,
    Json,
    NewTask,
    OpenState,
    ResolveKind,
    TaskRow,
    TaskSummary,
    TransferKind,
    TransferRow,
)
from danqing.db.session import Connection, Database
from danqing.db.task_queries import TaskFilter
from danqing.domain.errors import InvalidField, QuotaExceeded
from danqing.domain.ids import uuid7
from danqing.service import booking
from danqing.service.booking import (
    KeyInUse,
    LedgerError,
    Opening,
    Settlement,
    StaleTask,
    TransferConflict,
    no_account,
)

__all__ = ["KeyInUse", "Ledger", "LedgerError", "StaleTask", "TransferConflict", "wall_clock_ms"]

EXPIRED = {"code": "unavailable", "message": "The task's server stopped before it was done."}
LEASE_AHEAD_S_MAX = 3600.0
"""A lease that ends later was written before the clock jumped back."""
_OVERDUE_MAX = 100


def wall_clock_ms() -> int:
    """Unix milliseconds: leases are compared between processes, so no monotonic clock will do."""
    return time.time_ns() // 1_000_000


class Ledger:
    """All of it is safe to call from several processes at once; no balance is cached."""

    def __init__(self, db: Database, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._db = db
        self._clock_ms = clock_ms

    async def open_task(
        self, task: NewTask, hold_id: str, characters: int, lease_s: float
    ) -> TaskRow:
        """HOLD `characters` and write the task, queued, at epoch 1, in one transaction.

        A price of zero holds nothing. The same task and hold ids again answer the task that is
        there. The token's budgets and concurrency cap are checked in the same transaction. Raises
        QuotaExceeded, TokenBudgetExceeded, ConcurrencyExceeded, ExpiredToken (revoked meanwhile),
        AccountSuspended, NotFound (no such account), KeyInUse (another task has the client's key),
        TransferConflict.
        """
        if characters:
            check_characters(characters)
        now_ms = self._clock_ms()
        row = TaskRow(
            id=task.id,
            account_id=task.account_id,
            token_id=task.token_id,
            dialect=task.dialect,
            model=task.model,
            state="queued",
            hold_id=hold_id if characters else None,
            epoch=1,
            lease_until_ms=now_ms + round(lease_s * 1000),
            request=task.request,
            result=None,
            error=None,
            end_user=task.end_user,
            charged=0,
            created_ms=now_ms,
            finished_ms=None,
            client_key=task.client_key,
            fingerprint=task.fingerprint,
            background=task.background,
            waiver_id=task.waiver_id,
        )
        return await self._db.write_batched(
            booking.open_tasks, Opening(row, characters), [row.account_id]
        )

    async def renew(
        self, task_id: str, epoch: int, lease_s: float, state: OpenState | None = None
    ) -> bool:
        """The heartbeat: extend the task's lease, and its hold's deadline, which is the same.

        `state` moves the task to "running". True where its account asked to have it cancelled.
        Raises StaleTask.
        """
        until_ms = self._clock_ms() + round(lease_s * 1000)
        asked = await self._db.write(
            lambda conn: book_queries.extend_lease(conn, task_id, epoch, until_ms, state)
        )
        if asked is None:
            raise StaleTask(task_id)
        return asked

    async def ask_cancel(self, task_id: str) -> bool:
        """Tell the owner of an open task, whichever process it is, to cancel it; False where it has ended."""
        now_ms = self._clock_ms()
        return await self._db.write(lambda conn: book_queries.ask_cancel(conn, task_id, now_ms))

    async def settle(
        self,
        task_id: str,
        epoch: int,
        *,
        account_id: str,
        post: int,
        state: EndState,
        result: Json | None = None,
        error: Json | None = None,
        images: Sequence[ImageRow] = (),
        transfer_id: str | None = None,
        kind: ResolveKind | None = None,
        release_key: bool = False,
    ) -> None:
        """End the task: POST `post` characters (the rest of the hold returns), or VOID when 0.

        One transaction with the task's end and its images. A retry with the same `transfer_id`
        does nothing more. `kind` "expire" says why nothing was posted; `release_key` forgets the
        client's key. Raises StaleTask (nothing is changed: the caller deletes its blobs),
        TransferConflict when `post` is above the hold.
        """
        if post:
            check_characters(post)
        settlement = Settlement(
            task_id=task_id,
            epoch=epoch,
            kind=kind or ("post" if post else "void"),
            post=post,
            state=state,
            result=result,
            error=error,
            images=images,
            transfer_id=transfer_id,
            now_ms=self._clock_ms(),
            release_key=release_key,
        )
        await self._db.write_batched(booking.settle_tasks, settlement, [account_id])

    async def expire(self, task: TaskRow) -> None:
        """End an open task that nobody works on: its hold returns, its key is free again. Raises StaleTask."""
        await self.settle(
            task.id,
            task.epoch,
            account_id=task.account_id,
            post=0,
            state="failed",
            error=EXPIRED,
            kind="expire",
            release_key=True,
        )

    async def overdue(self) -> list[TaskRow]:
        """Open tasks whose lease is over (or in a future the clock has left), at most 100."""
        now_ms = self._clock_ms()
        far_ms = now_ms + round(LEASE_AHEAD_S_MAX * 1000)
        return await self._db.read(
            lambda conn: book_queries.overdue_tasks(conn, now_ms, far_ms, _OVERDUE_MAX)
        )

    async def claim(self, task: TaskRow, lease_s: float) -> TaskRow | None:
        """Take over a task whose owner is gone: next epoch, a new lease. None where somebody was faster."""
        until_ms = self._clock_ms() + round(lease_s * 1000)
        return await self._db.write(
            lambda conn: book_queries.claim_task(
                conn, task.id, task.epoch, task.lease_until_ms, until_ms
            ),
            [task.account_id],
        )

    async def draw_again(self, task: TaskRow) -> TaskRow:
        """Count one more drawing of a claimed task, which is queued again. Raises StaleTask."""
        if not await self._db.write(
            lambda conn: book_queries.draw_again(conn, task.id, task.epoch), [task.account_id]
        ):
            raise StaleTask(task.id)
        return replace(task, draws=task.draws + 1, state="queued")

    async def give_back(self, task_id: str, epoch: int) -> None:
        """Let go of an open task so that any server may take it at once; this drawing did not count. Raises StaleTask."""
        if not await self._db.write(lambda conn: book_queries.give_back_task(conn, task_id, epoch)):
            raise StaleTask(task_id)

    async def task_of_key(self, client_key: str) -> TaskRow | None:
        """The task a client's key was first used for, for 24 h."""
        rows = await self._db.read(
            lambda conn: book_queries.tasks_by_client_key(conn, [client_key])
        )
        row = rows.get(client_key)
        if row is None or row.created_ms + booking.KEY_LIFE_MS <= self._clock_ms():
            return None
        return row

    async def grant(
        self, account_id: str, characters: int, reason: str, transfer_id: str | None = None
    ) -> int:
        """Add characters and return the new balance. Raises InvalidField, NotFound, TransferConflict."""
        return await self._db.write(
            lambda conn: self.grant_within(conn, account_id, characters, reason, transfer_id),
            [account_id],
        )

    def grant_within(
        self,
        conn: Connection,
        account_id: str,
        characters: int,
        reason: str,
        transfer_id: str | None = None,
    ) -> int:
        """`grant` as part of a larger transaction."""
        check_characters(characters)
        return self._add(conn, "grant", account_id, characters, reason, transfer_id)

    async def adjust(
        self, account_id: str, characters: int, reason: str, transfer_id: str | None = None
    ) -> int:
        """Correct by a positive or negative number; returns the new balance.

        Raises QuotaExceeded where less is left than is taken, else as `grant`.
        """
        return await self._db.write(
            lambda conn: self.adjust_within(conn, account_id, characters, reason, transfer_id),
            [account_id],
        )

    def adjust_within(
        self,
        conn: Connection,
        account_id: str,
        characters: int,
        reason: str,
        transfer_id: str | None = None,
    ) -> int:
        """`adjust` as part of a larger transaction."""
        check_characters(abs(characters) if type(characters) is int else characters)
        return self._add(conn, "adjust", account_id, characters, reason, transfer_id)

    def tell_low_balance_within(self, conn: Connection, account_id: str) -> None:
        """Tell the account's webhook where its balance is below its line, if nobody did yet."""
        payer = book_queries.payers(conn, [account_id])[account_id]
        booking.tell_low_balance(conn, payer, payer.balance, self._clock_ms())

    async def balance(self, account_id: str) -> int:
        """Characters that may still be held. Raises NotFound."""
        account = await self._db.read(lambda conn: queries.account_by_id(conn, account_id))
        if account is None:
            raise no_account()
        return account.balance

    async def open_holds(self, account_id: str | None = None) -> OpenHolds:
        """Count and characters of the open holds, of one account or of all."""
        return await self._db.read(lambda conn: book_queries.open_holds(conn, account_id))

    async def statement(
        self, account_id: str, after: str = "", rows_max: int = 1000
    ) -> list[TransferRow]:
        """The account's transfers behind the one with the id `after`, oldest first."""
        return await self._db.read(
            lambda conn: book_queries.transfers_of(conn, account_id, after, rows_max)
        )

    async def task(self, task_id: str) -> TaskRow | None:
        return await self._db.read(lambda conn: book_queries.task_by_id(conn, task_id))

    async def tasks(
        self, wanted: TaskFilter, skip: int, rows_max: int
    ) -> tuple[int, list[TaskSummary]]:
        """How many tasks match, and a page of them, the newest first."""
        return await self._db.read(
            lambda conn: (
                task_queries.count_tasks_matching(conn, wanted),
                task_queries.tasks_matching(conn, wanted, skip, rows_max),
            )
        )

    async def images(self, task_id: str) -> list[ImageRow]:
        """The task's images in order."""
        return await self._db.read(lambda conn: image_queries.images_of_task(conn, task_id))

    async def image(self, image_id: str) -> ImageRow | None:
        return await self._db.read(lambda conn: image_queries.image_by_id(conn, image_id))

    async def mark_deleted(self, blob_keys: Iterable[str]) -> None:
        """Note that the images which these were the blobs of are there no longer."""
        keys, now_ms = list(blob_keys), wall_clock_ms()
        await self._db.write(lambda conn: image_queries.mark_blobs_deleted(conn, keys, now_ms))

    async def check(self) -> list[str]:
        """One line per broken invariant; empty when the books balance."""
        return await self._db.read(checks.faults)

    def _add(
        self,
        conn: Connection,
        kind: TransferKind,
        account_id: str,
        characters: int,
        reason: str,
        transfer_id: str | None,
    ) -> int:
        account = queries.account_by_id(conn, account_id)
        if account is None:
            raise no_account()
        known = None if transfer_id is None else book_queries.transfer_by_id(conn, transfer_id)
        if known is not None:
            if (known.account_id, known.kind, known.amount) != (account_id, kind, characters):
                raise TransferConflict(f"Transfer {known.id} is in the books for something else.")
            return account.balance
        if account.balance + characters > max(account.balance, CHARACTERS_MAX):
            raise InvalidField(f"The balance may be at most {CHARACTERS_MAX}.", "characters")
        if not book_queries.move_balances(conn, {account_id: characters}):
            raise QuotaExceeded(
                -characters,
                account.balance,
                message=f"The account '{account.name}' has {account.balance} characters left:"
                f" {-characters} cannot be taken away.",
            )
        transfer = TransferRow(
            id=transfer_id or uuid7(),
            account_id=account_id,
            kind=kind,
            amount=characters,
            hold_id=None,
            task_id=None,
            reason=reason,
            created_ms=self._clock_ms(),
        )
        book_queries.insert_transfers(conn, [transfer])
        self.tell_low_balance_within(conn, account_id)
        return account.balance + characters


def check_characters(value: int) -> None:
    """Raises InvalidField for what cannot be an amount."""
    # The type is asked as well: what comes from JSON or a caller's arithmetic may be 1.5 or True.
    if type(value) is not int or not 0 < value <= CHARACTERS_MAX:
        raise InvalidField(
            f"'characters' must be a whole number from 1 to {CHARACTERS_MAX}.", "characters"
        )
