"""The whole HTTP face: mounts the sub-apps and the operators' routes on one app. Knows mounts; nothing behind them."""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from danqing import __version__
from danqing.api import files, mounts, ops, reference
from danqing.api.context import Context, attach
from danqing.api.middleware import RequestLog
from danqing.api.origins import Origins


def build(context: Context) -> ASGIApp:
    """The ASGI app of a server whose parts are in `context`."""
    app = attach(
        FastAPI(
            title="Danqing",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
        ),
        context,
    )
    app.include_router(ops.router)
    app.include_router(files.router)
    app.add_exception_handler(HTTPException, _on_stray)
    app.mount("/v1", mounts.v1(context))
    zhipu = mounts.zhipu(context)
    app.mount("/paas/v4", zhipu)
    app.mount("/api/paas/v4", zhipu)
    app.mount("/api/v3", mounts.ark(context))
    app.mount("/api/v1", mounts.dashscope(context))
    app.mount("/admin/v1", mounts.admin_v1(context))
    app.mount("/account/v1", mounts.account_v1(context))
    for route in app.routes:
        if isinstance(route, Mount):
            # Else a path with a line break in it is no mount's, and is answered in none's shape.
            route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
    reference.attach_to(app, context)
    return RequestLog(Origins(app, context.settings.cors_origins))


async def _on_stray(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = (
        f"No such page: {request.method} {request.url.path[:200]}. "
        "The APIs begin with /v1, /api/paas/v4, /api/v3 or /api/v1."
    )
    return JSONResponse({"error": {"code": "not_found", "message": message}}, status_code=status)
