"""/account/v1: what an account's holder sees and does: balance, statement, tokens, waiver, webhook. Knows the services; no rule."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from danqing.api import bodies, schemas, shapes, statements
from danqing.api.bodies import read, takes
from danqing.api.callers import Holder, actor
from danqing.api.context import context_of
from danqing.api.desk import bare, full, require_models, require_unlimited, shown, signed
from danqing.api.requests import client_address
from danqing.api.shapes import After, Limit
from danqing.api.statements import Form
from danqing.db.rows import TokenRow
from danqing.domain.errors import InvalidField, MissingField, NotFound, PermissionDenied
from danqing.service import changes
from danqing.service.accounts import WAIVER_TEXT, WAIVER_VERSION
from danqing.service.auth import Principal
from danqing.service.tokens import TokenLimits

router = APIRouter(tags=["account"])


@router.get("/me")
async def me(request: Request, caller: Holder) -> dict[str, Any]:
    """The account: balance, what is held, price multiplier, waiver; and what the caller's token may do."""
    books = context_of(request).books
    account = await full(request, await books.accounts.by_id(caller.account_id))
    return account | {"token": shown(request, await books.tokens.get(caller.token_id))}


@router.get("/statement", openapi_extra=schemas.statement())
async def statement(
    request: Request, caller: Holder, after: After = "", limit: Limit = 100, format: Form = None
) -> Response:
    """Every transfer, oldest first."""
    accounts = context_of(request).books.accounts
    return await statements.answer(
        request,
        lambda last, most: accounts.statement(caller.account_id, last, most),
        after,
        limit,
        format,
    )


@router.post("/redeem", openapi_extra=takes(bodies.RedeemBody))
async def redeem(request: Request, caller: Holder) -> dict[str, Any]:
    """Use a redeem code up."""
    body = await read(request, bodies.RedeemBody)
    codes = context_of(request).books.codes
    balance = await codes.redeem(body.code, caller.account_id, by=actor(caller))
    return {"object": "balance", "account_id": caller.account_id, "balance": balance}


# Tokens


@router.get("/tokens")
async def list_tokens(
    request: Request, caller: Holder, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """The account's tokens and sessions, oldest first; the secrets are kept nowhere."""
    rows = await context_of(request).books.tokens.list(caller.account_id)
    return shapes.page_of_all(rows, after, limit, shapes.token_id, partial(shown, request))


@router.post("/tokens", status_code=201, openapi_extra=takes(bodies.TokenBody))
async def create_token(request: Request, caller: Holder) -> dict[str, Any]:
    """Make a token that may do no more than the caller's. The answer's `token` is shown this once."""
    body = await read(request, bodies.TokenBody)
    limits = body.applied_to(TokenLimits())
    tokens = context_of(request).books.tokens
    await require_unlimited(request, caller)
    require_held(caller, limits.scopes)
    require_models(request, body.models)
    token = await tokens.create(
        caller.account_id,
        name=body.name,
        expires_ms=body.expires_ms,
        limits=limits,
        by=actor(caller),
    )
    return shown(request, await tokens.get(bare(token))) | {"token": token}


@router.get("/tokens/{token}")
async def get_token(request: Request, caller: Holder, token: str) -> dict[str, Any]:
    """One token of the account, by its id with or without `sk-`."""
    return shown(request, await _own(request, caller, token))


@router.patch("/tokens/{token}", openapi_extra=takes(bodies.LimitsBody))
async def change_token(request: Request, caller: Holder, token: str) -> dict[str, Any]:
    """Change what a token may do, to no more than the caller's may."""
    tokens = context_of(request).books.tokens
    body = await read(request, bodies.LimitsBody, nulls=True)
    require_models(request, body.models)
    await require_unlimited(request, caller)
    row = await _own(request, caller, token)
    limits = body.applied_to(TokenLimits.of(row))
    # What it may do already counts too: who may not make such a token may not loosen one.
    require_held(caller, (*row.scopes.split(), *limits.scopes))
    await tokens.update(row.id, limits, by=actor(caller), account_id=caller.account_id)
    return shown(request, await tokens.get(row.id))


@router.delete("/tokens/{token}", status_code=204)
async def revoke_token(request: Request, caller: Holder, token: str) -> Response:
    """Revoke a token; every server refuses it within 5 seconds."""
    tokens = context_of(request).books.tokens
    await tokens.revoke(bare(token), by=actor(caller), account_id=caller.account_id)
    return Response(status_code=204)


async def _own(request: Request, caller: Principal, token: str) -> TokenRow:
    row = await context_of(request).books.tokens.get(bare(token))
    if row.account_id != caller.account_id:
        raise NotFound("There is no such token.", "token")
    return row


def require_held(caller: Principal, scopes: Iterable[str]) -> None:
    """Raises PermissionDenied for a scope that the caller's token has not got."""
    for scope in scopes:
        if scope not in caller.scopes:
            raise PermissionDenied(f"This token has not got the scope '{scope}'.", "scopes")


# Waiver, webhook, end users


@router.get("/waiver")
async def get_waivers(request: Request, caller: Holder) -> dict[str, Any]:
    """The label waiver's text as it is to be signed, and every one the account ever signed."""
    rows = await context_of(request).books.accounts.waivers(caller.account_id)
    return {
        "object": "waiver.text",
        "version": WAIVER_VERSION,
        "text": WAIVER_TEXT,
        "signed": [shapes.waiver(row) for row in rows],
    }


@router.post("/waiver", status_code=201, openapi_extra=takes(bodies.WaiverBody))
async def sign_waiver(request: Request, caller: Holder) -> dict[str, Any]:
    """Sign the label waiver: name the version that was read and who signs."""
    body = await read(request, bodies.WaiverBody)
    return await signed(request, caller.account_id, body, actor(caller))


@router.delete("/waiver", status_code=204)
async def revoke_waiver(request: Request, caller: Holder) -> Response:
    """Revoke the waiver in force; its record stays."""
    accounts = context_of(request).books.accounts
    await accounts.revoke_waiver(caller.account_id, by=actor(caller))
    return Response(status_code=204)


@router.get("/webhook")
async def get_webhook(request: Request, caller: Holder) -> dict[str, Any]:
    """Where the account is told of finished tasks and a low balance, and the secret that signs it."""
    accounts = context_of(request).books.accounts
    row = await accounts.by_id(caller.account_id)
    return {
        "object": "webhook",
        "webhook_url": row.webhook_url,
        "low_balance": row.low_balance,
        "secret": accounts.webhook_secret(row.id),
    }


@router.patch("/webhook", openapi_extra=takes(bodies.WebhookPatch))
async def change_webhook(request: Request, caller: Holder) -> dict[str, Any]:
    """Set or take away the webhook's address and the balance below which it is called."""
    context = context_of(request)
    body = await read(request, bodies.WebhookPatch, nulls=True)
    asked: list[changes.Change] = []
    if "low_balance" in body.model_fields_set:
        asked.append(changes.low_balance(body.low_balance))
    if "webhook_url" in body.model_fields_set:
        hosts = context.settings.webhook_allow_hosts
        asked.append(changes.webhook(body.webhook_url, hosts))
    await context.books.accounts.change(caller.account_id, *asked, by=actor(caller))
    return await get_webhook(request, caller)


@router.get("/blocks")
async def list_blocks(
    request: Request, caller: Holder, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """The end users this account has blocked."""
    rows = [
        row
        for row in await context_of(request).books.blocks.list(caller.account_id)
        if row.account_id is not None  # the operator's own list is not theirs to see
    ]
    return shapes.page_of_all(rows, after, limit, shapes.block_id, shapes.block)


@router.post("/blocks", status_code=201, openapi_extra=takes(bodies.BlockBody))
async def block(request: Request, caller: Holder) -> dict[str, Any]:
    """Draw no more for an end user (`user`, `user_id`) of this account."""
    body = await read(request, bodies.BlockBody)
    await context_of(request).books.blocks.block(
        body.end_user, account_id=caller.account_id, reason=body.reason, by=actor(caller)
    )
    return {"object": "block", "end_user": body.end_user, "account_id": caller.account_id}


@router.delete("/blocks/{end_user:path}", status_code=204)
async def unblock(request: Request, caller: Holder, end_user: str) -> Response:
    """Draw for an end user again."""
    await context_of(request).books.blocks.unblock(
        end_user, account_id=caller.account_id, by=actor(caller)
    )
    return Response(status_code=204)


# Password and farewell


@router.post("/password", status_code=204, openapi_extra=takes(bodies.PasswordChange))
async def change_password(request: Request, caller: Holder) -> Response:
    """Change the password; the account's other sessions end."""
    body = await read(request, bodies.PasswordChange)
    await context_of(request).books.signup.change_password(
        caller.account_id, body.old, body.new, keep=caller.token_id
    )
    return Response(status_code=204)


@router.post("/delete", status_code=204, openapi_extra=takes(bodies.DeletionBody))
async def delete_account(request: Request, caller: Holder) -> Response:
    """Delete the account and its images for good; what is left of its balance is lost."""
    context = context_of(request)
    body = await read(request, bodies.DeletionBody)
    row = await context.books.accounts.by_id(caller.account_id)
    if row.password_hash is not None:
        if body.password is None:
            raise MissingField("password")
        await context.books.signup.check_password(
            row.name, body.password, address=client_address(request, context.settings)
        )
    elif body.confirm != row.name:
        raise InvalidField("'confirm' must be the account's name.", "confirm")
    blob_keys = await context.books.accounts.delete(row.id, by=actor(caller))
    await context.gallery.delete_blobs(blob_keys)
    return Response(status_code=204)
