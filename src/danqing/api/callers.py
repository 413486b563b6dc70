"""Who calls the admin, account and task APIs, checked before a body is read. Knows headers and scopes; no route."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from danqing.api.context import context_of
from danqing.api.requests import client_address
from danqing.domain.errors import InvalidField
from danqing.service.auth import Principal, require_scope
from danqing.service.trail import by_account


async def admin(request: Request) -> Principal:
    """The caller, whose token has the scope `admin`. Raises AuthError, PermissionDenied."""
    return await _caller(request, "admin")


async def holder(request: Request) -> Principal:
    """The caller, whose token has the scope `account`. Raises AuthError, PermissionDenied."""
    return await _caller(request, "account")


async def drawer(request: Request) -> Principal:
    """The caller, whose token has the scope `draw`. Raises AuthError, PermissionDenied."""
    return await _caller(request, "draw")


async def _caller(request: Request, scope: str) -> Principal:
    context = context_of(request)
    principal = await context.auth.authenticate(
        request.headers.get("authorization"), client_address(request, context.settings)
    )
    require_scope(principal, scope)
    for where in (request.path_params, request.query_params):
        for name, value in where.items():
            if "\0" in value:  # a body's are refused by parse_json; PostgreSQL takes none
                raise InvalidField(f"'{name}' holds a NUL.", name)
    return principal


Admin = Annotated[Principal, Depends(admin)]
Drawer = Annotated[Principal, Depends(drawer)]
Holder = Annotated[Principal, Depends(holder)]


def actor(principal: Principal) -> str:
    """Who did it, as the audit trail writes it."""
    return by_account(principal.account_id, principal.account_name)
