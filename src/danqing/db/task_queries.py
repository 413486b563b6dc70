"""SQL on lists of tasks, as functions of a Connection. They decide nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, bindparam, func, select, update

from danqing.db.rows import Json, TaskSummary
from danqing.db.statements import every
from danqing.db.tables import tasks

CLOCK_SLACK_MS = 600_000
"""A task's id is made before its row is written, by at most this (it may wait for the database)."""

_COLUMNS = (
    tasks.c.id,
    tasks.c.token_id,
    tasks.c.model,
    tasks.c.state,
    tasks.c.created_ms,
    tasks.c.finished_ms,
)


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which background tasks of an account are meant. Times are Unix ms; None = any."""

    account_id: str
    dialects: Collection[str]
    from_ms: int
    to_ms: int
    """Inclusive, like `from_ms`: when the task was made."""
    model: str | None = None
    states: Collection[str] | None = None
    token_id: str | None = None


def tasks_matching(
    conn: Connection, wanted: TaskFilter, skip: int, rows_max: int
) -> list[TaskSummary]:
    """The newest first, `rows_max` of them behind the first `skip`."""
    statement = select(*_COLUMNS).where(*_conditions(wanted)).order_by(tasks.c.id.desc())
    return every(conn, TaskSummary, statement.offset(skip).limit(rows_max))


def count_tasks_matching(conn: Connection, wanted: TaskFilter) -> int:
    return conn.execute(select(func.count()).where(*_conditions(wanted))).scalar_one()


def _conditions(wanted: TaskFilter) -> list[ColumnElement[bool]]:
    conditions = [
        tasks.c.account_id == wanted.account_id,
        # UUIDv7: with the account it is an index's range, so a long book costs nothing.
        tasks.c.id >= first_id(wanted.from_ms - CLOCK_SLACK_MS),
        tasks.c.created_ms.between(wanted.from_ms, wanted.to_ms),
        tasks.c.background.is_(True),
        tasks.c.dialect.in_(list(wanted.dialects)),
    ]
    if wanted.model is not None:
        conditions.append(tasks.c.model == wanted.model)
    if wanted.states is not None:
        conditions.append(tasks.c.state.in_(list(wanted.states)))
    if wanted.token_id is not None:
        conditions.append(tasks.c.token_id == wanted.token_id)
    return conditions


def first_id(at_ms: int) -> str:
    """Not above any UUIDv7 that is made at this moment or later."""
    digits = f"{max(at_ms, 0):012x}"
    return f"{digits[:8]}-{digits[8:]}"


@dataclass(frozen=True, slots=True)
class ToldRow:
    """What a task's row says in words."""

    id: str
    finished_ms: int | None
    request: Json
    result: Json | None

    @property
    def is_over(self) -> bool:
        return self.finished_ms is not None


_TOLD = (
    select(tasks.c.id, tasks.c.finished_ms, tasks.c.request, tasks.c.result)
    .where(tasks.c.id > bindparam("after"), tasks.c.id < bindparam("before_id"))
    .order_by(tasks.c.id)
    .limit(bindparam("rows_max"))
)


def told(conn: Connection, after: str, before_id: str, rows_max: int) -> list[ToldRow]:
    """Tasks behind the one with the id `after`, older than `before_id`, the oldest first."""
    return every(conn, ToldRow, _TOLD, after=after, before_id=before_id, rows_max=rows_max)


def retell(conn: Connection, task_id: str, request: Json, result: Json | None) -> None:
    """Put other words into an ended task's row."""
    conn.execute(
        update(tasks).where(tasks.c.id == task_id).values(request=dict(request), result=result)
    )
