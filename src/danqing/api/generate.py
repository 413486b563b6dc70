"""The one handler behind every drawing route: authenticate, read, decode, draw, answer. Knows no dialect by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from asyncio import to_thread
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import structlog
from fastapi import Request
from starlette.responses import Response

from danqing.api.answers import accepted, accepted_natively, facts, refuse, respond
from danqing.api.context import Context, context_of
from danqing.api.payload import TEXT, Bodies, read_payload
from danqing.api.requests import (
    PEEK_BYTES_MAX,
    client_address,
    idempotency_key,
    link_base,
    read_body,
    until_hang_up,
)
from danqing.api.streams import begin_stream
from danqing.dialects.base import Dialect, Upload, parse_json
from danqing.domain.card import Card
from danqing.domain.errors import DanqingError, ServerFault, Unavailable, UnsupportedField
from danqing.domain.task import Delivery
from danqing.observability.logging import get_logger
from danqing.service.auth import Principal, require_scope
from danqing.service.budget import Share
from danqing.service.calls import Accepted, Call, ClientKey
from danqing.service.streaming import Feed

log = get_logger(__name__)


Pick = Callable[[Mapping[str, Any] | None], str]
"""Chooses a dialect by the body; None when it could not be read."""

Manner = Callable[[Request], bool]
"""Whether a route answers at once, as its provider's asynchronous one does. May raise RequestError."""


def waits(_request: Request) -> bool:
    """The manner of a route that answers when the images are there."""
    return False


def drawing_route(
    pick: Pick, manner: Manner = waits, bodies: Bodies = TEXT
) -> Callable[[Request], Awaitable[Response]]:
    """A handler for POST of a drawing request whose dialect `pick` chooses."""

    async def handle(request: Request) -> Response:
        context = context_of(request)
        with context.uploads.share() as share:
            return await _handle(request, context, pick, manner, bodies, share)

    return handle


async def _handle(
    request: Request, context: Context, pick: Pick, manner: Manner, bodies: Bodies, share: Share
) -> Response:
    received_s = time.time()
    request_id: str = request.scope["danqing.request_id"]
    try:
        principal = await context.auth.authenticate(
            request.headers.get("authorization"), client_address(request, context.settings)
        )
        require_scope(principal, "draw")
        share.belongs_to(principal.account_id, request_id)
    except Exception as error:
        if not isinstance(error, DanqingError):
            log.exception("authentication_crashed")
            error = ServerFault()
        dialect = context.dialects[pick(await _peek(request))]
        context.metrics.requests.labels(dialect.name, "", error.code).inc()
        # What a stranger still sends is not read: the connection ends here.
        return refuse(dialect, error, request_id, close=True)
    dialect, model = context.dialects[pick(None)], ""
    outcome_code: str | None = "ok"
    delivery: Delivery | None = None

    def record(code: str) -> None:
        context.metrics.requests.labels(dialect.name, model, code).inc()
        structlog.contextvars.bind_contextvars(
            dialect=dialect.name, model=model, outcome=code, account=principal.account_id
        )

    try:
        body, is_large = await read_payload(request, bodies, context.settings, share)
        dialect = context.dialects[pick(body)]
        asynchronous = manner(request)
        background = asynchronous or "respond-async" in _preferences(request)
        card = context.catalog.find(dialect.requested_model(body), dialect.name)
        delivery = Delivery.of_card(card)  # until what was asked for is read
        decode = partial(
            _decode, request, context, dialect, card, body, principal, received_s, background
        )
        call = await to_thread(decode) if is_large else decode()
        model, delivery = call.card.name, call.delivery
        if call.feed is not None:
            stream = await begin_stream(request, context.pipeline, dialect, call, record, share)
            outcome_code = None  # told when the stream has ended
            return stream
        outcome = await until_hang_up(request, context.pipeline.draw(call), call.hung_up)
        if isinstance(outcome, Accepted):
            outcome_code = "accepted"
            if asynchronous:
                return accepted_natively(dialect, call, outcome, request_id)
            return accepted(call, outcome)
        reply = dialect.encode_result(outcome.result, call.delivery, outcome.task_id)
        return respond(reply, facts(call, outcome))
    except DanqingError as error:
        outcome_code = error.code
        return refuse(dialect, error, request_id, delivery)
    except asyncio.CancelledError:
        outcome_code = Unavailable.code
        return refuse(
            dialect, Unavailable("The server is stopping. Please retry later."), request_id
        )
    except Exception:
        log.exception("request_crashed")
        outcome_code = ServerFault.code
        return refuse(dialect, ServerFault(), request_id)
    finally:
        if outcome_code is not None:
            record(outcome_code)


def _decode(
    request: Request,
    context: Context,
    dialect: Dialect,
    card: Card,
    body: dict[str, Any],
    principal: Principal,
    received_s: float,
    background: bool,
) -> Call:
    task, delivery = dialect.decode_request(body, card)
    if background and delivery.stream:
        raise UnsupportedField("'stream' does not go with 'Prefer: respond-async'.", "stream")
    return Call(
        dialect=dialect.name,
        principal=principal,
        card=card,
        task=task,
        delivery=delivery,
        base_url=link_base(request, context.settings),
        received_s=received_s,
        request_id=request.scope["danqing.request_id"],
        client_key=_client_key(request, principal, body, task.client_request_id),
        background=background,
        feed=Feed(context.gallery.filled) if delivery.stream else None,
    )


def _client_key(
    request: Request, principal: Principal, body: dict[str, Any], request_id: str | None
) -> ClientKey | None:
    """The Idempotency-Key, else the body's own request id. Raises InvalidField for what is no key."""
    key = idempotency_key(request)
    if key is None and request_id is None:
        return None
    kind, name = ("request_id", request_id) if key is None else ("key", key)
    # Zhipu's two prefixes are one route.
    route = request.url.path.removeprefix("/api")
    text = "\0".join((principal.account_id, route, kind, str(name)))
    canonical = json.dumps(
        body, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_fingerprint
    )
    return ClientKey(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        replays=key is not None,
    )


def _fingerprint(value: object) -> str:
    """What stands for a file in the fingerprint of a form. Its name is the client's own affair."""
    assert isinstance(value, Upload)
    return "sha256:" + hashlib.sha256(value.data).hexdigest()


def _preferences(request: Request) -> set[str]:
    """The names in the Prefer headers (RFC 7240)."""
    header = ",".join(request.headers.getlist("prefer"))
    return {one.split(";")[0].strip().lower() for one in header.split(",")}


async def _peek(request: Request) -> Mapping[str, Any] | None:
    try:
        return parse_json(await read_body(request, PEEK_BYTES_MAX, drained=False))
    except DanqingError:
        return None
