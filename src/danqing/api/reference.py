"""/docs and /openapi.json: every route of every mount on one page, with nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount

from danqing.api import schemas
from danqing.dialects.base import Dialect

Schema = dict[str, Any]


def body_schema(dialect: Dialect) -> Schema:
    """The JSON Schema of a dialect's request body, its parts inlined."""
    return model_schema(dialect.body) | {"title": dialect.name}


def model_schema(model: type[BaseModel]) -> Schema:
    """A model's JSON Schema, its parts inlined."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    inlined: Schema = _inlined(schema, parts)
    return inlined


def form_schema(dialect: Dialect) -> Schema:
    """The JSON Schema of a dialect's multipart form: its texts, and its files as binary strings."""
    assert dialect.form is not None
    schema = model_schema(dialect.form) | {"title": dialect.name}
    one = {"type": "string", "format": "binary"}
    files = {
        name: one if "[]" not in name else {"type": "array", "items": one} for name in dialect.files
    }
    schema["properties"] = files | schema["properties"]
    if not any("[]" in name for name in dialect.files):
        schema["required"] = [*dialect.files, *schema.get("required", [])]
    return schema


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


def _inlined(value: Any, parts: Schema) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(parts[value["$ref"].rsplit("/", 1)[1]], parts)
        return {key: _inlined(item, parts) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, parts) for item in value]
    return value


def attach_to(app: FastAPI) -> None:
    """Add the two pages; after everything else is mounted."""
    document = _document(app)
    page = _page(document).encode("utf-8")

    async def openapi() -> Response:
        return JSONResponse(document)

    async def docs() -> Response:
        return HTMLResponse(page)

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


def _page(document: Schema) -> str:
    sections = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(operation.get('description') or operation['summary'])}</p>"
        + "".join(_table(schema) for schema in _bodies(operation))
        # What people come for first: the routes that draw, then what one reads afterwards.
        for verb in ("post", "get", "put", "patch", "delete")
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method == verb
    ]
    return _FRAME.format(body="\n".join(sections))


def _bodies(operation: Schema) -> list[Schema]:
    content = operation.get("requestBody", {}).get("content", {})
    return [
        schema | {"title": f"{schema['title']} ({kind})" if len(content) > 1 else schema["title"]}
        for kind, entry in content.items()
        for schema in entry.get("schema", {}).get("anyOf", [])
    ]


def _table(schema: Schema) -> str:
    needed = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(field))}</td>"
        f"<td>{'required' if name in needed else ''}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<h3>{escape(schema['title'])}</h3><table>{rows}</table>"


def _kind(field: Schema) -> str:
    """A field's type in words."""
    if "anyOf" in field:
        kinds = [_kind(option) for option in field["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in field:
        return ", ".join(str(value) for value in field["enum"])
    bounds = [
        f"{word} {field[key]:.0f}"
        for key, word in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("minLength", "at least"),
            ("maxLength", "at most"),
        )
        if key in field
    ]
    return " ".join([field.get("const") or field.get("type", "any"), *bounds])


_FRAME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Danqing: API reference</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 3rem auto; padding: 0 1rem; color: #222; }}
h2 {{ margin-top: 2.5rem; font-size: 1.1rem; border-top: 1px solid #ddd; padding-top: 1rem; }}
h3 {{ font-size: 1rem; margin-bottom: .3rem; }}
table {{ border-collapse: collapse; }} td {{ padding: .15rem 1.5rem .15rem 0; vertical-align: top; }}
code {{ background: #f3f1ec; padding: .1em .3em; border-radius: .2em; }}
</style>
<h1>Danqing 丹青: API reference</h1>
<p>Send <code>Authorization: Bearer YOUR_TOKEN</code>. Sizes, qualities, prices and limits of each model:
<code>GET /v1/models</code>. As a document for tools: <a href="/openapi.json">/openapi.json</a>.</p>
{body}
</html>
"""
