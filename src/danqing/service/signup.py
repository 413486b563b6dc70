"""Signing up, in and out, and passwords. Knows no HTTP; an address is a text that the caller vouches for."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network

from danqing.db import queries
from danqing.db.rows import AccountRow
from danqing.db.session import Connection, Database
from danqing.domain.errors import (
    AccountSuspended,
    InvalidField,
    InvalidToken,
    MissingField,
    PermissionDenied,
    RateLimited,
)
from danqing.service import redeem
from danqing.service.accounts import Accounts
from danqing.service.codes import Codes
from danqing.service.inputs import check_name, find_named, folded, live, named
from danqing.service.keys import KeyFile
from danqing.service.ledger import Ledger, wall_clock_ms
from danqing.service.passwords import Passwords
from danqing.service.ratelimit import RateLimiter
from danqing.service.tokens import Tokens
from danqing.service.trail import Trail, by_account, of_account
from danqing.settings import Settings

DAY_MS = 86_400_000
SIGN_UPS_PER_MINUTE = 10
"""Attempts from one address, good or not: each may cost a hash."""
TRIES_PER_NAME = 5
"""Passwords tried per minute for one account, from anywhere."""
TRIES_PER_ADDRESS = 20
"""Passwords tried per minute from one address, for any account."""
_WRONG = "The name or the password is wrong."


class SignUp:
    """Lets people in who have no token yet."""

    def __init__(
        self,
        db: Database,
        *,
        ledger: Ledger,
        accounts: Accounts,
        tokens: Tokens,
        codes: Codes,
        trail: Trail,
        limiter: RateLimiter,
        settings: Settings,
        keys: KeyFile,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._accounts = accounts
        self._tokens = tokens
        self._codes = codes
        self._trail = trail
        self._limiter = limiter
        self._settings = settings
        self._address_key = keys.derive("addresses")
        self._passwords = Passwords(settings.password_length_min)
        self._clock_ms = clock_ms

    async def sign_up(
        self, name: str, password: str, *, address: str, invite: str | None = None
    ) -> AccountRow:
        """Make an account with its first characters: the settings' number, or what the invite is worth.

        Raises PermissionDenied (sign-up is closed), MissingField and InvalidField (name, password,
        invite), NotFound (no such invite), RateLimited (too many from this address), Busy.
        """
        settings = self._settings
        if settings.sign_up == "closed":
            raise PermissionDenied("Signing up is closed: ask the operator for an account.")
        if settings.sign_up == "invite" and not invite:
            raise MissingField("invite")
        name = check_name(name)
        self._passwords.check(password, "password")
        digest = _digest(invite) if invite else None
        address_mac = self._address_mac(address)
        await self._limiter.take(f"sign-up:{address_mac}", SIGN_UPS_PER_MINUTE)
        password_hash = await self._passwords.hash(password)

        def work(conn: Connection) -> AccountRow:
            self._check_cap(conn, address_mac)
            if digest is not None:
                # Before the name: who has no invite does not learn which names there are.
                self._codes.require_usable(conn, digest, "invite")
            account = self._accounts.make_within(
                conn, name, password_hash=password_hash, address_mac=address_mac
            )
            characters, reason = settings.account_characters, "first characters"
            if digest is not None:
                characters = self._codes.use_within(conn, digest, "invite", account.id)
                reason = "invite"
            if characters:
                self._ledger.grant_within(conn, account.id, characters, reason)
            detail = {"name": name, "characters": characters, "invited": digest is not None}
            by = by_account(account.id, name)
            self._trail.within(conn, by, "account.sign_up", of_account(account.id), detail)
            return live(conn, account.id)

        return await self._trail.write(work)

    async def check_password(self, name: str, password: str, *, address: str) -> AccountRow:
        """The account of this name, where the password is its own.

        An unknown name takes as long and fails as a wrong password does. Raises InvalidToken,
        AccountSuspended (only to who has the password), RateLimited, Busy.
        """
        address_mac = self._address_mac(address)
        # First: an address that may try no more must not use up what others may.
        await self._limiter.take(f"sign-in-from:{address_mac}", TRIES_PER_ADDRESS)
        named_so = hashlib.sha256(folded(name[:200]).encode(errors="replace")).hexdigest()
        await self._limiter.take(f"sign-in-to:{named_so}", TRIES_PER_NAME)
        account = await self._db.read(lambda conn: find_named(conn, name))
        kept = None if account is None else account.password_hash
        if not await self._passwords.matches(kept, password) or account is None:
            raise InvalidToken(_WRONG)
        if account.suspended:
            raise AccountSuspended("The account is suspended.")
        return account

    async def sign_in(self, name: str, password: str, *, address: str) -> tuple[AccountRow, str]:
        """The account and a session's token, good for the settings' `session_hours`. Raises as `check_password`."""
        account = await self.check_password(name, password, address=address)
        kept = account.password_hash
        renewed = kept
        if kept is not None and self._passwords.is_outdated(kept):
            renewed = await self._passwords.hash(password)
        expires_ms = self._clock_ms() + round(self._settings.session_hours * 3_600_000)

        def work(conn: Connection) -> str:
            current = live(conn, account.id)
            if current.password_hash != kept:
                raise InvalidToken(_WRONG)  # it was changed meanwhile
            if renewed != kept:
                queries.update_account(conn, account.id, password_hash=renewed)
            return self._tokens.open_session(conn, current, expires_ms)

        token = await self._db.write(work, [account.id])
        return replace(account, password_hash=renewed), token

    async def sign_out(self, token_id: str) -> None:
        """End a session. Does nothing where there is none."""
        now_ms = self._clock_ms()
        await self._db.write(lambda conn: queries.revoke_token(conn, token_id, now_ms))

    async def change_password(
        self, account_id: str, old: str, new: str, *, keep: str | None = None
    ) -> None:
        """Change a password by who knows the old one; sessions end, but for the one with the token id `keep`.

        Raises InvalidField (`old` is wrong, `new` will not do), NotFound, RateLimited, Busy.
        """
        self._passwords.check(new, "new")
        await self._limiter.take(f"password-of:{account_id}", TRIES_PER_NAME)
        account = await self._accounts.by_id(account_id)
        if not await self._passwords.matches(account.password_hash, old):
            raise InvalidField("The old password is wrong.", "old")
        by = by_account(account_id, account.name)
        await self._set(account_id, account.password_hash, new, by, keep)

    async def set_password(self, name: str, new: str, *, by: str) -> None:
        """Set the password of the account of this name or id and end its sessions. Raises InvalidField, NotFound, Busy."""
        self._passwords.check(new, "password")
        account = await self._db.read(lambda conn: named(conn, name))
        await self._set(account.id, None, new, by, None)

    async def _set(
        self, account_id: str, before: str | None, new: str, by: str, keep: str | None
    ) -> None:
        """`before` is what the account's hash must still be, if given."""
        password_hash = await self._passwords.hash(new)

        def work(conn: Connection) -> None:
            if live(conn, account_id).password_hash != before and before is not None:
                raise InvalidField("The password was changed meanwhile.", "old")
            queries.update_account(conn, account_id, password_hash=password_hash)
            queries.end_sessions_of(conn, account_id, self._clock_ms(), keep or "")
            self._trail.within(conn, by, "account.password", of_account(account_id), {})

        await self._trail.write(work, [account_id])

    def _check_cap(self, conn: Connection, address_mac: str) -> None:
        cap = self._settings.sign_ups_per_address_max
        if queries.sign_ups_from(conn, address_mac, self._clock_ms() - DAY_MS) >= cap:
            # When the first of them is a day old is the address' own affair: a day is enough.
            raise RateLimited(cap, DAY_MS / 1000, "new accounts per day")

    def _address_mac(self, address: str) -> str:
        """What is kept of an address: nobody without the key file can tell which it was."""
        text = _network(address)
        return hmac.digest(self._address_key, text.encode(errors="replace"), "sha256").hex()


def _digest(invite: str) -> str:
    try:
        return redeem.digest(invite)
    except InvalidField as error:
        raise InvalidField(error.message.replace("a redeem code", "an invite"), "invite") from None


def _network(address: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer gets.

    Anything else (a socket without an address) counts as it is.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
