"""/admin/v1 but for accounts: tokens, codes, end users, refusals, unlabelled images, audit trail, ledger check. Knows the services; no rule.

Keys are rotated on the command line only: they lie in a file beside the database, and a stolen
admin token must not be able to void everybody's tokens, or to keep its own from being voided.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from danqing.api import bodies, shapes
from danqing.api.bodies import read, takes
from danqing.api.callers import Admin, actor
from danqing.api.context import context_of
from danqing.api.desk import bare, named, require_models, require_unlimited, shown
from danqing.api.shapes import After, Limit
from danqing.domain.errors import InvalidField
from danqing.service.tokens import TokenLimits
from danqing.service.trail import of_account
from danqing.settings import SettingsError

router = APIRouter(tags=["admin: tokens, codes, end users, audit"])

OfAccount = Annotated[
    str | None, Query(max_length=200, description="Of the account of this name or id only.")
]


@router.get("/tasks/{task_id}")
async def get_task(request: Request, caller: Admin, task_id: str) -> dict[str, Any]:
    """Anybody's task, and what the providers that it was relayed to said of it: ids, cost, refusals."""
    return shapes.task(await context_of(request).gallery.anybodys(task_id))


@router.get("/tokens")
async def list_tokens(
    request: Request,
    caller: Admin,
    account: OfAccount = None,
    after: After = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """Tokens and sessions, oldest first; the secrets are kept nowhere."""
    account_id = None if account is None else (await named(request, account)).id
    rows = await context_of(request).books.tokens.list(account_id)
    return shapes.page_of_all(rows, after, limit, shapes.token_id, partial(shown, request))


@router.post("/tokens", status_code=201, openapi_extra=takes(bodies.AccountTokenBody))
async def create_token(request: Request, caller: Admin) -> dict[str, Any]:
    """Make a token for an account. The answer's `token` is shown this once."""
    body = await read(request, bodies.AccountTokenBody)
    await require_unlimited(request, caller)
    tokens = context_of(request).books.tokens
    require_models(request, body.models)
    token = await tokens.create(
        body.account,
        name=body.name,
        expires_ms=body.expires_ms,
        limits=body.applied_to(TokenLimits()),
        by=actor(caller),
    )
    return shown(request, await tokens.get(bare(token))) | {"token": token}


@router.get("/tokens/{token}")
async def get_token(request: Request, caller: Admin, token: str) -> dict[str, Any]:
    """One token, by its id with or without `sk-`."""
    return shown(request, await context_of(request).books.tokens.get(bare(token)))


@router.patch("/tokens/{token}", openapi_extra=takes(bodies.LimitsBody))
async def change_token(request: Request, caller: Admin, token: str) -> dict[str, Any]:
    """Change what a token may do."""
    tokens = context_of(request).books.tokens
    body = await read(request, bodies.LimitsBody, nulls=True)
    require_models(request, body.models)
    await require_unlimited(request, caller)
    row = await tokens.get(bare(token))
    await tokens.update(row.id, body.applied_to(TokenLimits.of(row)), by=actor(caller))
    return shown(request, await tokens.get(row.id))


@router.delete("/tokens/{token}", status_code=204)
async def revoke_token(request: Request, caller: Admin, token: str) -> Response:
    """Revoke a token; every server refuses it within 5 seconds."""
    await context_of(request).books.tokens.revoke(bare(token), by=actor(caller))
    return Response(status_code=204)


@router.get("/codes")
async def list_codes(
    request: Request, caller: Admin, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """Redeem codes and invites by their digests, oldest first."""
    rows = await context_of(request).books.codes.list()
    return shapes.page_of_all(rows, after, limit, lambda row: row.digest, shapes.code)


@router.post("/codes", status_code=201, openapi_extra=takes(bodies.CodesBody))
async def create_codes(request: Request, caller: Admin) -> dict[str, Any]:
    """Make codes worth `characters` each, shown this once."""
    body = await read(request, bodies.CodesBody)
    codes = await context_of(request).books.codes.create(
        body.characters,
        body.count,
        kind=body.kind,
        expires_ms=body.expires_ms,
        by=actor(caller),
    )
    return {"object": "list", "kind": body.kind, "characters": body.characters, "data": codes}


@router.get("/blocks")
async def list_blocks(
    request: Request,
    caller: Admin,
    account: OfAccount = None,
    after: After = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """Blocked end users: of an account (also those blocked everywhere), or all."""
    account_id = None if account is None else (await named(request, account)).id
    rows = await context_of(request).books.blocks.list(account_id)
    return shapes.page_of_all(rows, after, limit, shapes.block_id, shapes.block)


@router.post("/blocks", status_code=201, openapi_extra=takes(bodies.AnyBlockBody))
async def block(request: Request, caller: Admin) -> dict[str, Any]:
    """Draw no more for an end user, of one account or (without `account`) everywhere."""
    body = await read(request, bodies.AnyBlockBody)
    account_id = None if body.account is None else (await named(request, body.account)).id
    await context_of(request).books.blocks.block(
        body.end_user, account_id=account_id, reason=body.reason, by=actor(caller)
    )
    return {"object": "block", "end_user": body.end_user, "account_id": account_id}


@router.delete("/blocks/{end_user:path}", status_code=204)
async def unblock(
    request: Request, caller: Admin, end_user: str, account: OfAccount = None
) -> Response:
    """Lift a block: that of one account, or (without `account`) the one everywhere."""
    account_id = None if account is None else (await named(request, account)).id
    await context_of(request).books.blocks.unblock(
        end_user, account_id=account_id, by=actor(caller)
    )
    return Response(status_code=204)


@router.get("/refusals")
async def list_refusals(
    request: Request,
    caller: Admin,
    account: OfAccount = None,
    after: After = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """What moderation refused, oldest first: whose, at which level, said by whom. The texts are not kept."""
    account_id = None if account is None else (await named(request, account)).id
    rows = await context_of(request).books.refusals.page(after, limit + 1, account_id)
    return shapes.page(rows, limit, lambda row: row.id, shapes.refusal)


@router.get("/unlabelled")
async def list_unlabelled(
    request: Request,
    caller: Admin,
    account: OfAccount = None,
    after: After = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """Every image given out without the AI label, oldest first: whose, for which end user, under which waiver. Kept for good."""
    account_id = None if account is None else (await named(request, account)).id
    rows = await context_of(request).books.images.unlabelled(after, limit + 1, account_id)
    return shapes.page(rows, limit, lambda row: row.id, shapes.unlabelled)


@router.post("/moderation/reload")
async def reload_lists(request: Request, caller: Admin) -> dict[str, Any]:
    """Read the word lists again, whole or not at all: here at once, on every other server within seconds."""
    try:
        lists = await context_of(request).reloads.everywhere()
    except SettingsError as error:
        raise InvalidField(str(error), "moderation") from None
    return {
        "object": "moderation.reload",
        "terms": lists.terms_count,
        "allowed_phrases": lists.allowed_count,
    }


@router.get("/audit")
async def audit(
    request: Request,
    caller: Admin,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Limit = 100,
    account: OfAccount = None,
) -> dict[str, Any]:
    """The audit trail, oldest first. Nobody can change a row; `danqing audit --verify` proves it."""
    subject = None if account is None else of_account((await named(request, account)).id)
    rows = await context_of(request).books.trail.rows(after, limit + 1, subject)
    return shapes.page(rows, limit, lambda row: row.seq, shapes.audit)


@router.get("/ledger/check")
async def check_ledger(request: Request, caller: Admin) -> dict[str, Any]:
    """Do the books balance to the character, and is the audit trail whole? One line per fault."""
    books = context_of(request).books
    faults = [*await books.ledger.check(), *await books.trail.verify()]
    return {"object": "ledger.check", "ok": not faults, "faults": faults}
