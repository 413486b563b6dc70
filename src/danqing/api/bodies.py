"""The bodies of the admin and account APIs, and reading them. Knows shapes; nothing of accounts or money."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import Field

from danqing.api.reference import body_of
from danqing.api.reference_fields import model_schema
from danqing.api.requests import read_body
from danqing.dialects.base import parse_json
from danqing.dialects.fields import Wire, validate
from danqing.service.tokens import TokenLimits

BODY_BYTES_MAX = 64_000

W = TypeVar("W", bound=Wire)

Characters = int
"""The ledger says which: whole, from 1 to 10^15; negative ones only to adjust."""
Reason = Annotated[str, Field(min_length=1, max_length=500)]
Name = Annotated[str, Field(max_length=200)]
Secret = Annotated[str, Field(max_length=1024)]
Moment = Annotated[int, Field(ge=0, le=253_402_300_799)]
"""Unix seconds, up to the year 9999."""
Words = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)]


async def read(request: Request, model: type[W], *, nulls: bool = False) -> W:
    """The request's JSON body, checked. Raises BodyTooLarge, InvalidBody, and what `validate` raises.

    Handlers call it themselves, so that a caller is authenticated before anything is read.
    """
    return validate(model, parse_json(await read_body(request, BODY_BYTES_MAX)), nulls=nulls)


def takes(model: type[Wire]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads this body."""
    return body_of(model_schema(model))


class LimitsBody(Wire):
    """What a token may do. In a PATCH null lifts a limit, and what is left out stays."""

    scopes: Words = Field(default=["draw"])
    models: Words | None = None
    networks: Words | None = None
    budget_day: int | None = None
    budget_month: int | None = None
    budget_total: int | None = None
    concurrency_max: int | None = None
    rate_per_minute: int | None = None

    def applied_to(self, limits: TokenLimits) -> TokenLimits:
        """`limits` with what was given in this body in its place."""
        names = {field.name for field in fields(TokenLimits)} & self.model_fields_set
        return replace(limits, **{name: getattr(self, name) for name in names})


class TokenBody(LimitsBody):
    name: Name | None = None
    expires: Moment | None = None

    @property
    def expires_ms(self) -> int | None:
        return None if self.expires is None else self.expires * 1000


class AccountTokenBody(TokenBody):
    account: Name


class AccountBody(Wire):
    name: Name
    characters: Characters | None = None
    is_admin: bool = False


class AccountPatch(Wire):
    """`reason` is needed where `suspended` is true; null takes `low_balance`, `block_level` and `image_days` away."""

    suspended: bool | None = None
    reason: Reason | None = None
    price_permille: int | None = None
    is_admin: bool | None = None
    low_balance: int | None = None
    block_level: int | None = None
    image_days: int | None = None


class TransferBody(Wire):
    characters: Characters
    reason: Reason


class PasswordBody(Wire):
    password: Secret


class PasswordChange(Wire):
    old: Secret
    new: Secret


class WaiverBody(Wire):
    """`version` is that of the text which was read (GET shows both)."""

    version: Name
    signer: Annotated[str, Field(min_length=1, max_length=200)]


class CodesBody(Wire):
    characters: Characters
    count: int = 1
    kind: Literal["credit", "invite"] = "credit"
    expires: Moment | None = None

    @property
    def expires_ms(self) -> int | None:
        return None if self.expires is None else self.expires * 1000


class BlockBody(Wire):
    end_user: Annotated[str, Field(min_length=1, max_length=512)]
    reason: Reason


class AnyBlockBody(BlockBody):
    """Without `account`: blocked everywhere."""

    account: Name | None = None


class SignUpBody(Wire):
    name: Name
    password: Secret
    invite: Name | None = None


class SignInBody(Wire):
    name: Name
    password: Secret


class RedeemBody(Wire):
    code: Name


class WebhookPatch(Wire):
    """Null takes one away; what is left out stays."""

    webhook_url: Annotated[str, Field(max_length=2048)] | None = None
    low_balance: int | None = None


class DeletionBody(Wire):
    """`password`, or for an account without one `confirm`: its name."""

    password: Secret | None = None
    confirm: Name | None = None
