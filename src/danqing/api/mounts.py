"""The sub-apps, one per mount, each with its own error shape for wrong paths and methods. Knows routes; nothing of drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from danqing.api import (
    account,
    admin,
    admin_more,
    dashscope_tasks,
    images,
    inspecting,
    models,
    schemas,
    sign_in,
    tasks,
    zhipu_tasks,
)
from danqing.api.answers import refuse
from danqing.api.context import Context, attach, context_of
from danqing.api.generate import Manner, Pick, drawing_route, waits
from danqing.api.middleware import OpenAIHeaders
from danqing.api.payload import EDITS, FORM, PICTURES, TEXT, Bodies
from danqing.api.reference import bodies_of, complete
from danqing.api.reference_fields import TITLES, body_schemas, form_schema
from danqing.api.requests import drop_body
from danqing.api.shortcut import standing_alone
from danqing.dialects.base import choose_v1_chat, choose_v1_images
from danqing.domain.errors import (
    AuthError,
    DanqingError,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    RequestError,
    ServerFault,
)
from danqing.observability.logging import get_logger
from danqing.service.keys import KeyFileError

log = get_logger(__name__)


def _sub_app(context: Context, dialect: str, title: str) -> FastAPI:
    """An app whose every stray answer speaks `dialect`."""
    app = attach(
        FastAPI(title=title, docs_url=None, redoc_url=None, redirect_slashes=False), context
    )
    app.state.posts = {}

    async def on_http(request: Request, error: Exception) -> Response:
        translated = _translated(request, error)
        stranger = isinstance(translated, AuthError)
        if stranger:
            await drop_body(request)
        context = context_of(request)
        request_id: str = request.scope["danqing.request_id"]
        answer = refuse(context.dialects[dialect], translated, request_id, close=stranger)
        if answer.status_code == 405:
            answer.headers["allow"] = ", ".join(methods_of(app, request))
        return answer

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(DanqingError, on_http)
    app.add_exception_handler(RequestValidationError, on_http)
    app.add_exception_handler(Exception, on_http)
    complete(app, dialect)
    return app


def _translated(request: Request, error: Exception) -> DanqingError:
    if isinstance(error, KeyFileError):
        log.error("key_file_unusable", message=error.message)  # it names a path: not for clients
        return ServerFault()
    if isinstance(error, DanqingError):
        return error
    if isinstance(error, RequestValidationError):
        fault = error.errors()[0]
        name = str(fault["loc"][-1])
        return InvalidField(f"Invalid value for '{name}': {fault['msg'].lower()}.", name)
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path[:200]}"
    if status == 404:
        return NotFound(f"Unknown request URL: {where}.")
    if status == 405:
        return MethodNotAllowed(f"Not allowed: {where}.")
    return ServerFault() if status >= 500 else RequestError(f"Bad request: {where}.")


def methods_of(app: FastAPI, request: Request) -> list[str]:
    """The methods that the request's path takes (RFC 9110: a 405 names them)."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in app.routes
        )
    ]


def v1(context: Context) -> FastAPI:
    """`/v1`: OpenAI's paths, which the draw, jimeng and qwen seeds share."""
    app = _sub_app(context, "openai", "Danqing: OpenAI, draw, jimeng and Qwen-Image")
    generations = ("openai", "dashscope")  # jimeng's and Qwen-Image's may hold pictures
    _add_drawing(
        app, "/images/generations", choose_v1_images, context, *generations, bodies=PICTURES
    )
    _add_drawing(app, "/chat/completions", choose_v1_chat, context, "chat", "draw", bodies=PICTURES)
    edits, variations = "openai_edits", "openai_variations"
    _add_drawing(app, "/images/edits", always(edits), context, edits, bodies=EDITS)
    _add_drawing(app, "/images/variations", always(variations), context, variations, bodies=FORM)
    app.include_router(models.router)
    app.include_router(tasks.router)
    app.include_router(inspecting.router)
    app.include_router(images.own)
    app.add_middleware(OpenAIHeaders)
    app.state.posts = {path: OpenAIHeaders(post) for path, post in app.state.posts.items()}
    return app


def zhipu(context: Context) -> FastAPI:
    """`/paas/v4` and `/api/paas/v4`: Zhipu's paths."""
    app = _sub_app(context, "zhipu", "Danqing: Zhipu CogView")
    pick = always("zhipu")
    _add_drawing(app, "/images/generations", pick, context, "zhipu")
    _add_drawing(app, "/async/images/generations", pick, context, "zhipu", manner=at_once)
    app.include_router(zhipu_tasks.router)
    return app


def ark(context: Context) -> FastAPI:
    """`/api/v3`: Volcengine Ark's path."""
    app = _sub_app(context, "ark", "Danqing: Volcengine Ark")
    _add_drawing(app, "/images/generations", always("ark"), context, "ark", bodies=PICTURES)
    return app


def dashscope(context: Context) -> FastAPI:
    """`/api/v1`: DashScope's paths. Which routes wait and which have tasks is as the provider has it."""
    app = _sub_app(context, "dashscope_native", "Danqing: DashScope")
    for path, name, manner in (
        ("multimodal-generation/generation", "dashscope_native", dashscope_tasks.synchronous),
        ("image-generation/generation", "dashscope_native", dashscope_tasks.asynchronous),
        ("text2image/image-synthesis", "dashscope_synthesis", dashscope_tasks.asynchronous),
        ("image2image/image-synthesis", "dashscope_synthesis", dashscope_tasks.asynchronous),
    ):
        where = f"/services/aigc/{path}"
        _add_drawing(app, where, always(name), context, name, manner=manner, bodies=PICTURES)
    app.include_router(dashscope_tasks.router)
    return app


def admin_v1(context: Context) -> FastAPI:
    """`/admin/v1`: the books, for operators."""
    app = _sub_app(context, "openai", "Danqing: administration")
    app.include_router(admin.router)
    app.include_router(admin_more.router)
    app.include_router(images.anybodys)
    return app


def account_v1(context: Context) -> FastAPI:
    """`/account/v1`: an account, for its holder."""
    app = _sub_app(context, "openai", "Danqing: accounts")
    app.include_router(account.router)
    app.include_router(sign_in.router)
    return app


def always(name: str) -> Pick:
    """The choice of a mount with one dialect."""

    def pick(_body: Mapping[str, Any] | None) -> str:
        return name

    return pick


def at_once(_request: Request) -> bool:
    """The manner of a route that is asynchronous whatever the request says."""
    return True


def _add_drawing(
    app: FastAPI,
    path: str,
    pick: Pick,
    context: Context,
    *dialects: str,
    manner: Manner = waits,
    bodies: Bodies = TEXT,
) -> None:
    """A POST route that draws, with its bodies in the API reference."""
    codecs = [context.dialects[name] for name in dialects]
    streams = any("encode_event" in vars(type(codec)) for codec in codecs)
    answers = schemas.drawing(
        dialects, native=manner not in (waits, dashscope_tasks.synchronous), events=streams
    )
    taken = {
        "application/json": [one for codec in codecs if bodies.json for one in body_schemas(codec)],
        "multipart/form-data": [form_schema(one) for one in codecs if bodies.form],
    }
    handle = drawing_route(pick, manner, bodies)
    app.state.posts[path] = standing_alone(app, handle)
    app.add_api_route(
        path,
        handle,
        methods=["POST"],
        summary="Draw: " + " or ".join(TITLES[name] for name in dialects),
        openapi_extra=bodies_of(taken) | answers,
    )
