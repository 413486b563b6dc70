"""SQL on the audit log, the refusals and the outbox of webhooks, as functions of a Connection. They decide nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, String, bindparam, delete, insert, or_, select, text, update

from danqing.db.rows import AuditRow, OutboxRow, RefusalRow, values_of
from danqing.db.statements import every
from danqing.db.tables import audit_log, outbox, refusals

# The audit log

_INSERT_AUDIT = insert(audit_log)
_LAST_AUDIT = select(audit_log).order_by(audit_log.c.seq.desc()).limit(1)
_AUDIT = (
    select(audit_log)
    .where(
        audit_log.c.seq > bindparam("after"),
        or_(
            bindparam("of_subject", type_=String).is_(None),
            audit_log.c.subject == bindparam("of_subject"),
        ),
    )
    .order_by(audit_log.c.seq)
    .limit(bindparam("rows_max"))
)


def lock_audit(conn: Connection) -> None:
    """Let other writers wait until this transaction ends. SQLite has one writer anyhow."""
    if conn.dialect.name == "postgresql":
        conn.execute(text("LOCK TABLE audit_log IN EXCLUSIVE MODE"))


def last_audit(conn: Connection) -> AuditRow | None:
    """The newest row; other writers wait until this transaction ends."""
    lock_audit(conn)
    rows = every(conn, AuditRow, _LAST_AUDIT)
    return rows[0] if rows else None


def insert_audit(conn: Connection, row: AuditRow) -> None:
    conn.execute(_INSERT_AUDIT, values_of(row))


def audit_after(
    conn: Connection, after: int, rows_max: int, subject: str | None = None
) -> list[AuditRow]:
    """Rows with numbers above `after`, oldest first, of one subject or of all."""
    return every(conn, AuditRow, _AUDIT, after=after, rows_max=rows_max, of_subject=subject)


# What moderation refused

_INSERT_REFUSAL = insert(refusals)
_REFUSALS = (
    select(refusals)
    .where(refusals.c.id > bindparam("after"))
    .order_by(refusals.c.id)
    .limit(bindparam("rows_max"))
)
_REFUSALS_OF = _REFUSALS.where(refusals.c.account_id == bindparam("of_account"))
_PRUNE_REFUSALS = delete(refusals).where(refusals.c.id < bindparam("before_id"))


def insert_refusal(conn: Connection, row: RefusalRow) -> None:
    conn.execute(_INSERT_REFUSAL, values_of(row))


def refusals_after(
    conn: Connection, after: str, rows_max: int, account_id: str | None = None
) -> list[RefusalRow]:
    """Refusals behind the one with the id `after`, oldest first, of one account or of all."""
    if account_id is None:
        return every(conn, RefusalRow, _REFUSALS, after=after, rows_max=rows_max)
    return every(
        conn, RefusalRow, _REFUSALS_OF, after=after, rows_max=rows_max, of_account=account_id
    )


def prune_refusals(conn: Connection, before_id: str) -> int:
    """Forget those with lower ids, which are older (UUIDv7); how many there were."""
    return conn.execute(_PRUNE_REFUSALS, {"before_id": before_id}).rowcount


# Webhooks on their way

_INSERT_OUTBOX = insert(outbox)
_WAITING = (outbox.c.delivered_ms.is_(None), outbox.c.failed_ms.is_(None))
_COLUMNS = [column for column in outbox.c if column.name in OutboxRow.__dataclass_fields__]
_DUE = (
    select(*_COLUMNS)
    .where(
        *_WAITING,
        outbox.c.next_ms <= bindparam("now_ms"),
        outbox.c.account_id.not_in(bindparam("busy", expanding=True)),
    )
    .order_by(outbox.c.next_ms)
    .limit(bindparam("rows_max"))
    .with_for_update(skip_locked=True)
)
_TAKE = (
    update(outbox)
    .where(outbox.c.id == bindparam("row_id"))
    .values(attempts=outbox.c.attempts + 1, next_ms=bindparam("until_ms"))
)
_DELIVERED = (
    update(outbox)
    .where(outbox.c.id == bindparam("row_id"), *_WAITING)
    .values(delivered_ms=bindparam("now_ms"))
)
_RETRY = (
    update(outbox)
    .where(outbox.c.id == bindparam("row_id"), *_WAITING)
    .values(next_ms=bindparam("retry_ms"), note=bindparam("why"))
)
_GIVEN_UP = (
    update(outbox)
    .where(outbox.c.id == bindparam("row_id"), *_WAITING)
    .values(failed_ms=bindparam("now_ms"), note=bindparam("why"))
)


_GIVE_UP_OF = (
    update(outbox)
    .where(outbox.c.account_id == bindparam("of_account"), *_WAITING)
    .values(failed_ms=bindparam("now_ms"), note=bindparam("why"))
)
_PRUNE = delete(outbox).where(
    or_(outbox.c.delivered_ms < bindparam("before_ms"), outbox.c.failed_ms < bindparam("before_ms"))
)


def insert_outbox(conn: Connection, rows: Sequence[OutboxRow]) -> None:
    if rows:
        conn.execute(_INSERT_OUTBOX, [values_of(row) | {"next_ms": row.created_ms} for row in rows])


def claim_outbox(
    conn: Connection, now_ms: int, until_ms: int, rows_max: int, busy: Collection[str]
) -> list[OutboxRow]:
    """Take what is due, the longest first, one attempt counted; nobody else takes it before `until_ms`.

    Accounts in `busy` are left out. The rows say how many attempts there were before.
    """
    rows = every(conn, OutboxRow, _DUE, now_ms=now_ms, rows_max=rows_max, busy=list(busy))
    if rows:
        conn.execute(_TAKE, [{"row_id": row.id, "until_ms": until_ms} for row in rows])
    return rows


def outbox_delivered(conn: Connection, row_id: str, now_ms: int) -> None:
    conn.execute(_DELIVERED, {"row_id": row_id, "now_ms": now_ms})


def outbox_failed(
    conn: Connection, row_id: str, now_ms: int, retry_ms: int | None, note: str
) -> None:
    """Try again at `retry_ms`, or never."""
    if retry_ms is None:
        conn.execute(_GIVEN_UP, {"row_id": row_id, "now_ms": now_ms, "why": note})
    else:
        conn.execute(_RETRY, {"row_id": row_id, "retry_ms": retry_ms, "why": note})


def give_up_outbox_of(conn: Connection, account_id: str, now_ms: int, note: str) -> None:
    """Never send what still waits for an account."""
    conn.execute(_GIVE_UP_OF, {"of_account": account_id, "now_ms": now_ms, "why": note})


def prune_outbox(conn: Connection, before_ms: int) -> int:
    """Forget what was delivered or given up before then; how many there were."""
    return conn.execute(_PRUNE, {"before_ms": before_ms}).rowcount
