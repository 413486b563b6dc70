"""The ledger's SQL, many rows at a time, as functions of a Connection. They decide nothing: rules are the service's.

Statements are built once, with bound parameters, so that SQLAlchemy finds them in its cache; lists
of ids are cut to SQLite's limit by the ledger's batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    String,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert_postgresql
from sqlalchemy.dialects.sqlite import insert as upsert_sqlite

from danqing.db.prepared import Prepared
from danqing.db.rows import OPEN_STATES, OpenState, TaskRow, TransferRow, values_of
from danqing.db.statements import every, given, insert_rows, one, padded, update_rows
from danqing.db.tables import accounts, tasks, token_spending, tokens, transfers

_IDS = bindparam("ids", expanding=True)

# Accounts and tokens, as a hold sees them

_LOCK_ACCOUNTS = (
    select(accounts.c.id)
    .where(accounts.c.id.in_(_IDS))
    .order_by(accounts.c.id)
    .with_for_update(key_share=True)
)
_PAYERS = Prepared(
    select(
        accounts.c.id,
        accounts.c.balance,
        accounts.c.suspended,
        accounts.c.deleted_ms,
        accounts.c.low_balance,
        accounts.c.low_balance_told,
        accounts.c.webhook_url,
    ).where(accounts.c.id.in_(_IDS))
)
_LIMITS = Prepared(
    select(
        tokens.c.id,
        tokens.c.revoked_ms,
        tokens.c.budget_day,
        tokens.c.budget_month,
        tokens.c.budget_total,
        tokens.c.concurrency_max,
    ).where(tokens.c.id.in_(_IDS))
)


def _moved(delta: ColumnElement[int]) -> dict[str, ColumnElement[Any]]:
    """The balance, and whether its holder was told that it is low: at the line or above, no more."""
    left = accounts.c.balance + delta
    still_low = left < func.coalesce(accounts.c.low_balance, 0)
    return {"balance": left, "low_balance_told": and_(accounts.c.low_balance_told, still_low)}


_MOVE = Prepared(
    update(accounts)
    .where(
        accounts.c.id == bindparam("account_id"),
        accounts.c.balance + bindparam("delta") >= 0,
    )
    .values(_moved(bindparam("delta", type_=BigInteger)))
)
_GIVEN_DELTA = given(accounts.c.id, "delta", BigInteger())
_MOVE_ALL = (
    update(accounts)
    .where(accounts.c.id.in_(_IDS), accounts.c.balance + _GIVEN_DELTA >= 0)
    .values(_moved(_GIVEN_DELTA))
)
_LOW_BALANCE_TOLD = (
    update(accounts).where(accounts.c.id == bindparam("account_id")).values(low_balance_told=true())
)


@dataclass(frozen=True, slots=True)
class Payer:
    """What a hold must know of its account."""

    id: str
    balance: int
    suspended: bool
    deleted_ms: int | None
    low_balance: int | None
    low_balance_told: bool
    webhook_url: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a hold must know of its token."""

    id: str
    revoked_ms: int | None
    budget_day: int | None
    budget_month: int | None
    budget_total: int | None
    concurrency_max: int | None


def lock_accounts(conn: Connection, account_ids: Sequence[str]) -> None:
    """Keep other transactions from moving these balances until this one ends; ids in order.

    SQLite has one writer anyhow.
    """
    if account_ids and conn.dialect.name == "postgresql":
        conn.execute(_LOCK_ACCOUNTS, {"ids": padded(account_ids)})


def payers(conn: Connection, account_ids: Collection[str]) -> dict[str, Payer]:
    return {row.id: row for row in every(conn, Payer, _PAYERS, ids=padded(account_ids))}


def limits(conn: Connection, token_ids: Collection[str]) -> dict[str, Limits]:
    if not token_ids:
        return {}
    return {row.id: row for row in every(conn, Limits, _LIMITS, ids=padded(token_ids))}


def move_balances(conn: Connection, deltas: Mapping[str, int]) -> bool:
    """Add to each account's balance, and forget that it was low where it is so no more.

    False where one would be negative or does not exist.
    """
    moves = {
        account_id: {"account_id": account_id, "delta": delta}
        for account_id, delta in sorted(deltas.items())
        if delta
    }
    return update_rows(conn, _MOVE, _MOVE_ALL, moves) == len(moves)


def set_low_balance_told(conn: Connection, account_id: str) -> None:
    conn.execute(_LOW_BALANCE_TOLD, {"account_id": account_id})


# What tokens with a budget have spent

_SPENT = select(token_spending).where(
    token_spending.c.token_id.in_(_IDS),
    token_spending.c.window.in_(bindparam("windows", expanding=True)),
)
_SPENT_BY_TASKS = (
    select(tasks.c.created_ms, tasks.c.charged, transfers.c.amount, tasks.c.state)
    .join_from(tasks, transfers, transfers.c.id == tasks.c.hold_id)
    .where(tasks.c.token_id == bindparam("token_id"))
)
_FORGET_SPENDING = delete(token_spending).where(token_spending.c.token_id == bindparam("of_token"))


def spending(
    conn: Connection, token_ids: Collection[str], windows: Collection[str]
) -> dict[tuple[str, str], int]:
    """Characters by (token, window), of those windows that there is a row for."""
    if not token_ids:
        return {}
    found = conn.execute(_SPENT, {"ids": padded(token_ids), "windows": padded(windows)})
    return {(row.token_id, row.window): row.characters for row in found}


def add_spending(conn: Connection, deltas: Mapping[tuple[str, str], int]) -> None:
    """Add to each (token, window), making the row where missing."""
    rows = [
        {"token_id": token_id, "window": window, "characters": characters}
        for (token_id, window), characters in sorted(deltas.items())
        if characters
    ]
    if not rows:
        return
    upsert = upsert_postgresql if conn.dialect.name == "postgresql" else upsert_sqlite
    statement = upsert(token_spending)
    added = token_spending.c.characters + statement.excluded.characters
    conn.execute(
        statement.on_conflict_do_update(
            index_elements=["token_id", "window"], set_={"characters": added}
        ),
        rows,
    )


def subtract_spending(conn: Connection, deltas: Mapping[tuple[str, str], int]) -> None:
    """Take from each (token, window) that there is a row for."""
    rows = [
        {"of_token": token_id, "of_window": window, "less": characters}
        for (token_id, window), characters in sorted(deltas.items())
        if characters
    ]
    if rows:
        conn.execute(_SPEND_LESS, rows)


_SPEND_LESS = (
    update(token_spending)
    .where(
        token_spending.c.token_id == bindparam("of_token"),
        token_spending.c.window == bindparam("of_window"),
    )
    .values(characters=token_spending.c.characters - bindparam("less"))
)


def spent_by_tasks(conn: Connection, token_id: str) -> list[tuple[int, int]]:
    """(created_ms, characters held or charged) of each task that this token paid for."""
    return [
        (row.created_ms, row.amount if row.state in OPEN_STATES else row.charged)
        for row in conn.execute(_SPENT_BY_TASKS, {"token_id": token_id})
    ]


def forget_spending(conn: Connection, token_id: str) -> None:
    conn.execute(_FORGET_SPENDING, {"of_token": token_id})


# Transfers

_TRANSFER = Prepared(select(transfers).where(transfers.c.id == bindparam("id")))
_STATEMENT = (
    select(transfers)
    .where(
        transfers.c.account_id == bindparam("account_id"),
        # A grant's id may be its caller's: not every id is time-ordered.
        tuple_(transfers.c.created_ms, transfers.c.id)
        > tuple_(bindparam("after_ms", type_=BigInteger), bindparam("after", type_=String)),
    )
    .order_by(transfers.c.created_ms, transfers.c.id)
    .limit(bindparam("rows_max"))
)


def insert_transfers(conn: Connection, rows: Sequence[TransferRow]) -> None:
    insert_rows(conn, transfers, [values_of(row) for row in rows])


def transfer_by_id(conn: Connection, transfer_id: str) -> TransferRow | None:
    return one(conn, TransferRow, _TRANSFER, id=transfer_id)


def transfers_of(conn: Connection, account_id: str, after: str, rows_max: int) -> list[TransferRow]:
    """Transfers behind the one with the id `after` ("": all; unknown: none), oldest first."""
    before = transfer_by_id(conn, after) if after else None
    if after and before is None:
        return []
    return every(
        conn,
        TransferRow,
        _STATEMENT,
        account_id=account_id,
        after_ms=-1 if before is None else before.created_ms,
        after=after,
        rows_max=rows_max,
    )


# Tasks

_IS_OPEN = tasks.c.state.in_([literal_column(f"'{state}'") for state in OPEN_STATES])
_TASK = Prepared(select(tasks).where(tasks.c.id == bindparam("id")))
_TASK_OR_HOLD = Prepared(
    select(tasks).where(or_(tasks.c.id == bindparam("id"), tasks.c.hold_id == bindparam("hold_id")))
)
_BY_CLIENT_KEY = Prepared(select(tasks).where(tasks.c.client_key.in_(_IDS)))
_RELEASE_KEY = update(tasks).where(tasks.c.id == bindparam("task_id")).values(client_key=None)
_OVERDUE = (
    select(tasks)
    .where(
        _IS_OPEN,
        or_(
            tasks.c.lease_until_ms < bindparam("now_ms"),
            tasks.c.lease_until_ms > bindparam("far_ms"),
        ),
    )
    .order_by(tasks.c.lease_until_ms)
    .limit(bindparam("rows_max"))
)
_OPEN_BY_TOKEN = (
    select(tasks.c.token_id, func.count().label("count"))
    .where(_IS_OPEN, tasks.c.token_id.in_(_IDS))
    .group_by(tasks.c.token_id)
)
_OPEN_OF = select(tasks.c.id).where(_IS_OPEN, tasks.c.account_id == bindparam("account_id"))
_OPEN_HOLDS = (
    select(
        func.count().label("count"),
        func.coalesce(func.sum(transfers.c.amount), 0).label("characters"),
    )
    .select_from(tasks)
    .join(transfers, transfers.c.id == tasks.c.hold_id)
    .where(_IS_OPEN)
)
_OPEN_HOLDS_OF = _OPEN_HOLDS.where(tasks.c.account_id == bindparam("account_id"))
# A CHECK makes it say what _IS_OPEN says. But for that, PostgreSQL may look for a task by its id in
# the index of open tasks, and read through the thousands that have ended since its last vacuum.
_NOT_ENDED = tasks.c.finished_ms.is_(None)
_AT_EPOCH = update(tasks).where(
    tasks.c.id == bindparam("task_id"), tasks.c.epoch == bindparam("at_epoch"), _NOT_ENDED
)
_LEASE = _AT_EPOCH.values(
    lease_until_ms=bindparam("until_ms"),
    state=func.coalesce(bindparam("new_state"), tasks.c.state),
).returning(tasks.c.cancel_ms)
_ASK_CANCEL = (
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"), _IS_OPEN)
    .values(cancel_ms=bindparam("now_ms"))
)
_CLAIM = (
    _AT_EPOCH.where(tasks.c.lease_until_ms == bindparam("was_until_ms"))
    .values(epoch=tasks.c.epoch + 1, lease_until_ms=bindparam("until_ms"))
    .returning(*tasks.c)
)
_GIVE_BACK = _AT_EPOCH.values(draws=tasks.c.draws - 1, state="queued", lease_until_ms=0)
_DRAW_AGAIN = _AT_EPOCH.values(draws=tasks.c.draws + 1, state="queued")


@dataclass(frozen=True, slots=True)
class OpenHolds:
    """How many holds are open, and the characters in them."""

    count: int
    characters: int


def insert_tasks(conn: Connection, rows: Sequence[TaskRow]) -> None:
    insert_rows(conn, tasks, [values_of(row) for row in rows])


def task_by_id(conn: Connection, task_id: str) -> TaskRow | None:
    return one(conn, TaskRow, _TASK, id=task_id)


def every_task(conn: Connection) -> list[TaskRow]:
    """All of them, for checks of small books."""
    return every(conn, TaskRow, select(tasks).order_by(tasks.c.id))


def tasks_by_id_or_hold(conn: Connection, task_id: str, hold_id: str) -> list[TaskRow]:
    return every(conn, TaskRow, _TASK_OR_HOLD, id=task_id, hold_id=hold_id)


def tasks_by_client_key(conn: Connection, keys: Collection[str]) -> dict[str, TaskRow]:
    if not keys:
        return {}
    rows = every(conn, TaskRow, _BY_CLIENT_KEY, ids=padded(keys))
    return {row.client_key: row for row in rows if row.client_key is not None}


def release_client_keys(conn: Connection, task_ids: Iterable[str]) -> None:
    """Forget the tasks' client keys: another task may have them."""
    rows = [{"task_id": task_id} for task_id in task_ids]
    if rows:
        conn.execute(_RELEASE_KEY, rows)


def open_tasks_by_token(conn: Connection, token_ids: Collection[str]) -> dict[str, int]:
    if not token_ids:
        return {}
    found = conn.execute(_OPEN_BY_TOKEN, {"ids": padded(token_ids)})
    return {row.token_id: row.count for row in found}


def open_task_ids(conn: Connection, account_id: str) -> list[str]:
    return list(conn.execute(_OPEN_OF, {"account_id": account_id}).scalars())


def extend_lease(
    conn: Connection, task_id: str, epoch: int, until_ms: int, state: OpenState | None
) -> bool | None:
    """Move the lease of an open task at this epoch, and its state if given.

    True where somebody asked to have it cancelled; None, and nothing done, if it is not so.
    """
    values = {"task_id": task_id, "at_epoch": epoch, "until_ms": until_ms, "new_state": state}
    row = conn.execute(_LEASE, values).one_or_none()
    return None if row is None else row.cancel_ms is not None


def ask_cancel(conn: Connection, task_id: str, now_ms: int) -> bool:
    """Ask the owner of an open task to cancel it; False where it is not open."""
    return conn.execute(_ASK_CANCEL, {"task_id": task_id, "now_ms": now_ms}).rowcount == 1


def claim_task(
    conn: Connection, task_id: str, epoch: int, was_until_ms: int, until_ms: int
) -> TaskRow | None:
    """Take an open task over from this epoch and lease to the next epoch; None if it is not so."""
    return one(
        conn,
        TaskRow,
        _CLAIM,
        task_id=task_id,
        at_epoch=epoch,
        was_until_ms=was_until_ms,
        until_ms=until_ms,
    )


def give_back_task(conn: Connection, task_id: str, epoch: int) -> bool:
    """End the lease of an open task at this epoch, its drawing uncounted; False if it is not so."""
    return conn.execute(_GIVE_BACK, {"task_id": task_id, "at_epoch": epoch}).rowcount == 1


def draw_again(conn: Connection, task_id: str, epoch: int) -> bool:
    """Count one more drawing of an open task at this epoch; False if it is not so."""
    return conn.execute(_DRAW_AGAIN, {"task_id": task_id, "at_epoch": epoch}).rowcount == 1


def overdue_tasks(conn: Connection, now_ms: int, far_ms: int, rows_max: int) -> list[TaskRow]:
    """Open tasks whose lease is over, or later than `far_ms` (the clock jumped back since)."""
    return every(conn, TaskRow, _OVERDUE, now_ms=now_ms, far_ms=far_ms, rows_max=rows_max)


def open_holds(conn: Connection, account_id: str | None) -> OpenHolds:
    statement = _OPEN_HOLDS if account_id is None else _OPEN_HOLDS_OF
    values = {} if account_id is None else {"account_id": account_id}
    # PostgreSQL adds bigints up to a numeric.
    return OpenHolds(*map(int, conn.execute(statement, values).one()))
