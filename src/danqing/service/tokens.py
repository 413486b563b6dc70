"""Tokens and what each may do: making, changing, revoking them, rotating the keys behind them. Knows no header and no money."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_network
from typing import Any, Literal

from danqing.db import book_queries, queries
from danqing.db.rows import CHARACTERS_MAX, AccountRow, TokenKind, TokenRow, has_budget
from danqing.db.session import Connection, Database
from danqing.domain.errors import InvalidField, NotFound, PermissionDenied
from danqing.service.booking import WINDOWS, window
from danqing.service.inputs import check_expires, check_label, check_text, check_whole, live, named
from danqing.service.keys import KeyFile
from danqing.service.ledger import wall_clock_ms
from danqing.service.trail import Trail, of_account

SCOPES = ("draw", "account", "admin")
"""Draw images; see and change one's own account; do what operators do."""
ENTRIES_MAX = 100
"""Of one token's models or networks."""
CONCURRENCY_MAX = 100_000
RATE_MAX = 1_000_000
KEYS_MAX = 1000
"""Tokens of one account that are not revoked; sessions do not count."""
TokenState = Literal["active", "expired", "revoked", "void"]
"""Void: its key's version was revoked."""
_TOKEN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What a token may do; None sets no limit. Budgets are characters, windows end in UTC."""

    scopes: Sequence[str] = ("draw",)
    models: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    """Addresses or networks it may be used from."""
    budget_day: int | None = None
    budget_month: int | None = None
    budget_total: int | None = None
    concurrency_max: int | None = None
    """Tasks open at once."""
    rate_per_minute: int | None = None

    @classmethod
    def of(cls, row: TokenRow) -> TokenLimits:
        """A token's limits as they are."""
        return cls(
            scopes=tuple(row.scopes.split()),
            models=None if row.models is None else tuple(row.models),
            networks=None if row.networks is None else tuple(row.networks),
            budget_day=row.budget_day,
            budget_month=row.budget_month,
            budget_total=row.budget_total,
            concurrency_max=row.concurrency_max,
            rate_per_minute=row.rate_per_minute,
        )

    def checked(self) -> TokenLimits:
        """The same in the form that is kept. Raises InvalidField."""
        if not self.scopes or not set(self.scopes) <= set(SCOPES):
            raise InvalidField(f"'scopes' is a list of these: {', '.join(SCOPES)}.", "scopes")
        for param, least, most in (
            ("budget_day", 0, CHARACTERS_MAX),
            ("budget_month", 0, CHARACTERS_MAX),
            ("budget_total", 0, CHARACTERS_MAX),
            ("concurrency_max", 1, CONCURRENCY_MAX),
            ("rate_per_minute", 1, RATE_MAX),
        ):
            value = getattr(self, param)
            if value is not None:
                check_whole(value, param, least, most)
        return replace(
            self,
            scopes=tuple(scope for scope in SCOPES if scope in self.scopes),
            models=_models(self.models),
            networks=_networks(self.networks),
        )

    def columns(self) -> dict[str, Any]:
        """As the token's row has it."""
        values = asdict(self) | {"scopes": " ".join(self.scopes)}
        for name in ("models", "networks"):
            values[name] = None if values[name] is None else list(values[name])
        return values


class Tokens:
    """Makes, shows, changes and revokes tokens. Their secrets come from the key file and are kept nowhere."""

    def __init__(
        self,
        db: Database,
        keys: KeyFile,
        trail: Trail,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._keys = keys
        self._trail = trail
        self._clock_ms = clock_ms

    async def create(
        self,
        account: str,
        *,
        name: str | None = None,
        expires_ms: int | None = None,
        limits: TokenLimits = TokenLimits(),
        by: str,
    ) -> str:
        """Make a token for the account of this id or name; it can't be shown again.

        `expires_ms` is in Unix milliseconds. Raises InvalidField, NotFound, PermissionDenied (the
        scope "admin" for an account that is no admin; the account has KEYS_MAX tokens).
        """
        if name is not None:
            check_label(name)
        check_expires(expires_ms, self._clock_ms())
        limits = limits.checked()
        account_id = (await self._db.read(lambda conn: named(conn, account))).id

        def work(conn: Connection) -> str:
            row = live(conn, account_id)
            return self.make_within(
                conn, row, by=by, name=name, expires_ms=expires_ms, limits=limits
            )

        return await self._trail.write(work, [account_id])

    def make_within(
        self,
        conn: Connection,
        account: AccountRow,
        *,
        by: str,
        name: str | None,
        expires_ms: int | None,
        limits: TokenLimits,
    ) -> str:
        """`create` as part of a larger transaction."""
        _require_allowed(account, limits)
        if queries.keys_of(conn, account.id) >= KEYS_MAX:
            raise PermissionDenied(f"The account has {KEYS_MAX} tokens: revoke some of them first.")
        token, row = self._new(account, "key", name, expires_ms, limits)
        queries.insert_token(conn, row)
        detail = {"token": row.id, "name": name, "expires_ms": expires_ms} | limits.columns()
        self._trail.within(conn, by, "token.create", of_account(account.id), detail)
        return token

    def open_session(self, conn: Connection, account: AccountRow, expires_ms: int) -> str:
        """A token for who signed in, which may do all that the account may."""
        scopes = SCOPES if account.is_admin else ("draw", "account")
        token, row = self._new(account, "session", None, expires_ms, TokenLimits(scopes))
        queries.insert_token(conn, row)
        return token

    async def list(self, account: str | None = None) -> Sequence[TokenRow]:
        """The tokens of the account of this id or name, or of all, oldest first; no sessions that are over.

        Raises NotFound.
        """
        rows = await self._db.read(
            lambda conn: queries.tokens_of(
                conn, None if account is None else named(conn, account).id
            )
        )
        now_ms = self._clock_ms()
        return [row for row in rows if row.kind == "key" or _is_good(row, now_ms)]

    def state(self, row: TokenRow) -> TokenState:
        """Whether a token is good, else what ended it: what cannot be undone first. Raises KeyFileError."""
        if row.revoked_ms is not None:
            return "revoked"
        if row.key_version not in self._keys.versions():
            return "void"
        return "active" if _is_good(row, self._clock_ms()) else "expired"

    async def of_key(self, version: int) -> Sequence[TokenRow]:
        """The tokens and sessions that revoking a key's version would make void."""
        return [
            row
            for row in await self.list()
            if row.key_version == version and self.state(row) == "active"
        ]

    async def get(self, token_id: str) -> TokenRow:
        """Raises NotFound."""
        return await self._db.read(lambda conn: _token(conn, token_id))

    async def update(
        self, token_id: str, limits: TokenLimits, *, by: str, account_id: str | None = None
    ) -> None:
        """Replace what a token may do; a budget counts what the token has spent before it was set.

        With `account_id` it must be that account's. Raises InvalidField, NotFound, PermissionDenied
        (a session; the scope "admin" for an account that is no admin).
        """
        limits = limits.checked()
        owner_id = (await self._owned(token_id, account_id)).account_id

        def work(conn: Connection) -> None:
            account, before = live(conn, owner_id), _token(conn, token_id)
            if before.kind == "session":
                raise PermissionDenied("What a session may do cannot be changed.")
            _require_allowed(account, limits)
            queries.update_token(conn, token_id, **limits.columns())
            if has_budget(limits) and not has_budget(before):
                _count_again(conn, token_id)
            detail = {"token": token_id} | limits.columns()
            self._trail.within(conn, by, "token.update", of_account(owner_id), detail)

        await self._trail.write(work, [owner_id])

    async def revoke(self, token: str, *, by: str, account_id: str | None = None) -> None:
        """Revoke a token by its id, with or without "sk-"; also by the whole token.

        With `account_id` it must be that account's. Revoking again changes nothing. Raises NotFound.
        """
        token_id = token.removeprefix("sk-").partition(".")[0]
        owner_id = (await self._owned(token_id, account_id)).account_id
        now_ms = self._clock_ms()

        def work(conn: Connection) -> None:
            if _token(conn, token_id).revoked_ms is None:
                queries.revoke_token(conn, token_id, now_ms)
                detail = {"token": token_id}
                self._trail.within(conn, by, "token.revoke", of_account(owner_id), detail)

        await self._trail.write(work, [owner_id])

    async def rotate_keys(self, revoke_version: int | None = None, *, by: str) -> int:
        """`KeyFile.rotate`, and its row in the audit trail. Raises InvalidField.

        The file changes before the row is written: where that fails, the keys were rotated though
        the trail does not say so.
        """
        version = await asyncio.to_thread(self._keys.rotate, revoke_version)
        detail = {"version": version, "revoked": revoke_version}
        await self._trail.write(
            lambda conn: self._trail.within(conn, by, "keys.rotate", "keys", detail)
        )
        return version

    def _new(
        self,
        account: AccountRow,
        kind: TokenKind,
        name: str | None,
        expires_ms: int | None,
        limits: TokenLimits,
    ) -> tuple[str, TokenRow]:
        token_id = secrets.token_hex(16)
        token, version = self._keys.token(token_id)
        return token, TokenRow(
            id=token_id,
            account_id=account.id,
            key_version=version,
            name=name,
            created_ms=self._clock_ms(),
            expires_ms=expires_ms,
            kind=kind,
            **limits.columns(),
        )

    async def _owned(self, token_id: str, account_id: str | None) -> TokenRow:
        row = await self.get(token_id)
        if account_id is not None and row.account_id != account_id:
            raise _no_token()
        return row


def _count_again(conn: Connection, token_id: str) -> None:
    """What the token has held and spent so far: nobody counted while it had no budget."""
    spent: Counter[tuple[str, str]] = Counter()
    for created_ms, characters in book_queries.spent_by_tasks(conn, token_id):
        for name in WINDOWS:
            spent[token_id, window(name, created_ms)] += characters
    book_queries.forget_spending(conn, token_id)
    book_queries.add_spending(conn, spent)


def _require_allowed(account: AccountRow, limits: TokenLimits) -> None:
    if "admin" in limits.scopes and not account.is_admin:
        raise PermissionDenied("Only an admin's account has tokens with the scope 'admin'.")


def _models(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names in lower case: models are found in any."""
    if names is None:
        return None
    _check_count(names, "models")
    for name in names:
        check_text(name, "models", 100)
    return tuple(dict.fromkeys(name.lower() for name in names))


def _networks(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    _check_count(texts, "networks")
    try:
        return tuple(dict.fromkeys(str(ip_network(text, strict=False)) for text in texts))
    except ValueError:
        raise InvalidField(
            "'networks' is a list of addresses and networks, such as 192.0.2.0/24.", "networks"
        ) from None


def _check_count(entries: Sequence[str], param: str) -> None:
    # An empty list could be read as "none" or as "any".
    if not 1 <= len(entries) <= ENTRIES_MAX:
        raise InvalidField(f"'{param}' has 1 to {ENTRIES_MAX} entries, or is null.", param)


def _token(conn: Connection, token_id: str) -> TokenRow:
    row = queries.token_by_id(conn, token_id) if _TOKEN_ID.fullmatch(token_id) else None
    if row is None:
        raise _no_token()
    return row


def _is_good(row: TokenRow, now_ms: int) -> bool:
    return row.revoked_ms is None and (row.expires_ms is None or row.expires_ms > now_ms)


def _no_token() -> NotFound:
    return NotFound("There is no such token.", "token")
