"""Accounts, their waiver, tokens and redeem codes. Knows no SQL and no sign-up; money goes through the ledger."""

from __future__ import annotations

from collections.abc import Callable

from danqing.db import queries
from danqing.db.session import Connection, Database
from danqing.db.tables import AccountRow, RedeemCodeRow, TokenRow
from danqing.domain.errors import InvalidField, NotFound
from danqing.domain.ids import uuid7
from danqing.service import redeem
from danqing.service.auth import KeyFile, new_token_id
from danqing.service.ledger import Ledger, check_characters, wall_clock_ms

OPERATOR = "operator"
OPERATOR_CHARACTERS = 1_000_000
FIRST_CHARACTERS = 15_000
REDEEM_CODES_MAX = 10_000
"""Made in one go."""
_NAME_CHARS_MAX = 64

WAIVER_VERSION = "1"
WAIVER_TEXT = (
    "The account holder asks for images without a visible AI label, knows the duties that the "
    "law puts on whoever publishes AI-generated content, and takes on the duty to label them "
    "before they are published. Records of such images are kept for at least six months."
)
"""Measures for Labelling AI-Generated Synthetic Content (2025), article 9."""


class Accounts:
    """Makes and shows accounts, tokens and redeem codes."""

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        keys: KeyFile,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._keys = keys
        self._clock_ms = clock_ms

    async def create(self, name: str, characters: int = FIRST_CHARACTERS) -> AccountRow:
        """Make an account and grant its first characters, if any. Raises InvalidField."""
        _check_name(name)
        return await self._db.write(lambda conn: self._create(conn, name, characters))

    async def get(self, name: str) -> AccountRow:
        """The account of this name. Raises NotFound."""
        return await self._db.read(lambda conn: _named(conn, name))

    async def all(self) -> list[AccountRow]:
        return await self._db.read(queries.all_accounts)

    async def waive(
        self, name: str, version: str = WAIVER_VERSION, text: str = WAIVER_TEXT
    ) -> AccountRow:
        """Record that the account signed the label waiver. Raises NotFound."""
        now_ms = self._clock_ms()

        def work(conn: Connection) -> AccountRow:
            queries.set_waiver(conn, _named(conn, name).id, version, text, now_ms)
            return _named(conn, name)

        return await self._db.write(work)

    async def create_token(
        self, account: str, *, expires_ms: int | None = None, name: str | None = None
    ) -> str:
        """Make a token for the account of this name; it can't be shown again. Raises NotFound.

        `expires_ms` is in Unix milliseconds; InvalidField where it is past.
        """
        if name is not None:
            _check_name(name)
        now_ms = self._clock_ms()
        if expires_ms is not None and expires_ms <= now_ms:
            raise InvalidField("The token would have expired already.", "expires")
        token_id = new_token_id()
        token, version = self._keys.token(token_id)

        def work(conn: Connection) -> str:
            account_id = _named(conn, account).id
            row = TokenRow(token_id, account_id, version, name, now_ms, expires_ms, None)
            queries.insert_token(conn, row)
            return token

        return await self._db.write(work)

    async def revoke_token(self, token: str) -> None:
        """Revoke a token by its id, with or without "sk-"; also by the whole token. Raises NotFound."""
        token_id = token.removeprefix("sk-").partition(".")[0]
        now_ms = self._clock_ms()
        if not await self._db.write(lambda conn: queries.revoke_token(conn, token_id, now_ms)):
            raise NotFound("There is no such token.", "token")

    async def list_tokens(self, account: str | None = None) -> list[TokenRow]:
        """The tokens of the account of this name, or of all, oldest first. Raises NotFound."""
        return await self._db.read(
            lambda conn: queries.tokens_of(
                conn, None if account is None else _named(conn, account).id
            )
        )

    async def create_redeem_codes(self, characters: int, count: int = 1) -> list[str]:
        """Make codes worth `characters` each; they can't be shown again. Raises InvalidField."""
        check_characters(characters)
        if not 1 <= count <= REDEEM_CODES_MAX:
            raise InvalidField(f"'count' must be from 1 to {REDEEM_CODES_MAX}.", "count")
        now_ms = self._clock_ms()
        codes = [redeem.new_code() for _ in range(count)]
        rows = [RedeemCodeRow(redeem.digest(code), characters, now_ms) for code in codes]
        await self._db.write(lambda conn: queries.insert_redeem_codes(conn, rows))
        return codes

    async def redeem(self, code: str, account: str) -> int:
        """Use a code up: grant its characters to the account of this name, return the new balance.

        One transaction: of several who use it at once, in any process, one succeeds. Raises
        NotFound, InvalidField (malformed, used already, the balance would be too high).
        """
        digest = redeem.digest(code)
        now_ms = self._clock_ms()

        def work(conn: Connection) -> int:
            account_id = _named(conn, account).id
            characters = queries.use_redeem_code(conn, digest, account_id, now_ms)
            if characters is None:
                if queries.redeem_code(conn, digest) is None:
                    raise NotFound("There is no such redeem code.", "code")
                raise InvalidField("This redeem code has been used already.", "code")
            return self._ledger.grant_within(conn, account_id, characters, "redeem code")

        return await self._db.write(work)

    async def ensure_operator(self, characters: int = OPERATOR_CHARACTERS) -> str | None:
        """Make the operator's account where there is none; its token, only when just made.

        One transaction: of two servers that start at once, one gets the token.
        """
        token_id = new_token_id()
        token, version = self._keys.token(token_id)
        now_ms = self._clock_ms()

        def work(conn: Connection) -> str | None:
            if queries.account_by_name(conn, OPERATOR) is not None:
                return None
            account = self._create(conn, OPERATOR, characters)
            row = TokenRow(token_id, account.id, version, "first", now_ms, None, None)
            queries.insert_token(conn, row)
            return token

        return await self._db.write(work)

    def _create(self, conn: Connection, name: str, characters: int) -> AccountRow:
        if queries.account_by_name(conn, name) is not None:
            raise InvalidField(f"An account named '{name}' exists already.", "name")
        account = AccountRow(uuid7(), name, 0, False, self._clock_ms(), None, None, None)
        queries.insert_account(conn, account)
        if characters:
            self._ledger.grant_within(conn, account.id, characters, "first characters")
        return _named(conn, name)


def _named(conn: Connection, name: str) -> AccountRow:
    account = queries.account_by_name(conn, name)
    if account is None:
        raise NotFound(f"There is no account named '{name[:_NAME_CHARS_MAX]}'.", "account")
    return account


def _check_name(name: str) -> None:
    # isprintable is False for control characters, line ends and lone surrogates.
    if not 1 <= len(name) <= _NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise InvalidField(
            f"A name has 1 to {_NAME_CHARS_MAX} printable characters and no space at its ends.",
            "name",
        )
