"""Every SQL statement, as functions of a Connection. They decide nothing: rules are the service's.

Statements are built once, with bound parameters, so that SQLAlchemy finds them in its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Executable,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from danqing.db.tables import (
    OPEN_STATES,
    AccountRow,
    EndState,
    ImageRow,
    Json,
    OpenState,
    RedeemCodeRow,
    TaskRow,
    TokenFacts,
    TokenRow,
    TransferRow,
    accounts,
    images,
    redeem_codes,
    tasks,
    tokens,
    transfers,
)

R = TypeVar("R")


def _one(conn: Connection, row: type[R], statement: Executable, **values: Any) -> R | None:
    found = conn.execute(statement, values).mappings().one_or_none()
    return None if found is None else row(**found)


def _all(conn: Connection, row: type[R], statement: Executable, **values: Any) -> list[R]:
    return [row(**found) for found in conn.execute(statement, values).mappings()]


def _values(row: Any) -> dict[str, Any]:
    """A row's columns; `dataclasses.asdict` would copy its JSON in depth."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


# Accounts

_INSERT_ACCOUNT = insert(accounts)
_ACCOUNT = select(accounts).where(accounts.c.id == bindparam("id"))
_ACCOUNT_NAMED = select(accounts).where(accounts.c.name == bindparam("name"))
_ACCOUNTS = select(accounts).order_by(accounts.c.name)
_MOVE = (
    update(accounts)
    .where(
        accounts.c.id == bindparam("account_id"),
        accounts.c.balance + bindparam("delta") >= 0,
    )
    .values(balance=accounts.c.balance + bindparam("delta"))
    .returning(accounts.c.balance)
)
_WAIVE = (
    update(accounts)
    .where(accounts.c.id == bindparam("account_id"))
    .values(
        waiver_version=bindparam("version"),
        waiver_text=bindparam("waiver"),
        waiver_ms=bindparam("now_ms"),
    )
)


def insert_account(conn: Connection, row: AccountRow) -> None:
    conn.execute(_INSERT_ACCOUNT, _values(row))


def account_by_id(conn: Connection, account_id: str) -> AccountRow | None:
    return _one(conn, AccountRow, _ACCOUNT, id=account_id)


def account_by_name(conn: Connection, name: str) -> AccountRow | None:
    return _one(conn, AccountRow, _ACCOUNT_NAMED, name=name)


def all_accounts(conn: Connection) -> list[AccountRow]:
    return _all(conn, AccountRow, _ACCOUNTS)


def move_balance(conn: Connection, account_id: str, delta: int) -> int | None:
    """Add `delta` and return the new balance; None, and nothing done, where it would be
    negative or there is no such account."""
    return conn.execute(_MOVE, {"account_id": account_id, "delta": delta}).scalar_one_or_none()


def set_waiver(conn: Connection, account_id: str, version: str, text: str, now_ms: int) -> None:
    values = {"account_id": account_id, "version": version, "waiver": text, "now_ms": now_ms}
    conn.execute(_WAIVE, values)


# Tokens

_INSERT_TOKEN = insert(tokens)
_TOKEN = select(tokens).where(tokens.c.id == bindparam("id"))
_TOKENS = select(tokens).order_by(tokens.c.created_ms, tokens.c.id)
_TOKENS_OF = _TOKENS.where(tokens.c.account_id == bindparam("account_id"))
_TOKEN_FACTS = (
    select(
        tokens.c.id.label("token_id"),
        tokens.c.key_version,
        tokens.c.expires_ms,
        tokens.c.revoked_ms,
        tokens.c.account_id,
        accounts.c.name.label("account_name"),
        accounts.c.suspended,
        accounts.c.waiver_ms,
    )
    .join_from(tokens, accounts)
    .where(tokens.c.id == bindparam("id"))
)
_REVOKE = (
    update(tokens)
    .where(tokens.c.id == bindparam("token_id"))
    .values(revoked_ms=func.coalesce(tokens.c.revoked_ms, bindparam("now_ms")))
)


def insert_token(conn: Connection, row: TokenRow) -> None:
    conn.execute(_INSERT_TOKEN, _values(row))


def token_by_id(conn: Connection, token_id: str) -> TokenRow | None:
    return _one(conn, TokenRow, _TOKEN, id=token_id)


def tokens_of(conn: Connection, account_id: str | None) -> list[TokenRow]:
    """The tokens of one account, or of all, oldest first."""
    if account_id is None:
        return _all(conn, TokenRow, _TOKENS)
    return _all(conn, TokenRow, _TOKENS_OF, account_id=account_id)


def token_facts(conn: Connection, token_id: str) -> TokenFacts | None:
    return _one(conn, TokenFacts, _TOKEN_FACTS, id=token_id)


def revoke_token(conn: Connection, token_id: str, now_ms: int) -> bool:
    """Mark as revoked, keeping the first time; False where there is no such token."""
    return conn.execute(_REVOKE, {"token_id": token_id, "now_ms": now_ms}).rowcount == 1


# Redeem codes

_INSERT_CODE = insert(redeem_codes)
_CODE = select(redeem_codes).where(redeem_codes.c.digest == bindparam("digest"))
_USE_CODE = (
    update(redeem_codes)
    .where(redeem_codes.c.digest == bindparam("code_digest"), redeem_codes.c.used_ms.is_(None))
    .values(account_id=bindparam("user_id"), used_ms=bindparam("now_ms"))
    .returning(redeem_codes.c.characters)
)


def insert_redeem_codes(conn: Connection, rows: Sequence[RedeemCodeRow]) -> None:
    conn.execute(_INSERT_CODE, [_values(row) for row in rows])


def redeem_code(conn: Connection, digest: str) -> RedeemCodeRow | None:
    return _one(conn, RedeemCodeRow, _CODE, digest=digest)


def use_redeem_code(conn: Connection, digest: str, account_id: str, now_ms: int) -> int | None:
    """Mark an unused code as used and return its characters; None where there is no such one."""
    values = {"code_digest": digest, "user_id": account_id, "now_ms": now_ms}
    return conn.execute(_USE_CODE, values).scalar_one_or_none()


# Transfers

_INSERT_TRANSFER = insert(transfers)
_TRANSFER = select(transfers).where(transfers.c.id == bindparam("id"))
_STATEMENT = (
    select(transfers)
    .where(transfers.c.account_id == bindparam("account_id"), transfers.c.id > bindparam("after"))
    .order_by(transfers.c.id)
    .limit(bindparam("rows_max"))
)


def insert_transfer(conn: Connection, row: TransferRow) -> None:
    conn.execute(_INSERT_TRANSFER, _values(row))


def transfer_by_id(conn: Connection, transfer_id: str) -> TransferRow | None:
    return _one(conn, TransferRow, _TRANSFER, id=transfer_id)


def transfers_of(conn: Connection, account_id: str, after: str, rows_max: int) -> list[TransferRow]:
    """Transfers with ids above `after`, oldest first."""
    return _all(
        conn, TransferRow, _STATEMENT, account_id=account_id, after=after, rows_max=rows_max
    )


# Tasks

_IS_OPEN = tasks.c.state.in_([literal_column(f"'{state}'") for state in OPEN_STATES])
_INSERT_TASK = insert(tasks)
_TASK = select(tasks).where(tasks.c.id == bindparam("id"))
_TASK_OR_HOLD = select(tasks).where(
    or_(tasks.c.id == bindparam("id"), tasks.c.hold_id == bindparam("hold_id"))
)
_OVERDUE = (
    select(tasks)
    .where(_IS_OPEN, tasks.c.lease_until_ms < bindparam("now_ms"))
    .order_by(tasks.c.lease_until_ms)
    .limit(bindparam("rows_max"))
)
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
_AT_EPOCH = update(tasks).where(
    tasks.c.id == bindparam("task_id"), tasks.c.epoch == bindparam("at_epoch"), _IS_OPEN
)
_LEASE = _AT_EPOCH.values(
    lease_until_ms=bindparam("until_ms"),
    state=func.coalesce(bindparam("new_state"), tasks.c.state),
)
_END = _AT_EPOCH.values(
    {name: bindparam(f"new_{name}") for name in ("state", "result", "error", "charged")}
    | {"finished_ms": bindparam("now_ms")}
).returning(
    tasks.c.account_id,
    tasks.c.hold_id,
    # As text: SQLAlchemy drops the tables' names inside SQLite's RETURNING, and both have an id.
    literal_column(
        "COALESCE((SELECT h.amount FROM transfers AS h WHERE h.id = tasks.hold_id), 0)"
    ).label("held"),
)


@dataclass(frozen=True, slots=True)
class OpenHolds:
    """How many holds are open, and the characters in them."""

    count: int
    characters: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Whose task ended, and the hold it leaves to resolve: its id and characters."""

    account_id: str
    hold_id: str | None
    held: int


def insert_task(conn: Connection, row: TaskRow) -> None:
    conn.execute(_INSERT_TASK, _values(row))


def task_by_id(conn: Connection, task_id: str) -> TaskRow | None:
    return _one(conn, TaskRow, _TASK, id=task_id)


def tasks_by_id_or_hold(conn: Connection, task_id: str, hold_id: str) -> list[TaskRow]:
    return _all(conn, TaskRow, _TASK_OR_HOLD, id=task_id, hold_id=hold_id)


def extend_lease(
    conn: Connection, task_id: str, epoch: int, until_ms: int, state: OpenState | None
) -> bool:
    """Move the lease of an open task at this epoch, and its state if given; False if it is not so."""
    values = {"task_id": task_id, "at_epoch": epoch, "until_ms": until_ms, "new_state": state}
    return conn.execute(_LEASE, values).rowcount == 1


def end_task(
    conn: Connection,
    task_id: str,
    epoch: int,
    *,
    state: EndState,
    result: Json | None,
    error: Json | None,
    charged: int,
    now_ms: int,
) -> Ended | None:
    """End an open task at this epoch; None, and nothing done, where it is not so."""
    return _one(
        conn,
        Ended,
        _END,
        task_id=task_id,
        at_epoch=epoch,
        new_state=state,
        new_result=result,
        new_error=error,
        new_charged=charged,
        now_ms=now_ms,
    )


def overdue_tasks(conn: Connection, now_ms: int, rows_max: int) -> list[TaskRow]:
    """Open tasks whose lease is over, the longest first."""
    return _all(conn, TaskRow, _OVERDUE, now_ms=now_ms, rows_max=rows_max)


def open_holds(conn: Connection, account_id: str | None) -> OpenHolds:
    statement = _OPEN_HOLDS if account_id is None else _OPEN_HOLDS_OF
    values = {} if account_id is None else {"account_id": account_id}
    return OpenHolds(*conn.execute(statement, values).one())


# Images

_INSERT_IMAGE = insert(images)
_IMAGE = select(images).where(images.c.id == bindparam("id"))
_IMAGES_OF = select(images).where(images.c.task_id == bindparam("task_id")).order_by(images.c.idx)


def insert_images(conn: Connection, rows: Sequence[ImageRow]) -> None:
    if rows:
        conn.execute(_INSERT_IMAGE, [_values(row) for row in rows])


def image_by_id(conn: Connection, image_id: str) -> ImageRow | None:
    return _one(conn, ImageRow, _IMAGE, id=image_id)


def images_of_task(conn: Connection, task_id: str) -> list[ImageRow]:
    return _all(conn, ImageRow, _IMAGES_OF, task_id=task_id)
