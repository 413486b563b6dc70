"""Running one statement on one row or on many. Knows no table."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Executable,
    Insert,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from danqing.db.prepared import Prepared

R = TypeVar("R")
Row = Mapping[str, Any]


def one(
    conn: Connection, row: type[R], statement: Executable | Prepared, **values: Any
) -> R | None:
    """The statement's only row, or None."""
    if isinstance(statement, Prepared):
        rows = statement.every(conn, row, values)
        assert len(rows) <= 1
        return rows[0] if rows else None
    found = conn.execute(statement, values).one_or_none()
    return None if found is None else row(**found._mapping)


def every(
    conn: Connection, row: type[R], statement: Executable | Prepared, **values: Any
) -> list[R]:
    if isinstance(statement, Prepared):
        return statement.every(conn, row, values)
    found = conn.execute(statement, values)
    names = tuple(found.keys())
    return [row(**dict(zip(names, one_row, strict=True))) for one_row in found]


def padded(ids: Collection[str]) -> list[str]:
    """The ids for an IN (…), repeated up to a power of two: eight statements to prepare, not 128."""
    found = list(ids)
    if len(found) == 1:
        return found
    return found + found[-1:] * ((1 << (len(found) - 1).bit_length()) - len(found))


def insert_rows(conn: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same columns.

    On PostgreSQL as one JSON document in one statement: a statement per row is twice the work to
    send and to run. SQLite's prepared statement per row is faster than its JSON.
    """
    if not rows:
        return
    if conn.dialect.name == "postgresql":
        conn.execute(_insert_given(table, tuple(rows[0])), {"given": _document(rows)})
    else:
        _insert(table, tuple(rows[0])).count(conn, rows)


@cache
def _insert(table: Table, _names: tuple[str, ...]) -> Prepared:
    return Prepared(insert(table))


@cache
def _insert_given(table: Table, names: tuple[str, ...]) -> Insert:
    types = {name: table.c[name].type for name in names}
    # JSON within the document travels as text: nothing looks into it on its way to its column.
    plain = {name: Text() if isinstance(kind, JSON) else kind for name, kind in types.items()}
    given = (
        func.json_to_recordset(cast(bindparam("given", type_=Text), JSON))
        .table_valued(*(column(name, kind) for name, kind in plain.items()), name="given")
        .render_derived(with_types=True)
    )
    values = [
        cast(given.c[name], JSON) if isinstance(kind, JSON) else given.c[name]
        for name, kind in types.items()
    ]
    return insert(table).from_select(names, select(*values), include_defaults=False)


def given(key: Column[str], name: str, kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """On PostgreSQL, a value of the row that `update_rows` has for this key."""
    row = bindparam("given", type_=JSONB).op("->", return_type=JSONB())(key)
    return cast(row.op("->>", return_type=Text())(name), kind)


def update_rows(
    conn: Connection, each: Prepared, all_given: Update, rows: Mapping[str, Row]
) -> int:
    """Update rows by their keys; how many there were.

    By a statement for each row with its values bound; on PostgreSQL by one for all, where `ids` are
    the keys. To join the rows with a table instead would leave it to the planner whether it reads
    the whole of the table.
    """
    if not rows:
        return 0
    if conn.dialect.name == "postgresql":
        values = {"ids": padded(rows), "given": {key: _plain(row) for key, row in rows.items()}}
        return conn.execute(all_given, values).rowcount
    return each.count(conn, list(rows.values()))


def _document(rows: Sequence[Row]) -> str:
    return json.dumps([_plain(row) for row in rows])


def _plain(row: Row) -> dict[str, Any]:
    return {
        name: json.dumps(value) if isinstance(value, Mapping | list) else value
        for name, value in row.items()
    }
