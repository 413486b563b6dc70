"""The sub-apps, one per mount, each with its own error shape for wrong paths and methods. Knows routes; nothing of drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from danqing.api import models, tasks
from danqing.api.answers import refuse
from danqing.api.context import Context, attach, context_of
from danqing.api.generate import Pick, drawing_route
from danqing.api.reference import body_schema
from danqing.dialects.base import choose_v1_chat, choose_v1_images
from danqing.domain.errors import (
    DanqingError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    ServerFault,
)


def _sub_app(context: Context, dialect: str, title: str) -> FastAPI:
    """An app whose every stray answer speaks `dialect`."""
    app = attach(
        FastAPI(title=title, docs_url=None, redoc_url=None, redirect_slashes=False), context
    )

    async def on_http(request: Request, error: Exception) -> Response:
        return _answer(request, dialect, _translated(request, error))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(DanqingError, on_http)
    return app


def _translated(request: Request, error: Exception) -> DanqingError:
    if isinstance(error, DanqingError):
        return error
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path[:200]}"
    if status == 404:
        return NotFound(f"Unknown request URL: {where}.")
    if status == 405:
        return MethodNotAllowed(f"Not allowed: {where}.")
    return ServerFault() if status >= 500 else RequestError(f"Bad request: {where}.")


def _answer(request: Request, dialect: str, error: DanqingError) -> Response:
    context = context_of(request)
    return refuse(context.dialects[dialect], error, request.scope["danqing.request_id"])


def v1(context: Context) -> FastAPI:
    """`/v1`: OpenAI's paths, which the draw, jimeng and qwen seeds share."""
    app = _sub_app(context, "openai", "Danqing: OpenAI, draw, jimeng and Qwen-Image")
    _add_drawing(app, "/images/generations", choose_v1_images, context, "openai", "dashscope")
    _add_drawing(app, "/chat/completions", choose_v1_chat, context, "chat", "draw")
    app.include_router(models.router)
    app.include_router(tasks.router)
    return app


def zhipu(context: Context) -> FastAPI:
    """`/paas/v4` and `/api/paas/v4`: Zhipu's paths."""

    def always(_body: Mapping[str, Any] | None) -> str:
        return "zhipu"

    app = _sub_app(context, "zhipu", "Danqing: Zhipu CogView")
    _add_drawing(app, "/images/generations", always, context, "zhipu")
    return app


def _add_drawing(app: FastAPI, path: str, pick: Pick, context: Context, *dialects: str) -> None:
    """A POST route that draws, with its bodies in the API reference."""
    schemas = [body_schema(context.dialects[name]) for name in dialects]
    app.add_api_route(
        path,
        drawing_route(pick),
        methods=["POST"],
        summary="Draw: " + " or ".join(dialects),
        openapi_extra={
            "requestBody": {"content": {"application/json": {"schema": {"anyOf": schemas}}}}
        },
    )
