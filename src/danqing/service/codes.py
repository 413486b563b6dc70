"""Redeem codes and invites: making them, using one up. Knows no SQL and no sign-up; `redeem` has their text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from danqing.db import queries
from danqing.db.rows import CodeKind, RedeemCodeRow
from danqing.db.session import Connection, Database
from danqing.domain.errors import InvalidField, NotFound
from danqing.service import redeem
from danqing.service.inputs import check_expires, check_whole, live, named
from danqing.service.ledger import Ledger, check_characters, wall_clock_ms
from danqing.service.trail import Trail, of_account

CODES_MAX = 10_000
"""Made in one go."""
_SHOWN = 12
"""So many digits of a code's digest name it in the trail."""
_PARAM = {"credit": "code", "invite": "invite"}


class Codes:
    """A code is used once, whoever uses it at once; only its digest is kept."""

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        trail: Trail,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._trail = trail
        self._clock_ms = clock_ms

    async def create(
        self,
        characters: int,
        count: int = 1,
        *,
        kind: CodeKind = "credit",
        expires_ms: int | None = None,
        by: str,
    ) -> Sequence[str]:
        """Make codes worth `characters` each; they can't be shown again. Raises InvalidField.

        An invite's characters are what the account that is made with it starts with.
        """
        check_characters(characters)
        check_whole(count, "count", 1, CODES_MAX)
        if kind not in _PARAM:
            raise InvalidField(f"'kind' is one of these: {', '.join(_PARAM)}.", "kind")
        now_ms = self._clock_ms()
        check_expires(expires_ms, now_ms)
        codes = [redeem.new_code() for _ in range(count)]
        rows = [
            RedeemCodeRow(
                redeem.digest(code),
                characters,
                now_ms,
                kind=kind,
                expires_ms=expires_ms,
                created_by=by,
            )
            for code in codes
        ]

        def work(conn: Connection) -> None:
            queries.insert_redeem_codes(conn, rows)
            detail = {
                "kind": kind,
                "characters": characters,
                "expires_ms": expires_ms,
                "codes": [row.digest[:_SHOWN] for row in rows],
            }
            self._trail.within(conn, by, "code.create", "codes", detail)

        await self._trail.write(work)
        return codes

    async def redeem(self, code: str, account: str, *, by: str) -> int:
        """Use a code up: grant its characters to the account of this id or name, return the new balance.

        One transaction: of several who use it at once, in any process, one succeeds. Raises
        NotFound, InvalidField (malformed, used already, expired, the balance would be too high).
        """
        digest = redeem.digest(code)
        account_id = (await self._db.read(lambda conn: named(conn, account))).id

        def work(conn: Connection) -> int:
            live(conn, account_id)
            characters = self.use_within(conn, digest, "credit", account_id)
            balance = self._ledger.grant_within(conn, account_id, characters, "redeem code")
            detail = {"code": digest[:_SHOWN], "characters": characters}
            self._trail.within(conn, by, "code.redeem", of_account(account_id), detail)
            return balance

        return await self._trail.write(work, [account_id])

    async def list(self) -> Sequence[RedeemCodeRow]:
        """All codes, used and unused, oldest first."""
        return await self._db.read(queries.all_redeem_codes)

    def use_within(self, conn: Connection, digest: str, kind: CodeKind, account_id: str) -> int:
        """Use a code up in a larger transaction; what it is worth. Raises as `require_usable`."""
        self.require_usable(conn, digest, kind)
        now_ms = self._clock_ms()
        characters = queries.use_redeem_code(conn, digest, kind, account_id, now_ms)
        assert characters is not None, "codes are used under the trail's lock"
        return characters

    def require_usable(self, conn: Connection, digest: str, kind: CodeKind) -> None:
        """Raises NotFound, InvalidField (used already, expired, of the other kind)."""
        row, param = queries.redeem_code(conn, digest), _PARAM[kind]
        if row is None:
            raise NotFound("There is no such code.", param)
        if row.kind != kind:
            raise InvalidField(f"This code is not of the kind '{kind}'.", param)
        if row.used_ms is not None:
            raise InvalidField("This code has been used already.", param)
        if row.expires_ms is not None and row.expires_ms <= self._clock_ms():
            raise InvalidField("This code has expired.", param)
