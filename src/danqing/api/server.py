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
from danqing.api.shortcut import Shortcut


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
    zhipu = mounts.zhipu(context)
    posts: dict[str, ASGIApp] = {}
    for prefix, mounted in (
        ("/v1", mounts.v1(context)),
        ("/paas/v4", zhipu),
        ("/api/paas/v4", zhipu),
        ("/api/v3", mounts.ark(context)),
        ("/api/v1", mounts.dashscope(context)),
        ("/admin/v1", mounts.admin_v1(context)),
        ("/account/v1", mounts.account_v1(context)),
    ):
        app.mount(prefix, mounted)
        posts |= {prefix + path: post for path, post in mounted.state.posts.items()}
    for route in app.routes:
        if isinstance(route, Mount):
            # Else a path with a line break in it is no mount's, and is answered in none's shape.
            route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
    reference.attach_to(app, context)
    return RequestLog(Origins(Shortcut(app, posts), context.settings.cors_origins))


async def _on_stray(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path[:200]}"
    if status == 405:
        allowed = {"allow": ", ".join(mounts.methods_of(request.app, request))}
        fault = {"code": "method_not_allowed", "message": f"Not allowed: {where}."}
        return JSONResponse({"error": fault}, status_code=status, headers=allowed)
    message = f"No such page: {where}. The APIs begin with /v1, /api/paas/v4, /api/v3 or /api/v1."
    return JSONResponse({"error": {"code": "not_found", "message": message}}, status_code=status)
