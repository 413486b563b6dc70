"""Fills a book with years of work in minutes, in SQL: ids in time's order, holds and posts among each other. Used by bench.ledger."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

import psycopg

ACCOUNTS = 50
STEP_ROWS = 500_000
"""Tasks in one transaction."""
POST_BEHIND_MS = 20
CHARACTERS = 5000

# One task a millisecond. An id is a UUIDv7 whose random part is made of the number; the nibbles
# behind the 7 tell a task, its hold and its post apart.
_SQLITE_ID = (
    "printf('%08x-%04x-7{kind}-8%03x-%012x', ({at}) >> 16, ({at}) & 65535, (n * 31) & 4095, "
    "(n * 2654435761) & 281474976710655)"
)
_POSTGRES_ID = (
    "lpad(to_hex(({at}) >> 16), 8, '0') || '-' || lpad(to_hex(({at}) & 65535), 4, '0') || '-7{kind}-8' "
    "|| lpad(to_hex((n * 31) & 4095), 3, '0') || '-' "
    "|| lpad(to_hex((n * 2654435761) & 281474976710655), 12, '0')"
)
_SQLITE_NUMBERS = (
    "(WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers "
    "WHERE n < {last}) SELECT n FROM numbers)"
)
_POSTGRES_NUMBERS = "generate_series({first}::bigint, {last}::bigint) AS numbers(n)"
_REQUEST = '{"prompt": "' + "a cat with a straw hat at the window " * 6 + '", "n": 1}'

_HOLDS = (
    "INSERT INTO transfers (id, account_id, kind, amount, hold_id, task_id, reason, created_ms) "
    "SELECT {hold}, {account}, 'hold', {characters}, NULL, {task}, NULL, {at} FROM {numbers}"
)
_POSTS = (
    "INSERT INTO transfers (id, account_id, kind, amount, hold_id, task_id, reason, created_ms) "
    "SELECT {post}, {account}, 'post', {characters}, {hold}, {task}, NULL, {at} + {behind} "
    "FROM {numbers}"
)
_TASKS = (
    "INSERT INTO tasks (id, account_id, token_id, dialect, model, state, hold_id, epoch, "
    "lease_until_ms, request, result, charged, created_ms, finished_ms) "
    "SELECT {task}, {account}, 'token-' || (n % {accounts}), 'openai', 'pocket', 'succeeded', "
    "{hold}, 1, {at} + 30000, '{request}', '{{\"n\": 1}}', {characters}, {at}, {at} + {behind} "
    "FROM {numbers}"
)
_BALANCES = (
    "UPDATE accounts SET balance = 1000000000000 - (SELECT coalesce(sum(amount), 0) "
    "FROM transfers t WHERE t.account_id = accounts.id AND t.kind = 'post')"
)


def fill(url: str, rows: int) -> None:
    """Put `rows` transfers and their tasks into a book whose accounts have their grants."""
    if url.startswith("sqlite:"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        # A transaction that fails is no loss here.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        for statement in _statements(rows, _SQLITE_ID, _SQLITE_NUMBERS):
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as connection:
        # Looks up no foreign keys: all of them are right.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        for statement in _statements(rows, _POSTGRES_ID, _POSTGRES_NUMBERS):
            connection.execute(statement)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def _statements(rows: int, make_id: str, make_numbers: str) -> Iterator[str]:
    tasks = rows // 2
    start_ms = time.time_ns() // 1_000_000 - tasks - 60_000
    at = f"{start_ms} + n"
    words = {
        "at": at,
        "task": make_id.format(at=at, kind="000"),
        "hold": make_id.format(at=at, kind="400"),
        "post": make_id.format(at=f"{at} + {POST_BEHIND_MS}", kind="800"),
        "account": f"'account-' || (n % {ACCOUNTS})",
        "accounts": ACCOUNTS,
        "characters": CHARACTERS,
        "behind": POST_BEHIND_MS,
        "request": _REQUEST,
    }
    for first in range(0, tasks, STEP_ROWS):
        last = min(first + STEP_ROWS, tasks) - 1
        words["numbers"] = make_numbers.format(first=first, last=last)
        yield "BEGIN"
        yield from (one.format(**words) for one in (_HOLDS, _POSTS, _TASKS))
        yield "COMMIT"
    yield _BALANCES
