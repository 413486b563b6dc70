"""Which web pages may read our answers (CORS). Knows origins and headers; no route.

Stored images are open to every page: the signature is the permission, not the origin. The APIs are open to the
origins that `cors_origins` names; they take tokens in a header and no cookies, so no credentials are shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_FILES = "/files/"
_FILE_HEADERS = ("accept-ranges", "content-disposition", "content-length", "content-range", "etag")
_API_HEADERS = (
    *("idempotent-replayed", "location", "openai-processing-ms", "openai-version", "retry-after"),
    *("preference-applied", "x-request-id", "x-should-retry"),
    *(f"x-danqing-{name}" for name in ("charged", "ignored", "model", "seed", "size", "task")),
    *("x-danqing-timing", "x-danqing-truncated", "x-danqing-extension", "x-danqing-fallback"),
    *(f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")),
)
PREFLIGHT_S = 7200
"""How long a browser remembers what it asked beforehand: Chromium's own limit."""


class Origins:
    """Answers preflights, and says on every answer who may read it."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._files = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["GET", "HEAD"],
            allow_headers=["*"],
            expose_headers=_FILE_HEADERS,
            max_age=PREFLIGHT_S,
        )
        self._apis: ASGIApp = app
        if origins:
            self._apis = CORSMiddleware(
                app,
                allow_origins=list(origins),
                allow_methods=["DELETE", "GET", "PATCH", "POST", "PUT"],
                allow_headers=["*"],
                expose_headers=_API_HEADERS,
                max_age=PREFLIGHT_S,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope["type"] == "http" and scope["path"].startswith(_FILES)
        await (self._files if is_file else self._apis)(scope, receive, send)
