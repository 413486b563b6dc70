"""SQL on how tasks end, many at a time, as functions of a Connection. They decide nothing: rules are the service's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Connection, Integer, bindparam, func, select, update

from danqing.db.prepared import Prepared
from danqing.db.rows import EndState, Json
from danqing.db.statements import every, given, padded, update_rows
from danqing.db.tables import tasks, transfers

_IDS = bindparam("ids", expanding=True)
# As in book_queries: no index of open tasks is asked for a task whose id is known.
_NOT_ENDED = tasks.c.finished_ms.is_(None)
_ENDING = Prepared(
    select(
        tasks.c.id,
        tasks.c.account_id,
        tasks.c.token_id,
        tasks.c.epoch,
        tasks.c.state,
        tasks.c.background,
        tasks.c.hold_id,
        tasks.c.created_ms,
        func.coalesce(transfers.c.amount, 0).label("held"),
    )
    .select_from(tasks.outerjoin(transfers, transfers.c.id == tasks.c.hold_id))
    .where(tasks.c.id.in_(_IDS))
    .order_by(tasks.c.id)
    .with_for_update(of=tasks)
)
_END = Prepared(
    update(tasks)
    .where(tasks.c.id == bindparam("task_id"), tasks.c.epoch == bindparam("at_epoch"), _NOT_ENDED)
    .values(
        {name: bindparam(f"new_{name}") for name in ("state", "result", "error", "charged")}
        | {"finished_ms": bindparam("now_ms")}
    )
)
_END_ALL = (
    update(tasks)
    .where(
        tasks.c.id.in_(_IDS),
        tasks.c.epoch == given(tasks.c.id, "at_epoch", Integer()),
        _NOT_ENDED,
    )
    .values(
        {
            name: given(tasks.c.id, f"new_{name}", tasks.c[name].type)
            for name in ("state", "result", "error", "charged")
        }
        | {"finished_ms": given(tasks.c.id, "now_ms", BigInteger())}
    )
)


@dataclass(frozen=True, slots=True)
class Ending:
    """A task that is about to end, and the hold it leaves to resolve."""

    id: str
    account_id: str
    token_id: str | None
    epoch: int
    state: str
    background: bool
    hold_id: str | None
    created_ms: int
    held: int


@dataclass(frozen=True, slots=True)
class End:
    """How a task ends."""

    task_id: str
    epoch: int
    state: EndState
    result: Json | None
    error: Json | None
    charged: int
    now_ms: int


def endings(conn: Connection, task_ids: Collection[str]) -> dict[str, Ending]:
    return {row.id: row for row in every(conn, Ending, _ENDING, ids=padded(task_ids))}


def end_tasks(conn: Connection, ends: Sequence[End]) -> bool:
    """End open tasks, each at its epoch; False where one is not open or at another epoch."""
    rows = {
        end.task_id: {
            "task_id": end.task_id,
            "at_epoch": end.epoch,
            "new_state": end.state,
            "new_result": end.result,
            "new_error": end.error,
            "new_charged": end.charged,
            "now_ms": end.now_ms,
        }
        for end in ends
    }
    return update_rows(conn, _END, _END_ALL, rows) == len(rows)
