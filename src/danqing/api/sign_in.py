"""/account/v1 without a token: signing up and in and out, and payments. Knows the services; no rule."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from danqing.api import bodies, shapes
from danqing.api.bodies import BODY_BYTES_MAX, read, takes
from danqing.api.callers import Holder
from danqing.api.context import context_of
from danqing.api.desk import bare, shown
from danqing.api.requests import client_address, read_body
from danqing.api.schemas import PUBLIC
from danqing.domain.errors import PermissionDenied

router = APIRouter(tags=["account: signing up and in, payments"])


@router.post("/sign-up", status_code=201, openapi_extra=takes(bodies.SignUpBody) | PUBLIC)
async def sign_up(request: Request) -> dict[str, Any]:
    """Make an account of one's own, with its first characters; `sign_up` says who may."""
    context = context_of(request)
    body = await read(request, bodies.SignUpBody)
    row = await context.books.signup.sign_up(
        body.name,
        body.password,
        address=client_address(request, context.settings),
        invite=body.invite,
    )
    return shapes.account(row)


@router.post("/sign-in", openapi_extra=takes(bodies.SignInBody) | PUBLIC)
async def sign_in(request: Request) -> dict[str, Any]:
    """Exchange name and password for a session's token, good for `session_hours`."""
    context = context_of(request)
    body = await read(request, bodies.SignInBody)
    row, token = await context.books.signup.sign_in(
        body.name, body.password, address=client_address(request, context.settings)
    )
    session = await context.books.tokens.get(bare(token))
    return shown(request, session) | {"token": token, "account": shapes.account(row)}


@router.post("/sign-out", status_code=204)
async def sign_out(request: Request, caller: Holder) -> Response:
    """End the session whose token this is."""
    if not caller.session:
        raise PermissionDenied("This token is no session's: revoke it instead.")
    await context_of(request).books.signup.sign_out(caller.token_id)
    return Response(status_code=204)


@router.post("/payments", openapi_extra=PUBLIC)
async def receive_payment(request: Request) -> dict[str, Any]:
    """A payment provider's signed webhook (Standard Webhooks): characters for an account, once per payment."""
    body = await read_body(request, BODY_BYTES_MAX)
    return await context_of(request).books.topup.receive(request.headers, body)
