"""Bodies that come as multipart forms: parts by name, and text turned into what JSON would have had. Pure; parses no bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Union, cast, get_args, get_origin

from pydantic import BaseModel

from danqing.dialects.base import UNSTORABLE, Upload
from danqing.domain.errors import InvalidBody

_WHOLE = re.compile(r"-?[0-9]{1,12}")
_NUMBER = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?")
_NAME_CHARS_MAX = 100


class FormBody(dict[str, object]):
    """A multipart form as a body mapping: text, an Upload, or a list of Uploads where a name came again."""


def form_body(parts: Iterable[tuple[str, str | Upload]]) -> FormBody:
    """The body of a form's parts, in order. Files may share a name; texts may not.

    Raises InvalidBody for a text that came twice, or that no database keeps.
    """
    body = FormBody()
    for name, value in parts:
        shown = name[:_NAME_CHARS_MAX]
        if isinstance(value, str) and (UNSTORABLE.search(value) or UNSTORABLE.search(name)):
            raise InvalidBody("The form holds a NUL in a text.")
        if name not in body:
            body[name] = value
            continue
        files = uploads_of(body[name])
        if not files or isinstance(value, str):
            raise InvalidBody(f"The form holds '{shown}' more than once.")
        body[name] = [*files, value]
    return body


def uploads_of(value: object) -> list[Upload]:
    """The files of a form's value: none where it is text."""
    if isinstance(value, Upload):
        return [value]
    return cast("list[Upload]", value) if isinstance(value, list) else []


def typed(body: Mapping[str, object], model: type[BaseModel]) -> Mapping[str, object]:
    """A form's texts as the model's JSON types: "2" where it wants a number, "true" where a boolean.

    A JSON body stays as it is, and so does text that is nothing of the kind: the model says what is wrong.
    """
    if not isinstance(body, FormBody):
        return body
    return {name: _typed(value, model, name) for name, value in body.items()}


def _typed(value: object, model: type[BaseModel], name: str) -> object:
    field = model.model_fields.get(name)
    if not isinstance(value, str) or field is None:
        return value
    kinds = _kinds(field.annotation)
    if bool in kinds and value in ("true", "false"):
        return value == "true"
    if int in kinds and _WHOLE.fullmatch(value):
        return int(value)
    if float in kinds and _NUMBER.fullmatch(value):
        return float(value)
    return value


def _kinds(annotation: object) -> list[object]:
    """The plain types of an annotation such as `Annotated[int, ...] | None`."""
    origin = get_origin(annotation)
    if origin is None:
        return [annotation]
    arguments = get_args(annotation)
    if origin is not Union and origin is not UnionType:
        arguments = arguments[:1]  # of Annotated
    return [kind for one in arguments for kind in _kinds(one)]
