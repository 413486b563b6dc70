"""The drawing routes by their whole path, before any router. Knows paths and apps; nothing behind them.

FastAPI's two layers (the mounts, then the mount's routes) took a sixth of the time that a relayed request
takes here, and have nothing to do for a handler that reads its request itself (bench/results/gateway.md).
They keep the routes: for the API reference, and for every other method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """Hands POST requests for these very paths to their own apps, and all else to the app behind."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._posts = dict(posts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._posts.get(scope["path"], app)
        await app(scope, receive, send)


def standing_alone(app: FastAPI, handle: Handler) -> ASGIApp:
    """A handler of `app` as an ASGI app: with its state, and its answer to what is raised."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        request = Request(scope, receive, send)
        try:
            response = await handle(request)
        except Exception as error:
            response = await app.exception_handlers[Exception](request, error)
        await response(scope, receive, send)

    return run
