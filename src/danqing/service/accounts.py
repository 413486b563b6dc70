"""Accounts, their money, rights and waivers. Knows no SQL and no sign-up; money goes through the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from danqing.db import book_queries, image_queries, log_queries, queries
from danqing.db.rows import AccountRow, TransferRow, WaiverRow
from danqing.db.session import Connection, Database
from danqing.domain.errors import InvalidField, NotFound, PermissionDenied
from danqing.domain.ids import uuid7
from danqing.service import webhooks
from danqing.service.changes import Change
from danqing.service.inputs import DELETED, check_name, check_text, is_taken, live, named
from danqing.service.keys import KeyFile
from danqing.service.ledger import Ledger, wall_clock_ms
from danqing.service.tokens import SCOPES, TokenLimits, Tokens
from danqing.service.trail import Trail, of_account

OPERATOR = "operator"
OPERATOR_CHARACTERS = 1_000_000
FIRST_CHARACTERS = 15_000
_WAIVER_CHARS_MAX = 10_000
_ACCOUNTS_MAX = 1_000_000

WAIVER_VERSION = "1"
WAIVER_TEXT = (
    "The account holder asks for images without a visible AI label, knows the duties that the "
    "law puts on whoever publishes AI-generated content, and takes on the duty to label them "
    "before they are published. Records of such images are kept for at least six months."
)
"""Measures for Labelling AI-Generated Synthetic Content (2025), article 9."""


class Accounts:
    """Makes, shows and changes accounts. Whatever changes one is in the audit trail with it.

    `account` is an account's id, or its name. Names are for people: one that was deleted leaves its
    name to the next. What changes an account raises NotFound once it was deleted; what only shows
    one does not.
    """

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        keys: KeyFile,
        tokens: Tokens,
        trail: Trail,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._keys = keys
        self._tokens = tokens
        self._trail = trail
        self._clock_ms = clock_ms

    async def create(
        self,
        name: str,
        characters: int = FIRST_CHARACTERS,
        *,
        by: str = "cli",
        is_admin: bool = False,
    ) -> AccountRow:
        """Make an account and grant its first characters, if any. Raises InvalidField."""
        name = check_name(name)
        return await self._trail.write(
            lambda conn: self._create(conn, name, characters, by, is_admin)
        )

    async def get(self, account: str) -> AccountRow:
        """Raises NotFound."""
        return await self._db.read(lambda conn: named(conn, account))

    async def by_id(self, account_id: str) -> AccountRow:
        """Raises NotFound."""
        account = await self._db.read(lambda conn: queries.account_by_id(conn, account_id))
        if account is None:
            raise NotFound("There is no such account.", "account")
        return account

    async def page(self, after: str, rows_max: int) -> list[AccountRow]:
        """Accounts in the order of their names, from the one behind `after`, without deleted ones."""
        return await self._db.read(lambda conn: queries.accounts_after(conn, after, rows_max))

    async def all(self) -> list[AccountRow]:
        return await self.page("", _ACCOUNTS_MAX)

    # Money

    async def grant(
        self, account: str, characters: int, reason: str, *, by: str, transfer_id: str | None = None
    ) -> int:
        """Add characters and return the new balance; the same `transfer_id` again adds nothing.

        Raises InvalidField, NotFound, TransferConflict.
        """
        return await self._transfer("grant", account, characters, reason, by, transfer_id)

    async def adjust(
        self, account: str, characters: int, reason: str, *, by: str, transfer_id: str | None = None
    ) -> int:
        """Correct by a positive or negative number; raises QuotaExceeded too, else as `grant`."""
        return await self._transfer("adjust", account, characters, reason, by, transfer_id)

    async def statement(
        self, account_id: str, after: str = "", rows_max: int = 100
    ) -> list[TransferRow]:
        """The account's transfers behind the one with the id `after`, oldest first."""
        return await self._ledger.statement(account_id, after, rows_max)

    # Rights

    async def change(self, account: str, *changes: Change, by: str) -> None:
        """Change an account, all of it or nothing. Raises NotFound."""
        account_id = (await self.get(account)).id

        def work(conn: Connection) -> None:
            live(conn, account_id)
            # First: it may be the account's own suspension.
            for change in changes:
                self._trail.within(conn, by, change.deed, of_account(account_id), change.detail)
            for change in changes:
                queries.update_account(conn, account_id, **change.values)
            self._ledger.tell_low_balance_within(conn, account_id)

        await self._trail.write(work, [account_id])

    async def waive(
        self,
        account: str,
        *,
        signer: str | None = None,
        version: str = WAIVER_VERSION,
        text: str = WAIVER_TEXT,
        by: str = "cli",
    ) -> WaiverRow:
        """Record that the label waiver was signed, by the account itself if not said.

        Raises InvalidField, NotFound.
        """
        if signer is not None:
            check_text(signer, "signer", 200)
        check_text(version, "version", 50)
        check_text(text, "text", _WAIVER_CHARS_MAX)
        account_id = (await self.get(account)).id

        def work(conn: Connection) -> WaiverRow:
            name = live(conn, account_id).name
            row = WaiverRow(uuid7(), account_id, version, text, signer or name, self._clock_ms())
            queries.insert_waiver(conn, row)
            detail = {"waiver": row.id, "version": version, "signer": row.signer}
            self._trail.within(conn, by, "waiver.sign", of_account(account_id), detail)
            return row

        return await self._trail.write(work, [account_id])

    async def revoke_waiver(self, account: str, *, by: str) -> None:
        """Revoke the waiver in force, which stays on record. Raises NotFound, also where there is none."""
        account_id = (await self.get(account)).id

        def work(conn: Connection) -> None:
            live(conn, account_id)
            if not queries.revoke_waivers(conn, account_id, self._clock_ms()):
                raise NotFound("The account has no waiver in force.", "waiver")
            self._trail.within(conn, by, "waiver.revoke", of_account(account_id), {})

        await self._trail.write(work, [account_id])

    async def waivers(self, account: str) -> list[WaiverRow]:
        """All waivers the account ever signed, oldest first. Raises NotFound."""
        return await self._db.read(lambda conn: queries.waivers_of(conn, named(conn, account).id))

    # Webhooks

    def webhook_secret(self, account_id: str) -> str:
        """What its webhooks are signed with, as receivers take it: "whsec_…"."""
        key = self._keys.derive("webhooks")
        return webhooks.shown(webhooks.account_secret(key, account_id))

    # The first and the last

    async def ensure_operator(self, characters: int = OPERATOR_CHARACTERS) -> str | None:
        """Make the operator's account where there is none; its token, only when just made.

        One transaction: of two servers that start at once, one gets the token.
        """

        def work(conn: Connection) -> str | None:
            if queries.accounts_named(conn, OPERATOR, OPERATOR):
                return None
            account = self._create(conn, OPERATOR, characters, "server", True)
            limits = TokenLimits(scopes=SCOPES)
            return self._tokens.make_within(
                conn, account, by="server", name="first", expires_ms=None, limits=limits
            )

        return await self._trail.write(work)

    async def delete(self, account_id: str, *, by: str) -> list[str]:
        """Delete an account and its images; returns the blobs that they were in, for the caller to delete.

        Its tokens are revoked, its name is free, its balance is booked out, what its webhook was not
        told yet is given up. Its transfers, waivers, tasks and trail stay, and its address' HMAC: who
        deletes accounts is not given new ones for it. Raises NotFound; PermissionDenied for the
        operator's, and while it has open tasks.
        """

        def work(conn: Connection) -> list[str]:
            account = live(conn, account_id)
            if account.name == OPERATOR:
                raise PermissionDenied("The operator's account cannot be deleted.")
            if book_queries.open_task_ids(conn, account_id):
                raise PermissionDenied("The account has open tasks: cancel them, or wait for them.")
            now_ms = self._clock_ms()
            if account.balance:
                self._ledger.adjust_within(conn, account_id, -account.balance, "account deleted")
            queries.revoke_tokens_of(conn, account_id, now_ms)
            log_queries.give_up_outbox_of(conn, account_id, now_ms, "The account was deleted.")
            blob_keys = image_queries.expire_images_of(conn, account_id, now_ms)
            detail = {
                "name": account.name,
                "balance": account.balance,
                "images": len(blob_keys),
            }
            # While it is there still: it may be who deletes it.
            self._trail.within(conn, by, "account.delete", of_account(account_id), detail)
            values = {"password_hash": None, "webhook_url": None, "low_balance": None}
            queries.update_account(
                conn,
                account_id,
                name=DELETED + account_id,
                deleted_ms=now_ms,
                is_admin=False,
                **values,
            )
            return blob_keys

        return await self._trail.write(work, [account_id])

    def make_within(self, conn: Connection, name: str, **values: Any) -> AccountRow:
        """An account of this (checked) name, without characters, in a larger transaction.

        `values` are more of its columns. Raises InvalidField where the name is taken.
        """
        if is_taken(conn, name):
            raise InvalidField(f"An account named '{name}' exists already.", "name")
        account = AccountRow(uuid7(), name, 0, False, self._clock_ms(), **values)
        queries.insert_account(conn, account)
        return account

    def _create(
        self, conn: Connection, name: str, characters: int, by: str, is_admin: bool
    ) -> AccountRow:
        account = self.make_within(conn, name, is_admin=is_admin)
        if characters:
            self._ledger.grant_within(conn, account.id, characters, "first characters")
        detail = {"name": name, "characters": characters, "is_admin": is_admin}
        self._trail.within(conn, by, "account.create", of_account(account.id), detail)
        return live(conn, account.id)

    async def _transfer(
        self,
        kind: Literal["grant", "adjust"],
        account: str,
        characters: int,
        reason: str,
        by: str,
        transfer_id: str | None,
    ) -> int:
        check_text(reason, "reason")
        account_id = (await self.get(account)).id
        move = self._ledger.grant_within if kind == "grant" else self._ledger.adjust_within

        def work(conn: Connection) -> int:
            live(conn, account_id)
            known = transfer_id and book_queries.transfer_by_id(conn, transfer_id)
            balance = move(conn, account_id, characters, reason, transfer_id)
            if not known:
                detail = {"characters": characters, "reason": reason, "balance": balance}
                self._trail.within(conn, by, f"account.{kind}", of_account(account_id), detail)
            return balance

        return await self._trail.write(work, [account_id])
