"""/docs: the API reference as one page that loads nothing from elsewhere. Makes HTML of the document and the chapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from danqing.api import schemas
from danqing.api.reference_fields import TITLES, parts_of
from danqing.api.reference_sections import BOOKS, CHAPTERS, FAULTS, HERE, Chapter, Example, Route
from danqing.api.reference_style import STYLE
from danqing.dialects.base import Dialect, Reply
from danqing.dialects.jimeng import JimengHabits
from danqing.domain.errors import ContentRefused, DanqingError
from danqing.domain.task import Delivery

Schema = dict[str, Any]

_CODE = re.compile(r"`([^`]+)`")
_ITALIC = re.compile(r"\*([^*\s][^*]*)\*")
_LINK = re.compile(r"\[([^\]]+)\]\((#[a-z-]+)\)")
_FILES = ("image", "image[]", "mask")
_VERBS = ("post", "get", "put", "patch", "delete")

_ANSWERED: dict[str, str] = {
    "created": "When the request came in, Unix seconds.",
    "url": "Where the image is; the link expires.",
    "b64_json": "The image itself.",
    "revised_prompt": "What was drawn, where the prompt was extended.",
    "actual_prompt": "What was drawn, where the prompt was extended.",
    "orig_prompt": "The prompt as you wrote it.",
    "usage": "Counts by a formula of our own; what you are charged is in `x-danqing-charged`.",
    "content_filter": "What moderation found, by role; level 0 is the worst, 3 the mildest.",
    "charged": "Characters.",
    "task_status": "How the task stands.",
    "status": "How the task stands.",
    "request_id": "For questions to your operator.",
    "error": "Why there is no image.",
    "content": "The images.",
}


def render(document: Schema, dialects: Mapping[str, Dialect]) -> str:
    """The whole page, as of a server at HERE."""
    parts = [_start()]
    shown: list[tuple[str, str, list[tuple[str, str]]]] = [("start", "Start here", [])]
    for chapter in CHAPTERS:
        parts.append(_chapter(chapter, document, dialects))
        links = [(_anchor(chapter.id, route), route.title) for route in chapter.routes]
        if chapter.errors_of:
            links.append((f"{chapter.id}-errors", "Errors"))
        shown.append((chapter.id, chapter.title, links))
    for chapter in _books(document):
        parts.append(_chapter(chapter, document, dialects))
        shown.append((chapter.id, chapter.title, []))
    return _FRAME.format(style=STYLE, contents=_contents(shown), body="\n".join(parts))


def _books(document: Schema) -> Iterator[Chapter]:
    """The chapters of whatever the document has below a path and no other chapter has."""
    told = {route.path for chapter in CHAPTERS for route in chapter.routes}
    others = [path for _, _, path, _ in BOOKS if path]
    for id, title, below, words in BOOKS:
        routes = [
            Route(method.upper(), path, operation["summary"])
            for verb in _VERBS
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if method == verb and path not in told and not path.startswith("/paas")
            if path.startswith(below) and (below or not any(map(path.startswith, others)))
        ]
        yield Chapter(id, title, words, tuple(routes))


def _start() -> str:
    bases = "".join(
        f"<tr><td>{_words(client)}</td><td><code>{HERE}{path}</code></td></tr>"
        for client, path in (
            ("`openai`, and all that speaks to OpenAI", "/v1"),
            ("`zai-sdk`, `zhipuai`", "/api/paas/v4"),
            ("`dashscope`", "/api/v1"),
            ("`volcenginesdkarkruntime`", "/api/v3"),
        )
    )
    headers = "".join(
        f"<tr><td><code>{name}</code></td><td>{_words(words)}</td></tr>"
        for name, words in (
            ("Idempotency-Key", "Of a request: again with the same key and body, it is answered again and charged once."),
            ("Prefer: respond-async", "Of a request: answer 202 at once, with the task's address in `Location`."),
            ("x-danqing-task", "The task's id, for [tasks](#tasks)."),
            ("x-danqing-charged", "Characters charged."),
            ("x-danqing-model", "What really drew it."),
            ("x-danqing-fallback", "Where a fallback drew it: in place of which backend."),
            ("x-danqing-seed, x-danqing-size", "The seed of each image, and its size."),
            ("x-danqing-ignored, x-danqing-truncated", "Parameters that mean nothing for images, and texts that were cut. Nothing else is ever dropped: a field is honoured, or refused by name."),
            ("x-ratelimit-…-requests", "What is left of the token's rate limit, where it has one."),
            ("x-request-id", "The request's id; your own is taken where it is a sane one."),
        )
    )  # fmt: skip
    return (
        '<section id="start"><h1>API reference</h1>'
        '<p class="lead">Danqing 丹青 draws for the clients that you already have: set the base URL and the key, and nothing else.</p>'
        "<p>A key is a Danqing token: <code>Authorization: Bearer YOUR_TOKEN</code>. Any API reaches any model of the catalog. "
        'For tools, all of this as OpenAPI: <a href="/openapi.json">/openapi.json</a>.</p>'
        f'<div class="wide"><table><tr><th>client</th><th>base URL</th></tr>{bases}</table></div>'
        "<h3>Headers</h3><p>They mean the same on every API.</p>"
        f'<div class="wide"><table><tr><th>header</th><th>what it says</th></tr>{headers}</table></div></section>'
    )


def _chapter(chapter: Chapter, document: Schema, dialects: Mapping[str, Dialect]) -> str:
    parts = [
        f'<section id="{chapter.id}"><h2>{escape(chapter.title)}</h2><p>{_words(chapter.words)}</p>'
    ]
    parts += [_example(example) for example in chapter.examples]
    parts += [_route(chapter, route, document) for route in chapter.routes]
    if chapter.errors_of:
        parts.append(
            f'<h3 id="{chapter.id}-errors">Errors</h3><p>{_words(chapter.errors_words)}</p>'
        )
        parts.append(_faults(dialects[chapter.errors_of]))
    elif chapter.errors_words:
        parts.append(f"<h3>Errors</h3><p>{_words(chapter.errors_words)}</p>")
    return "".join(parts) + "</section>"


def _example(example: Example) -> str:
    code = escape(example.code)
    return f"<figure><figcaption>{escape(example.title)}</figcaption><pre><code>{code}</code></pre></figure>"


def _anchor(chapter: str, route: Route) -> str:
    return (
        f"{chapter}-{re.sub(r'[^a-z0-9]+', '-', f'{route.method} {route.path}'.lower()).strip('-')}"
    )


def _route(chapter: Chapter, route: Route, document: Schema) -> str:
    operation = document["paths"][route.path][route.method.lower()]
    words = route.words or ("" if route.dialect else operation.get("description", ""))
    return (
        f'<article id="{_anchor(chapter.id, route)}"><h3>{escape(route.title)}</h3>'
        f'<p class="route"><b class="{route.method.lower()}">{route.method}</b> <code>{escape(route.path)}</code></p>'
        + "".join(f"<p>{_words(part)}</p>" for part in words.split("\n\n") if part)
        + _parameters(operation)
        + _bodies(route, operation)
        + _answers(route, operation)
        + "</article>"
    )


def _parameters(operation: Schema) -> str:
    given = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    properties = {one["name"]: one["schema"] for one in given}
    needed = [one["name"] for one in given if one.get("required")]
    return _table("Query", {"properties": properties, "required": needed}) if given else ""


def _bodies(route: Route, operation: Schema) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    told: list[str] = []
    before: set[str] = set()
    for kind, entry in content.items():
        for schema in entry.get("schema", {}).get("anyOf", []):
            if route.dialect and schema.get("title") != TITLES[route.dialect]:
                continue
            caption = "Body, as a form" if "form" in kind else "Body"
            known = {name: one for name, one in schema["properties"].items() if name not in before}
            told.append(
                _table(caption, _own(route, schema) | ({"properties": known} if before else {}))
            )
            if before:
                told.append(
                    "<p>And the other fields above, but its lists and objects, as text.</p>"
                )
            before |= set(schema["properties"]) - set(_FILES)
    return "".join(told)


def _own(route: Route, schema: Schema) -> Schema:
    """What is worth telling of a body: of jimeng's, what OpenAI's has not."""
    if route.dialect != "jimeng":
        return schema
    kept = ("model", "prompt", "size", "n", "response_format", "watermark")
    properties = {name: schema["properties"][name] for name in (*kept, *JimengHabits.model_fields)}
    return schema | {"properties": properties}


def _answers(route: Route, operation: Schema) -> str:
    if route.dialect == "jimeng":
        return _folded("Answer", schemas.IMAGES)
    told: list[str] = []
    for status, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        if not status.startswith("2"):
            continue
        own = schemas.ANSWERS.get(route.dialect)
        if own is not None and status == "200" and own in schema.get("anyOf", []):
            schema = own
        if any("properties" in one for one in schema.get("anyOf", [schema])):
            told.append(_folded(f"Answer {status}", schema))
    if "text/event-stream" in operation["responses"].get("200", {}).get(
        "content", {}
    ) and route.dialect not in ("draw", "dashscope", "jimeng"):
        told.append(
            "<p>With <code>stream</code> the answer is <code>text/event-stream</code>; what can be refused early is plain JSON all the same.</p>"
        )
    return "".join(told)


def _folded(caption: str, schema: Schema) -> str:
    options = [one for one in schema.get("anyOf", [schema]) if "properties" in one]
    tables = "".join(_rows_table(one, _ANSWERED) for one in options)
    return f"<details><summary>{caption}</summary>{tables}</details>"


def _table(caption: str, schema: Schema) -> str:
    return f"<h4>{caption}</h4>{_rows_table(schema)}"


class Row(NamedTuple):
    """A field of a body or an answer, with how deep it stands."""

    depth: int
    above: str
    name: str
    schema: Schema
    is_needed: bool


def _rows_table(schema: Schema, words: Mapping[str, str] | None = None) -> str:
    rows = "".join(_row(row, words or {}) for row in rows_of(schema))
    return f'<div class="wide"><table class="fields">{rows}</table></div>'


def rows_of(schema: Schema, above: str = "", depth: int = 0) -> Iterator[Row]:
    """Every field of a schema, each before what stands in it."""
    needed = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield Row(depth, above, name, field, name in needed)
        seen: set[str] = set()
        for prefix, part in parts_of(field, f"{above}{name}"):
            for row in rows_of(part, prefix, depth + 1):
                if row.above + row.name not in seen:  # two kinds of item may share a field
                    seen.add(row.above + row.name)
                    yield row


def _row(row: Row, words: Mapping[str, str]) -> str:
    badge = ' <span class="needed">required</span>' if row.is_needed and not words else ""
    parent = re.sub(r".*\.(?=.*\.$)", "", row.above)  # of `a.b[].` the `b[].`
    above = f'<span class="above">{_breakable(parent)}</span>' if parent else ""
    said = row.schema.get("description") or words.get(row.name, "")
    default = row.schema.get("default")
    if default not in (None, "", {}, []) and not words:
        said += f" Absent: `{str(default).lower() if isinstance(default, bool) else default}`."
    return (
        f'<tr style="--depth:{row.depth}"><td><code>{above}{_breakable(row.name)}</code>{badge}</td>'
        f'<td class="kind">{escape(kind_of(row.schema))}</td><td>{_words(said)}</td></tr>'
    )


def _breakable(name: str) -> str:
    """A long name breaks behind its underscores."""
    return escape(name).replace("_", "_<wbr>")


def kind_of(field: Schema) -> str:
    """A field's type in words, with its bounds."""
    if "anyOf" in field:
        kinds = [kind_of(option) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds)) or "null"
    if "const" in field:
        return (
            str(field["const"]).lower() if isinstance(field["const"], bool) else str(field["const"])
        )
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        items = kind_of(field.get("items", {}))
        return (
            f"list of {items}s" if items in ("object", "string", "integer") else f"list of {items}"
        )
    if field.get("format") == "binary":
        return "file"
    bounds = [
        f"{word} {field[key]:.0f}"
        for key, word in (("minimum", "from"), ("maximum", "to"))
        if key in field
    ]
    if "maxLength" in field:
        least = f"{field['minLength']} to " if "minLength" in field else "at most "
        bounds = [f"of {least}{field['maxLength']} characters"]
    return " ".join([kind, *bounds])


def _faults(dialect: Dialect) -> str:
    """Every error as the dialect says it: those that look the same share a row."""
    rows: dict[tuple[int, str, str], tuple[list[str], Reply]] = {}
    for error, words in FAULTS:
        for delivery in _deliveries(dialect, error):
            reply = dialect.encode_error(error, "req-1", delivery)
            key = (reply.status, *_code_of(reply))
            said = "the same, of a GPT Image model" if delivery else words
            rows.setdefault(key, ([], reply))[0].append(said)
    ordered = sorted(rows.items(), key=lambda one: one[0][0])
    body = "".join(
        f"<tr><td>{status}</td><td><code>{escape(code)}</code>"
        + (f'<span class="type">{escape(kind)}</span>' if kind else "")
        + f"</td><td>{_words('; '.join(dict.fromkeys(said)))}</td><td>{_retry(reply)}</td></tr>"
        for (status, code, kind), (said, reply) in ordered
    )
    head = "<tr><th>HTTP</th><th>code</th><th>when</th><th>again?</th></tr>"
    return f'<div class="wide"><table class="faults">{head}{body}</table></div>'


def _deliveries(dialect: Dialect, error: DanqingError) -> Sequence[Delivery | None]:
    """GPT Image has a refusal of its own."""
    if dialect.name == "openai" and isinstance(error, ContentRefused) and error.role == "user":
        return (None, Delivery(echo=True))
    return (None,)


def _code_of(reply: Reply) -> tuple[str, str]:
    """The code of an error's body, and its type where it has one."""
    stated = reply.body.get("error", reply.body)
    code = stated.get("code", stated.get("codes"))
    return str(code).replace("None", "null"), str(stated.get("type", ""))


def _retry(reply: Reply) -> str:
    if "retry-after" in reply.headers:
        return "after <code>retry-after</code>"
    if reply.headers.get("x-should-retry") == "false":
        return "no"
    if reply.status == 408 or reply.status >= 500:
        return "yes, best with<br>an <code>Idempotency-Key</code>"
    return "no"


def _words(text: str) -> str:
    """Words with `code`, *stress* and [links](#within-the-page) as HTML."""
    html = _CODE.sub(lambda found: f"\0{found[1]}\1", escape(text))
    html = _LINK.sub(r'<a href="\2">\1</a>', _ITALIC.sub(r"<i>\1</i>", html))
    return html.replace("\0", "<code>").replace("\1", "</code>")


def _contents(chapters: Sequence[tuple[str, str, list[tuple[str, str]]]]) -> str:
    return "".join(
        f"<li>{_to(id, title)}" + (f"<ul>{_items(links)}</ul>" if links else "") + "</li>"
        for id, title, links in chapters
    )


def _items(links: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<li>{_to(id, name)}</li>" for id, name in links)


def _to(id: str, name: str) -> str:
    return f'<a href="#{id}">{escape(name)}</a>'


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Danqing: API reference</title>
<style>{style}</style></head>
<body><nav aria-label="Contents"><p class="name"><a href="/">丹青 Danqing</a></p><ol>{contents}</ol></nav>
<main>
{body}
</main></body></html>
"""
