"""A statement compiled once; on SQLite the driver gets it as it is. Knows no table.

`Connection.execute` costs ten times what SQLite needs for one of our statements (bench/gateway.py), and
SQLite's errors end no connection, so there is nothing for SQLAlchemy to do in between. PostgreSQL's do:
there it runs the statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Executable, Select
from sqlalchemy.engine import Compiled
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Processor = Callable[[Any], Any]
R = TypeVar("R")


def run(conn: Connection, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
    """One statement by SQLite's driver, in the connection's transaction. Raises DBAPIError."""
    driver = cast("sqlite3.Connection", conn.connection.driver_connection)
    try:
        return driver.execute(sql, parameters)
    except sqlite3.Error as error:
        raise _wrapped(conn, sql, parameters, error) from error


def _wrapped(conn: Connection, sql: str, parameters: Any, error: sqlite3.Error) -> BaseException:
    hidden = conn.engine.hide_parameters
    return DBAPIError.instance(
        sql, parameters, error, sqlite3.Error, hide_parameters=hidden, dialect=conn.dialect
    )


class _Plan:
    """The statement as SQLite takes it, for lists of certain lengths."""

    def __init__(
        self, compiled: SQLCompiler, values: Mapping[str, Any], lists: Sequence[str]
    ) -> None:
        state = compiled.construct_expanded_state(values)
        self.sql = state.statement
        self._lists = {name: state.parameter_expansion[name] for name in lists}
        self._constants = {
            name: value for name, value in state.parameters.items() if name not in values
        }
        whose = {part: name for name, parts in self._lists.items() for part in parts}
        types = {name: bind.type for name, bind in compiled.binds.items()}
        dialect = compiled.dialect
        self._names: list[str] = list(state.positiontup or ())
        self._is_plain = not self._lists and not self._constants
        self._processed: list[tuple[int, Processor]] = []
        for at, name in enumerate(self._names):
            kind = types[whose.get(name, name)].dialect_impl(dialect)
            if (process := kind.bind_processor(dialect)) is not None:
                self._processed.append((at, process))

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the statement's question marks, as the driver takes them."""
        found = values
        if not self._is_plain:
            found = {**self._constants, **values}
            for name, parts in self._lists.items():
                found.update(zip(parts, values[name], strict=True))
        bound = [found[name] for name in self._names]
        for at, process in self._processed:
            bound[at] = process(bound[at])
        return bound


class Prepared:
    """A statement that is the same each time but for its bound values."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement
        self._compiled: SQLCompiler | None = None
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._selects = isinstance(statement, Select)
        self._columns: tuple[str, ...] = ()
        self._processed: list[tuple[int, Processor]] = []
        self._fit: dict[type[Any], bool] = {}

    def rows(self, conn: Connection, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows that it finds, each by its columns' names."""
        names, found = self._found(conn, values)
        return [dict(zip(names, row, strict=True)) for row in found]

    def every(self, conn: Connection, kind: type[R], values: Mapping[str, Any]) -> list[R]:
        """The rows that it finds, each as an object of the dataclass that has its columns."""
        names, found = self._found(conn, values)
        in_order = self._fit.get(kind)
        if in_order is None:
            in_order = self._fit[kind] = names == tuple(one.name for one in fields(kind))
        if in_order:
            return [kind(*row) for row in found]
        return [kind(**dict(zip(names, row, strict=True))) for row in found]

    def _found(
        self, conn: Connection, values: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], Sequence[Sequence[Any]]]:
        if conn.dialect.name != "sqlite":
            result = conn.execute(self.statement, values)
            return tuple(result.keys()), result.all()
        plan = self._plan(conn, values)
        found: list[Sequence[Any]] = run(conn, plan.sql, plan.bound(values)).fetchall()
        if not self._processed:
            return self._columns, found
        rows = [list(row) for row in found]
        for at, process in self._processed:
            for row in rows:
                row[at] = process(row[at])
        return self._columns, rows

    def count(self, conn: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each of the `rows` of values; how many rows of its table were written."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self.statement, rows).rowcount
        plan = self._plan(conn, rows[0])
        bound = [plan.bound(values) for values in rows]
        if len(bound) == 1:
            return run(conn, plan.sql, bound[0]).rowcount
        driver = cast("sqlite3.Connection", conn.connection.driver_connection)
        try:
            return driver.executemany(plan.sql, bound).rowcount
        except sqlite3.Error as error:
            raise _wrapped(conn, plan.sql, bound, error) from error

    def _plan(self, conn: Connection, values: Mapping[str, Any]) -> _Plan:
        if not self._selects and (only := self._plans.get(())) is not None:
            return only  # a list in the rows of an INSERT or UPDATE is JSON
        lists: list[str] = []
        if self._selects:
            lists = [name for name, value in values.items() if isinstance(value, list)]
        lengths = tuple([len(values[name]) for name in lists])
        plan = self._plans.get(lengths)
        if plan is None:
            plan = self._plans[lengths] = _Plan(self._compile(conn, values), values, lists)
        return plan

    def _compile(self, conn: Connection, values: Mapping[str, Any]) -> SQLCompiler:
        if self._compiled is None:
            dialect = conn.dialect
            keys = None if self._selects else list(values)
            compiled: Compiled = self.statement.compile(dialect=dialect, column_keys=keys)
            if isinstance(self.statement, Select):
                columns = self.statement.selected_columns
                kinds = [column.type.dialect_impl(dialect) for column in columns]
                read = [kind.result_processor(dialect, None) for kind in kinds]
                self._processed = [(at, one) for at, one in enumerate(read) if one is not None]
                self._columns = tuple(column.key for column in columns)
            self._compiled = cast("SQLCompiler", compiled)  # last: other threads may be reading
        return self._compiled
