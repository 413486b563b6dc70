"""/admin/v1/accounts: accounts, their characters, waivers and passwords, for operators. Knows the services; no rule."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import APIRouter, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from danqing.api import bodies, schemas, shapes, statements
from danqing.api.bodies import read, takes
from danqing.api.callers import Admin, actor
from danqing.api.context import context_of
from danqing.api.desk import full, named, require_unlimited, signed
from danqing.api.requests import idempotency_key
from danqing.api.shapes import After, Limit
from danqing.api.statements import Form
from danqing.domain.errors import IdempotencyConflict, MissingField
from danqing.service import changes
from danqing.service.auth import Principal
from danqing.service.inputs import BELOW_ACCOUNTS
from danqing.service.ledger import TransferConflict


class _AccountName(Convertor[str]):
    """A path's whole rest but for what is below an account: those have methods of their own."""

    regex = f"(?:(?!/(?:{'|'.join(BELOW_ACCOUNTS)})$).)+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("account", _AccountName())

router = APIRouter(tags=["admin: accounts"])


@router.get("/accounts")
async def list_accounts(
    request: Request, caller: Admin, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """Accounts by name, deleted ones left out."""
    rows = await context_of(request).books.accounts.page(after, limit + 1)
    return shapes.page(rows, limit, lambda row: row.name, shapes.account)


@router.post("/accounts", status_code=201, openapi_extra=takes(bodies.AccountBody))
async def create_account(request: Request, caller: Admin) -> dict[str, Any]:
    """Make an account; without `characters` it gets what a new one gets."""
    context = context_of(request)
    body = await read(request, bodies.AccountBody)
    given = body.characters
    row = await context.books.accounts.create(
        body.name,
        context.settings.account_characters if given is None else given,
        by=actor(caller),
        is_admin=body.is_admin,
    )
    return shapes.account(row)


@router.put(
    "/accounts/{account:path}/password", status_code=204, openapi_extra=takes(bodies.PasswordBody)
)
async def set_password(request: Request, caller: Admin, account: str) -> Response:
    """Set the password an account signs in with; its sessions end."""
    body = await read(request, bodies.PasswordBody)
    await require_unlimited(request, caller)  # who signs in has a token without limits
    row = await named(request, account)
    await context_of(request).books.signup.set_password(row.id, body.password, by=actor(caller))
    return Response(status_code=204)


@router.post("/accounts/{account:path}/grants", openapi_extra=takes(bodies.TransferBody))
async def grant(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """Add characters. With an `Idempotency-Key` a retry adds nothing and answers the balance."""
    return await _transfer(request, caller, account, "grant")


@router.post("/accounts/{account:path}/adjustments", openapi_extra=takes(bodies.TransferBody))
async def adjust(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """Correct a balance by a positive or negative number; `Idempotency-Key` as for grants."""
    return await _transfer(request, caller, account, "adjust")


async def _transfer(request: Request, caller: Principal, account: str, kind: str) -> dict[str, Any]:
    accounts = context_of(request).books.accounts
    transfer_id = _transfer_id(request, caller)
    body = await read(request, bodies.TransferBody)
    row = await named(request, account)
    deed = accounts.grant if kind == "grant" else accounts.adjust
    try:
        balance = await deed(
            row.id, body.characters, body.reason, by=actor(caller), transfer_id=transfer_id
        )
    except TransferConflict:
        raise IdempotencyConflict from None
    return {"object": "balance", "account_id": row.id, "balance": balance}


def _transfer_id(request: Request, caller: Principal) -> str | None:
    """The transfer that a caller's Idempotency-Key stands for, whatever the account. Raises InvalidField."""
    key = idempotency_key(request)
    if key is None:
        return None
    return str(uuid5(NAMESPACE_URL, f"danqing:transfer:{caller.account_id}:{key}"))


@router.get("/accounts/{account:path}/statement", openapi_extra=schemas.statement())
async def statement(
    request: Request,
    caller: Admin,
    account: str,
    after: After = "",
    limit: Limit = 100,
    format: Form = None,
) -> Response:
    """Every transfer of an account, oldest first."""
    row = await named(request, account)
    accounts = context_of(request).books.accounts
    return await statements.answer(
        request, lambda last, most: accounts.statement(row.id, last, most), after, limit, format
    )


@router.get("/accounts/{account:path}/waivers")
async def list_waivers(
    request: Request, caller: Admin, account: str, after: After = "", limit: Limit = 100
) -> dict[str, Any]:
    """The label waivers an account ever signed, oldest first."""
    row = await named(request, account)
    rows = await context_of(request).books.accounts.waivers(row.id)
    return shapes.page_of_all(rows, after, limit, lambda row: row.id, shapes.waiver)


@router.post(
    "/accounts/{account:path}/waivers", status_code=201, openapi_extra=takes(bodies.WaiverBody)
)
async def sign_waiver(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """Put on record that somebody signed the label waiver for an account."""
    body = await read(request, bodies.WaiverBody)
    row = await named(request, account)
    return await signed(request, row.id, body, actor(caller))


@router.delete("/accounts/{account:path}/waivers", status_code=204)
async def revoke_waivers(request: Request, caller: Admin, account: str) -> Response:
    """Revoke the waiver in force; its record stays."""
    row = await named(request, account)
    await context_of(request).books.accounts.revoke_waiver(row.id, by=actor(caller))
    return Response(status_code=204)


# One account; its name may have slashes in it. "a/b/statement" is the statement of "a/b".


@router.get("/accounts/{account:account}")
async def get_account(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """An account by name or id, with what is held of it and the waiver in force."""
    return await full(request, await named(request, account))


@router.patch("/accounts/{account:account}", openapi_extra=takes(bodies.AccountPatch))
async def change_account(request: Request, caller: Admin, account: str) -> dict[str, Any]:
    """Suspend or restore; set the price multiplier, admin rights, the low-balance mark, the block level, how long images are kept."""
    accounts = context_of(request).books.accounts
    body = await read(request, bodies.AccountPatch, nulls=True)
    row = await named(request, account)
    asked: list[changes.Change] = []
    if body.price_permille is not None:
        asked.append(changes.price(body.price_permille))
    if "low_balance" in body.model_fields_set:
        asked.append(changes.low_balance(body.low_balance))
    if "block_level" in body.model_fields_set:
        asked.append(changes.block_level(body.block_level))
    if "image_days" in body.model_fields_set:
        asked.append(changes.image_days(body.image_days))
    if body.is_admin is not None:
        asked.append(changes.admin(body.is_admin))
    if body.suspended:
        if body.reason is None:
            raise MissingField("reason")
        asked.append(changes.suspended(body.reason))
    elif body.suspended is False:
        asked.append(changes.restored())
    await accounts.change(row.id, *asked, by=actor(caller))
    return await full(request, await accounts.by_id(row.id))


@router.delete("/accounts/{account:account}", status_code=204)
async def delete_account(request: Request, caller: Admin, account: str) -> Response:
    """Delete an account and its images, free its name, void its tokens; its books stay."""
    context = context_of(request)
    row = await named(request, account)
    await context.gallery.delete_blobs(
        await context.books.accounts.delete(row.id, by=actor(caller))
    )
    return Response(status_code=204)
