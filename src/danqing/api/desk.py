"""What the admin and account APIs have in common: finding an account, showing it, signing its waiver. Knows no route."""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request

from danqing.api import shapes
from danqing.api.bodies import WaiverBody
from danqing.api.context import context_of
from danqing.db.rows import AccountRow, TokenRow
from danqing.domain.errors import InvalidField, NotFound
from danqing.service.accounts import WAIVER_VERSION
from danqing.service.tokens import TokenLimits

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def named(request: Request, account: str) -> AccountRow:
    """The account of this id, else of this name (which may hold what no path can). Raises NotFound."""
    accounts = context_of(request).books.accounts
    if _ID.fullmatch(account):
        try:
            return await accounts.by_id(account)
        except NotFound:
            pass
    return await accounts.get(account)


async def full(request: Request, row: AccountRow) -> dict[str, Any]:
    """An account with what is held of it and the waiver in force."""
    books = context_of(request).books
    holds = await books.ledger.open_holds(row.id)
    waivers = [waiver for waiver in await books.accounts.waivers(row.name) if not waiver.revoked_ms]
    return shapes.account(row) | {
        "held": holds.characters,
        "waiver": shapes.waiver(waivers[-1]) if waivers else None,
    }


async def signed(request: Request, name: str, body: WaiverBody, by: str) -> dict[str, Any]:
    """Sign the waiver that was read. Raises InvalidField where that is not today's version."""
    if body.version != WAIVER_VERSION:
        raise InvalidField(f"'version' must be '{WAIVER_VERSION}', today's.", "version")
    row = await context_of(request).books.accounts.waive(name, signer=body.signer, by=by)
    return shapes.waiver(row)


def limits_of(row: TokenRow) -> TokenLimits:
    """A token's limits as they are."""
    return TokenLimits(
        scopes=tuple(row.scopes.split()),
        models=None if row.models is None else tuple(row.models),
        networks=None if row.networks is None else tuple(row.networks),
        budget_day=row.budget_day,
        budget_month=row.budget_month,
        budget_total=row.budget_total,
        concurrency_max=row.concurrency_max,
        rate_per_minute=row.rate_per_minute,
    )


def bare(token: str) -> str:
    """A token's id, as the database has it, of an id with or without `sk-`, or of a whole token."""
    return token.removeprefix("sk-").partition(".")[0]
