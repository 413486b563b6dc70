"""/docs and /openapi.json: every route of every mount on one page, with nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount

from danqing.api import schemas
from danqing.api.context import Context
from danqing.api.reference_page import render
from danqing.api.reference_sections import HERE
from danqing.api.requests import link_base

Schema = dict[str, Any]


def body_of(*schemas: Schema) -> Schema:
    """FastAPI's `openapi_extra` of a route that reads its body itself: JSON, one of these."""
    return bodies_of({"application/json": [*schemas]})


def bodies_of(schemas: dict[str, list[Schema]]) -> Schema:
    """The same with the schemas of each media type."""
    content = {kind: {"schema": {"anyOf": some}} for kind, some in schemas.items() if some}
    return {"requestBody": {"required": True, "content": content}}


def complete(app: FastAPI, dialect: str) -> None:
    """Make an app's own document whole: who is let in, and every error as `dialect` shapes it."""
    made = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            document = made()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            for operation in _operations(document):
                _complete(operation, schemas.ERRORS.get(dialect, {}))
            # FastAPI's own error for what it reads itself; ours is in its place.
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"].get("schemas", {}).pop(name, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: Schema) -> list[Schema]:
    return [operation for item in document["paths"].values() for operation in item.values()]


def _complete(operation: Schema, error: Schema) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    content = {"application/json": {"schema": error}}
    responses["4XX"] = {"description": "The request cannot be honoured.", "content": content}
    responses["5XX"] = {"description": "The server failed.", "content": content}
    operation.setdefault("security", [{"token": []}])


def attach_to(app: FastAPI, context: Context) -> None:
    """Add the two pages; after everything else is mounted."""
    document = _document(app)
    page = render(document, context.dialects)

    async def openapi() -> Response:
        return JSONResponse(document)

    async def docs(request: Request) -> Response:
        # The examples are to work as they are copied: from where the reader sees this page.
        here = escape(link_base(request, context.settings))
        return HTMLResponse(page.replace(HERE, here))

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)


def _document(app: FastAPI) -> Schema:
    """One OpenAPI document; FastAPI makes one per app only."""
    document = app.openapi()
    for operation in _operations(document):
        operation["responses"].pop("422", None)
    document.pop("components", None)
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, FastAPI):
            part = route.app.openapi()
            paths = {route.path + path: item for path, item in part["paths"].items()}
            document["paths"] |= paths
            for kind, entries in part.get("components", {}).items():
                document.setdefault("components", {}).setdefault(kind, {}).update(entries)
    return document
