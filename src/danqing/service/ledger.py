"""The ledger: two-phase transfers of characters and the tasks they pay for. Knows rules, not SQL or prices.

After TigerBeetle: a hold (pending) resolves once, by post (what was used is charged, the rest
returns), void, or expire. Transfers are immutable; the id of each is the caller's, so that a
retry answers what is there. The invariant, per account and to the character:
balance = grants ± adjustments - posts - open holds >= 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from danqing.db import audit, queries
from danqing.db.queries import OpenHolds
from danqing.db.session import Connection, Database
from danqing.db.tables import (
    CHARACTERS_MAX,
    EndState,
    ImageRow,
    Json,
    NewTask,
    OpenState,
    TaskRow,
    TransferKind,
    TransferRow,
)
from danqing.domain.errors import InvalidField, NotFound, QuotaExceeded, ServerFault
from danqing.domain.ids import uuid7

EXPIRED = {"code": "server_fault", "message": "The task's server stopped before it was done."}
_EXPIRE_BATCH = 100


class LedgerError(ServerFault):
    """The books refuse this; trying again changes nothing."""

    retryable = False


class StaleTask(LedgerError):
    """The task has ended, or is at another epoch: whoever asks is no longer its owner."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"Task {task_id} has ended or is no longer yours.")


class TransferConflict(LedgerError):
    """The id is in the books already, for something else; or a post is above its hold."""


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
        there. Raises QuotaExceeded, NotFound (no such account), TransferConflict.
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
        )
        return await self._db.write(lambda conn: _open_task(conn, row, hold_id, characters))

    async def renew(
        self, task_id: str, epoch: int, lease_s: float, state: OpenState | None = None
    ) -> None:
        """The heartbeat: extend the task's lease, and its hold's deadline, which is the same.

        `state` moves the task to "running". Raises StaleTask.
        """
        until_ms = self._clock_ms() + round(lease_s * 1000)
        if not await self._db.write(
            lambda conn: queries.extend_lease(conn, task_id, epoch, until_ms, state)
        ):
            raise StaleTask(task_id)

    async def settle(
        self,
        task_id: str,
        epoch: int,
        *,
        post: int,
        state: EndState,
        result: Json | None = None,
        error: Json | None = None,
        images: Sequence[ImageRow] = (),
        transfer_id: str | None = None,
    ) -> None:
        """End the task: POST `post` characters (the rest of the hold returns), or VOID when 0.

        One transaction with the task's end and its images. A retry with the same `transfer_id`
        does nothing more. Raises StaleTask (nothing is changed: the caller deletes its blobs),
        TransferConflict when `post` is above the hold.
        """
        if post:
            check_characters(post)
        now_ms = self._clock_ms()

        def work(conn: Connection) -> None:
            if transfer_id is not None:
                known = queries.transfer_by_id(conn, transfer_id)
                if known is not None:
                    _check_same_resolve(known, task_id, post)
                    return
            ended = queries.end_task(
                conn,
                task_id,
                epoch,
                state=state,
                result=result,
                error=error,
                charged=post,
                now_ms=now_ms,
            )
            if ended is None:
                raise StaleTask(task_id)
            kind = "post" if post else "void"
            _resolve(conn, ended, task_id, kind, post, transfer_id, now_ms)
            queries.insert_images(conn, images)

        await self._db.write(work)

    async def expire_overdue(self, now_ms: int | None = None) -> list[str]:
        """Expire the holds of tasks whose lease is over, and fail those tasks; returns their ids."""
        due_ms = self._clock_ms() if now_ms is None else now_ms
        expired: list[str] = []
        while True:
            batch = await self._db.write(lambda conn: _expire(conn, due_ms))
            expired += batch
            if len(batch) < _EXPIRE_BATCH:
                return expired

    async def grant(
        self, account_id: str, characters: int, reason: str, transfer_id: str | None = None
    ) -> int:
        """Add characters and return the new balance. Raises InvalidField, NotFound, TransferConflict."""
        return await self._db.write(
            lambda conn: self.grant_within(conn, account_id, characters, reason, transfer_id)
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
        check_characters(abs(characters))
        return await self._db.write(
            lambda conn: self._add(conn, "adjust", account_id, characters, reason, transfer_id)
        )

    async def balance(self, account_id: str) -> int:
        """Characters that may still be held. Raises NotFound."""
        account = await self._db.read(lambda conn: queries.account_by_id(conn, account_id))
        if account is None:
            raise _no_account()
        return account.balance

    async def open_holds(self, account_id: str | None = None) -> OpenHolds:
        """Count and characters of the open holds, of one account or of all."""
        return await self._db.read(lambda conn: queries.open_holds(conn, account_id))

    async def statement(
        self, account_id: str, after: str = "", rows_max: int = 1000
    ) -> list[TransferRow]:
        """The account's transfers with ids above `after`, oldest first."""
        return await self._db.read(
            lambda conn: queries.transfers_of(conn, account_id, after, rows_max)
        )

    async def task(self, task_id: str) -> TaskRow | None:
        return await self._db.read(lambda conn: queries.task_by_id(conn, task_id))

    async def images(self, task_id: str) -> list[ImageRow]:
        """The task's images in order."""
        return await self._db.read(lambda conn: queries.images_of_task(conn, task_id))

    async def image(self, image_id: str) -> ImageRow | None:
        return await self._db.read(lambda conn: queries.image_by_id(conn, image_id))

    async def check(self) -> list[str]:
        """One line per broken invariant; empty when the books balance."""
        return await self._db.read(audit.faults)

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
            raise _no_account()
        known = None if transfer_id is None else queries.transfer_by_id(conn, transfer_id)
        if known is not None:
            if (known.account_id, known.kind, known.amount) != (account_id, kind, characters):
                raise TransferConflict(f"Transfer {known.id} is in the books for something else.")
            return account.balance
        if account.balance + characters > max(account.balance, CHARACTERS_MAX):
            raise InvalidField(f"The balance may be at most {CHARACTERS_MAX}.", "characters")
        balance = queries.move_balance(conn, account_id, characters)
        if balance is None:
            raise QuotaExceeded(-characters, account.balance)
        queries.insert_transfer(
            conn,
            TransferRow(
                id=transfer_id or uuid7(),
                account_id=account_id,
                kind=kind,
                amount=characters,
                hold_id=None,
                task_id=None,
                reason=reason,
                created_ms=self._clock_ms(),
            ),
        )
        return balance


def _open_task(conn: Connection, row: TaskRow, hold_id: str, characters: int) -> TaskRow:
    known = queries.tasks_by_id_or_hold(conn, row.id, hold_id)
    if known:
        _check_same_task(conn, known, row, characters)
        return known[0]
    if characters:
        if queries.move_balance(conn, row.account_id, -characters) is None:
            account = queries.account_by_id(conn, row.account_id)
            if account is None:
                raise _no_account()
            raise QuotaExceeded(characters, account.balance)
        queries.insert_transfer(
            conn,
            TransferRow(
                id=hold_id,
                account_id=row.account_id,
                kind="hold",
                amount=characters,
                hold_id=None,
                task_id=row.id,
                reason=None,
                created_ms=row.created_ms,
            ),
        )
    queries.insert_task(conn, row)
    return row


def _resolve(
    conn: Connection,
    ended: queries.Ended,
    task_id: str,
    kind: TransferKind,
    post: int,
    transfer_id: str | None,
    now_ms: int,
) -> None:
    """Resolve the hold of a task that this transaction has just ended."""
    held = ended.held
    if post > held:
        raise TransferConflict(f"Task {task_id} holds {held} characters; {post} cannot be posted.")
    if ended.hold_id is None:
        return
    queries.insert_transfer(
        conn,
        TransferRow(
            id=transfer_id or uuid7(),
            account_id=ended.account_id,
            kind=kind,
            amount=post or held,
            hold_id=ended.hold_id,
            task_id=task_id,
            reason=None,
            created_ms=now_ms,
        ),
    )
    if held > post:
        queries.move_balance(conn, ended.account_id, held - post)


def _expire(conn: Connection, now_ms: int) -> list[str]:
    expired: list[str] = []
    for task in queries.overdue_tasks(conn, now_ms, _EXPIRE_BATCH):
        ended = queries.end_task(
            conn,
            task.id,
            task.epoch,
            state="failed",
            result=None,
            error=EXPIRED,
            charged=0,
            now_ms=now_ms,
        )
        if ended is not None:
            _resolve(conn, ended, task.id, "expire", 0, None, now_ms)
            expired.append(task.id)
    return expired


def _check_same_task(
    conn: Connection, known: Sequence[TaskRow], row: TaskRow, characters: int
) -> None:
    asked = [(row.id, row.account_id, row.hold_id)]
    same = [(task.id, task.account_id, task.hold_id) for task in known] == asked
    if same and row.hold_id is not None:
        hold = queries.transfer_by_id(conn, row.hold_id)
        same = hold is not None and hold.amount == characters
    if not same:
        raise TransferConflict(f"Task {row.id} or its hold is in the books for something else.")


def _check_same_resolve(known: TransferRow, task_id: str, post: int) -> None:
    kind = "post" if post else "void"
    if known.task_id != task_id or known.kind != kind or (post and known.amount != post):
        raise TransferConflict(f"Transfer {known.id} is in the books for something else.")


def check_characters(value: int) -> None:
    """Raises InvalidField for what cannot be an amount."""
    # The type is asked as well: what comes from JSON or a caller's arithmetic may be 1.5 or True.
    if type(value) is not int or not 0 < value <= CHARACTERS_MAX:
        raise InvalidField(
            f"'characters' must be a whole number from 1 to {CHARACTERS_MAX}.", "characters"
        )


def _no_account() -> NotFound:
    return NotFound("There is no such account.", "account")
