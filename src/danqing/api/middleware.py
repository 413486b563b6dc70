"""Around every request: an id, one access line, and an answer even when a handler breaks. Pure ASGI, so streams pass through."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danqing.observability.logging import get_logger

log = get_logger("danqing.access")

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
OPENAI_VERSION = b"2020-10-01"
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Gives each request an id (the client's own x-request-id if it is a sane one) and logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _client_id(scope) or uuid.uuid4().hex
        scope["danqing.request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: list[Any] = message.setdefault("headers", [])
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"][:200],
                    status=status,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                )


class OpenAIHeaders:
    """The headers that OpenAI puts on every answer: `openai-version` and `openai-processing-ms`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()

        async def send_with_both(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[Any] = message.setdefault("headers", [])
                ms = str(round((time.perf_counter() - started) * 1000)).encode()
                there = {name for name, _ in headers}
                for name, value in (
                    (b"openai-version", OPENAI_VERSION),
                    (b"openai-processing-ms", ms),
                ):
                    if name not in there:
                        headers.append((name, value))
            await send(message)

        await self._app(scope, receive, send_with_both)


def _client_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.fullmatch(value):
            return value.decode()
    return None
