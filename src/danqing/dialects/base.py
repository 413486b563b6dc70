"""What a dialect is, and how bytes become a JSON object. Knows the domain; no provider, no HTTP library."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, cast

from pydantic import BaseModel

from danqing.domain.card import Card
from danqing.domain.errors import DanqingError, InvalidBody, InvalidField
from danqing.domain.task import (
    Delivery,
    ImageResult,
    ImageTask,
    StreamEvent,
    StreamHead,
    TaskReport,
)

DEPTH_MAX = 32
DRAW_MODELS = frozenset({"draw", "bc-img"})
"""The two names in the draw API's own document, in lower case."""

STRUCTURE_MAX = 200_000
"""Brackets and commas of a body: `{}` takes three bytes to send and seventy to keep, a hundred megabytes could be pictures."""

# Strings and everything else that is no bracket or comma. The possessive loops and the `\Z` ending (an
# unterminated string runs to the end) make every character be looked at once: linear time.
_NOT_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[^]["{},]+', re.DOTALL)
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What no database or header takes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as plain data: HTTP status, JSON body, extra headers (names in lower case)."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event: its `event:` line, if it has one, and its data (text goes as it is)."""

    data: dict[str, Any] | str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a multipart form: stands in a body mapping where JSON would have a value."""

    data: bytes = field(repr=False)
    filename: str = ""
    content_type: str = ""


class Dialect(Protocol):
    """One provider's wire format, seen from the server. Pure: every method only computes."""

    name: str
    body: type[BaseModel]
    """The request's fields, for the API reference; `decode_request` checks more than their types."""
    form: type[BaseModel] | None = None
    """The texts of its multipart form, where it takes one, and"""
    files: tuple[str, ...] = ()
    """the names of that form's files; those in [] may come several times."""

    def requested_model(self, body: Mapping[str, object]) -> str | None:
        """The model's name as the client wrote it; None when absent, null or empty.

        Raises InvalidField when it is not a string.
        """
        model = body.get("model")
        if model is None or isinstance(model, str):
            return model or None
        raise InvalidField("'model' must be a string.", "model")

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        """What to draw and how to answer. `card` is the card of the requested (or default) model.

        Raises RequestError whose `param` is the field's path on the wire.
        """
        ...

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        """The answer for a task that delivered. `reply_id` is the answer's id where it has one."""
        ...

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        """The answer for any error of the tree; `request_id` comes back as `x-request-id`.

        `delivery` is the request's, where it came that far: what a model of its API would say.
        """
        ...

    def encode_event(
        self, event: StreamEvent, head: StreamHead, delivery: Delivery
    ) -> list[ServerEvent]:
        """What a stream says of one event: nothing, one or several server-sent events.

        Called only where `decode_request` let `delivery.stream` through.
        """
        raise TypeError(f"{self.name} does not stream")  # our own bug: decode_request refuses it

    def encode_accepted(self, report: TaskReport, request_id: str) -> Reply:
        """The answer of the provider's own asynchronous route: the task was taken.

        Called only for dialects that have such a route.
        """
        raise TypeError(f"{self.name} has no asynchronous route")

    def encode_task(self, report: TaskReport, request_id: str) -> Reply:
        """The answer to the question that follows: how the task stands, or what came of it."""
        raise TypeError(f"{self.name} has no asynchronous route")


def choose_v1_images(body: Mapping[str, object] | None) -> str:
    """Name of the dialect of a body on /v1/images/generations; None = the body is unreadable."""
    if body is None:
        return "openai"
    # `parameters` without a prompt: DashScope's body that forgot its `input`.
    forgot = isinstance(body.get("parameters"), Mapping) and body.get("prompt") is None
    return "dashscope" if body.get("input") is not None or forgot else "openai"


def choose_v1_chat(body: Mapping[str, object] | None) -> str:
    """Name of the dialect of a body on /v1/chat/completions; None = the body is unreadable."""
    if body is None:
        return "openai"
    if body.get("messages") is not None:
        return "chat"
    # A draw client that forgot its prompt still reads HTTP 200 only.
    model = body.get("model")
    named = isinstance(model, str) and model.lower() in DRAW_MODELS
    return "draw" if "prompt" in body or named else "chat"


def parse_json(raw: bytes) -> dict[str, object]:
    """Read a request body: one JSON object in UTF-8 (a BOM is tolerated), at most 32 levels deep,
    with at most STRUCTURE_MAX brackets and commas.

    Refused beyond the grammar: repeated keys, NaN and infinities, NUL and lone surrogates in
    strings (no database or header takes them). Raises InvalidBody, and nothing else.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidBody("The request body is not valid UTF-8.") from None
    structure = _NOT_STRUCTURE.sub("", text)
    if len(structure) > STRUCTURE_MAX:
        raise InvalidBody("The request body holds too many values.")
    if _depth(structure) > DEPTH_MAX:
        raise InvalidBody(f"The request body is nested deeper than {DEPTH_MAX} levels.")
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
        )
    except ValueError as error:  # JSONDecodeError, and int's limit on digits
        raise InvalidBody(_what_is_wrong(text, error)) from None
    if not isinstance(value, dict):
        raise InvalidBody("The request body must be a JSON object.")
    # They come in by escapes alone: raw ones are no JSON, or no UTF-8.
    escaped = "\\u" in text
    if escaped and any(UNSTORABLE.search(one) for one in _strings(cast("object", value))):
        raise InvalidBody("The request body holds a NUL or a lone surrogate in a string.")
    return cast("dict[str, object]", value)


def _what_is_wrong(text: str, error: ValueError) -> str:
    if not text.strip():
        return "The request body is empty."
    if not isinstance(error, json.JSONDecodeError):
        return "The request body is not valid JSON."
    reason = (error.msg[:1].lower() + error.msg[1:]).replace("enclosed in", "in")
    return (
        f"The request body is not valid JSON: {reason} (line {error.lineno}, column {error.colno})."
    )


def _depth(structure: str) -> int:
    """Deepest nesting, counted before parsing (the parser recurses); stops above DEPTH_MAX."""
    depth = deepest = 0
    for bracket in structure.replace(",", ""):
        depth += 1 if bracket in "[{" else -1
        if depth > deepest:
            deepest = depth
            if deepest > DEPTH_MAX:
                break
    return deepest


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidBody("The request body holds the same key twice in one object.")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # "1e999" is valid JSON
        raise InvalidBody("The request body holds a number out of range.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidBody(f"The request body holds {name}, which is not JSON.")


def _strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _strings(item)
