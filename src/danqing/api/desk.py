"""What the admin and account APIs have in common: finding an account, showing it, signing its waiver, who makes tokens. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request

from danqing.api import shapes
from danqing.api.bodies import WaiverBody
from danqing.api.context import context_of
from danqing.db.rows import AccountRow, TokenRow
from danqing.domain.errors import InvalidField, PermissionDenied
from danqing.service.accounts import WAIVER_VERSION
from danqing.service.auth import Principal
from danqing.service.tokens import TokenLimits


async def named(request: Request, account: str) -> AccountRow:
    """The account of this id or name (which may hold what no path can). Raises NotFound."""
    return await context_of(request).books.accounts.get(account)


def shown(request: Request, row: TokenRow) -> dict[str, Any]:
    """A token with how it stands."""
    return shapes.token(row, context_of(request).books.tokens.state(row))


async def full(request: Request, row: AccountRow) -> dict[str, Any]:
    """An account with what is held of it and the waiver in force."""
    books = context_of(request).books
    holds = await books.ledger.open_holds(row.id)
    waivers = [waiver for waiver in await books.accounts.waivers(row.id) if not waiver.revoked_ms]
    return shapes.account(row) | {
        "held": holds.characters,
        "waiver": shapes.waiver(waivers[-1]) if waivers else None,
    }


async def signed(request: Request, account_id: str, body: WaiverBody, by: str) -> dict[str, Any]:
    """Sign the waiver that was read. Raises InvalidField where that is not today's version."""
    if body.version != WAIVER_VERSION:
        raise InvalidField(f"'version' must be '{WAIVER_VERSION}', today's.", "version")
    row = await context_of(request).books.accounts.waive(account_id, signer=body.signer, by=by)
    return shapes.waiver(row)


async def require_unlimited(request: Request, caller: Principal) -> None:
    """Raises PermissionDenied for a key with limits of its own: it could make itself one without.

    A session's expiry is none: it stands for the password.
    """
    row = await context_of(request).books.tokens.get(caller.token_id)
    ends = row.expires_ms is not None and row.kind == "key"
    if ends or replace(TokenLimits.of(row), scopes=()) != TokenLimits(scopes=()):
        raise PermissionDenied(
            "A token that expires or has limits may not make or change tokens: sign in for that."
        )


def require_models(request: Request, names: Sequence[str] | None) -> None:
    """Raises InvalidField for a model that the catalog has not got."""
    context_of(request).catalog.require(names or (), "models")


def bare(token: str) -> str:
    """A token's id, as the database has it, of an id with or without `sk-`, or of a whole token."""
    return token.removeprefix("sk-").partition(".")[0]
