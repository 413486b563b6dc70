"""The audit trail: who did what to whom, in the same transaction as the deed. Knows no deed and no SQL.

The database refuses to change or delete a row. Whoever gets around that (the owner of the
database's file can) still has not got the key, which lies outside it: each row's mac is
HMAC-SHA256(key, the mac of the row before + the row as canonical JSON), so that an edited, missing
or reordered row shows.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from danqing.db import log_queries
from danqing.db.rows import AuditRow, Json
from danqing.db.session import Connection, Database
from danqing.domain.errors import AccountSuspended
from danqing.service.inputs import live
from danqing.service.ledger import wall_clock_ms

T = TypeVar("T")

FAULTS_MAX = 100
_PAGE = 1000
_ACCOUNT = re.compile(r"account:([0-9a-f-]{36}) ")


class Trail:
    """Safe to write from several processes at once: rows have consecutive numbers."""

    def __init__(
        self, db: Database, key: bytes, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        """`key` must never change: nothing that was written under another can be verified."""
        self._db = db
        self._key = key
        self._clock_ms = clock_ms

    async def write(self, work: Callable[[Connection], T], accounts: Sequence[str] = ()) -> T:
        """`Database.write` for work that calls `within`; `accounts` are those whose rows it changes."""

        def locked(conn: Connection) -> T:
            # Before any row is: two gateways that take both in another order would wait for ever.
            log_queries.lock_audit(conn)
            return work(conn)

        return await self._db.write(locked, accounts)

    def within(self, conn: Connection, by: str, deed: str, subject: str, detail: Json) -> None:
        """Add a row to a transaction that `write` began. `detail` is plain JSON without secrets.

        Where an account acts it must be there still: whoever authenticated it may have asked some
        seconds ago. Raises NotFound, AccountSuspended.
        """
        acting = _ACCOUNT.match(by)
        if acting is not None and live(conn, acting[1]).suspended:
            raise AccountSuspended("The account is suspended.")
        last = log_queries.last_audit(conn)
        row = AuditRow(
            seq=1 if last is None else last.seq + 1,
            at_ms=self._clock_ms(),
            actor=by,
            deed=deed,
            subject=subject,
            detail=detail,
            mac="",
        )
        mac = self._mac("" if last is None else last.mac, row)
        log_queries.insert_audit(conn, replace(row, mac=mac))

    async def rows(
        self, after: int = 0, rows_max: int = 100, subject: str | None = None
    ) -> list[AuditRow]:
        """Rows with numbers above `after`, oldest first, of one subject or of all."""
        return await self._db.read(
            lambda conn: log_queries.audit_after(conn, after, rows_max, subject)
        )

    async def verify(self) -> list[str]:
        """One line for each row that is not as it was written, or missing, at most FAULTS_MAX.

        Rows cut off at the end, or all of them, cannot be seen: what is left of a chain is a chain.
        """
        faults: list[str] = []
        seq, mac = 0, ""
        while len(faults) < FAULTS_MAX:
            try:
                page = await self.rows(seq, _PAGE)
            except ValueError:  # its detail is no JSON
                faults.append(f"one of the audit rows {seq + 1} to {seq + _PAGE} cannot be read")
                break
            if not page:
                break
            for row in page:
                if row.seq != seq + 1:
                    faults.append(f"audit rows {seq + 1} to {row.seq - 1} are missing")
                elif not hmac.compare_digest(row.mac, self._mac(mac, row)):
                    faults.append(f"audit row {row.seq}, or the mac before it, was changed")
                seq, mac = row.seq, row.mac
        return faults[:FAULTS_MAX]

    def _mac(self, before: str, row: AuditRow) -> str:
        content = {
            "seq": row.seq,
            "at_ms": row.at_ms,
            "actor": row.actor,
            "deed": row.deed,
            "subject": row.subject,
            "detail": row.detail,
        }
        text = before + json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hmac.digest(self._key, text.encode(), "sha256").hex()


def by_account(account_id: str, name: str) -> str:
    """Who did it, where that is an account. Names may be another's later, and ids tell people nothing."""
    return f"account:{account_id} {name}"


def of_account(account_id: str) -> str:
    """The subject of what is done to an account. By its id: a name may be another's later."""
    return f"account:{account_id}"
