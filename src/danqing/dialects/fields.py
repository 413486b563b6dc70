"""Decoding helpers shared by the dialects: body validation, and the parameters every one of them has."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from danqing.dialects.hints import meant_at
from danqing.domain.card import Card
from danqing.domain.errors import (
    InvalidField,
    InvalidImage,
    MissingField,
    PromptTooLong,
    RequestError,
    TooManyImages,
    UnknownField,
    UnsupportedField,
)
from danqing.domain.sizes import Size
from danqing.domain.task import SEED_MAX, ImageSource

Form = Literal["url", "b64_json"]
Style = Literal["vivid", "natural"]
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]
EndUser = Annotated[str, Field(max_length=512)]

# A letter, digit or sign that leaves ink: not blanks, controls, zero-width characters, nor the "letters"
# that are blank by design (Hangul fillers, the empty braille cell).
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U000e0000-\U000e0fff]"
)

_KEY_CHARS_MAX = 100

IMAGE_CHARS_MAX = 20_971_520
"""The longest data URL: openai-openapi's `maxLength` of `image_url`."""
URL_CHARS_MAX = 8192
_DATA_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,64}(?:;[a-z0-9=.+-]{1,64})*;base64,", re.I)
_DATA_HEAD_CHARS_MAX = 300
_URL = re.compile(r"https?://[^\s\x00-\x20\x7f]+", re.I)


class Wire(BaseModel):
    """A JSON object on the wire: exact types (true is no int, 1.0 neither), no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


W = TypeVar("W", bound=Wire)


def validate(
    model: type[W],
    body: object,
    path: str = "",
    *,
    nulls: bool = False,
    also: Sequence[str] = (),
) -> W:
    """Check a JSON object against a model; null counts as absent (SDKs send it for unset fields).

    `path` is the object's own place on the wire, e.g. "messages[0]"; `nulls` keeps them, where null
    has a meaning of its own; `also` are fields that its dialect or route takes beside the model's.
    Raises MissingField, UnknownField or InvalidField for the first fault, with the full path as `param`.
    """
    if not isinstance(body, Mapping):
        raise InvalidField(f"'{path}' must be an object.", path)
    given = cast("Mapping[str, object]", body)
    try:
        return model.model_validate(given if nulls else _without_nulls(given))
    except ValidationError as error:
        raise _request_error(error, path, model, also) from None


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return {key: _without_nulls(item) for key, item in items if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in cast("list[object]", value)]
    return value


def _request_error(
    error: ValidationError, above: str, model: type[BaseModel], also: Sequence[str]
) -> RequestError:
    faults = error.errors(include_url=False, include_input=False)
    fault = faults[0]
    path = _path(above, fault["loc"])
    if fault["type"] == "missing":
        return _typo(faults, above, model, also) or MissingField(path)
    if fault["type"] == "extra_forbidden":
        found = meant_at(fault["loc"], model, also)
        return UnknownField(path, None if found is None else _path(above, found))
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return InvalidField(f"'{path}' must be an object.", path)
    if fault["type"] == "literal_error":
        context: dict[str, Any] = fault.get("ctx", {})
        return InvalidField(
            f"Invalid value for '{path}'. Supported values are: {context['expected']}.", path
        )
    reason = fault["msg"][:1].lower() + fault["msg"][1:]
    return InvalidField(f"Invalid value for '{path}': {reason}.", path)


def _typo(
    faults: Sequence[ErrorDetails], path: str, model: type[BaseModel], also: Sequence[str]
) -> UnknownField | None:
    """The error that says what is wrong where a field is missing because its name is misspelt."""
    missing = {fault["loc"] for fault in faults if fault["type"] == "missing"}
    wanted = missing | {(name,) for name in also}
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            found = meant_at(fault["loc"], model, also)
            if found is not None and found in wanted:
                return UnknownField(_path(path, fault["loc"]), _path(path, found))
    return None


def _path(above: str, place: Sequence[int | str]) -> str:
    for part in place:
        if isinstance(part, int):
            above += f"[{part}]"
        else:
            above += f"{'.' if above else ''}{part[:_KEY_CHARS_MAX]}"
    return above


def read_prompt(
    text: str | None, param: str, card: Card, *, chars_max: int | None = None
) -> tuple[str, tuple[str, ...]]:
    """The prompt to use, and (param,) when it was cut to the limit.

    Raises MissingField; InvalidField when it is blank; PromptTooLong where the card refuses
    long prompts.
    """
    if text is None:
        raise MissingField(param)
    kept, truncated = clip(text, param, card, chars_max=chars_max)
    if not _VISIBLE.search(kept):
        raise InvalidField(f"'{param}' must not be empty.", param)
    return kept, truncated


def clip(
    text: str, param: str, card: Card, *, chars_max: int | None = None
) -> tuple[str, tuple[str, ...]]:
    """Hold a text to the prompt limit as the card says; `chars_max` is a limit that always cuts.

    Returns the text and (param,) when it was cut. Raises PromptTooLong.
    """
    limit = chars_max or card.prompt_chars_max
    if len(text) <= limit:
        return text, ()
    if chars_max is None and card.prompt_overlong == "refuse":
        raise PromptTooLong(param, len(text), limit)
    return text[:limit], (param,)


def read_n(n: int | None, n_default: int, n_max: int, param: str = "n") -> int:
    """How many images. Raises InvalidField below 1, TooManyImages above `n_max`."""
    if n is None:
        return n_default
    if n < 1:
        raise InvalidField(f"'{param}' must be between 1 and {n_max}.", param)
    if n > n_max:
        raise TooManyImages(param, n_max)
    return n


def read_quality(quality: str | None, card: Card) -> str:
    """A quality of the card. "auto" and "standard" mean its default where it lists no such thing.

    Raises InvalidField naming what is supported.
    """
    if quality is None:
        return card.quality_default
    if quality in card.qualities:
        return quality
    if quality in ("auto", "standard"):
        return card.quality_default
    supported = ", ".join(f"'{name}'" for name in card.qualities)
    raise InvalidField(
        f"Invalid value for 'quality': '{quality[:50]}'. Supported values are: {supported}.",
        "quality",
    )


def read_size(size: str | None, card: Card, param: str = "size") -> Size:
    """The size in pixels. Raises InvalidField."""
    return card.sizes.default if size is None else card.sizes.resolve(size, param)


def read_style(style: Style | None, card: Card) -> Style | None:
    """Raises UnsupportedField where the card has no "style"."""
    if style is not None and "style" not in card.features:
        raise UnsupportedField(f"'style' is not supported by the model '{card.name}'.", "style")
    return style


def refuse_stream(stream: bool | None) -> None:
    """Raises UnsupportedField for a stream."""
    if stream:
        raise UnsupportedField("'stream' is not supported here: leave it out or false.", "stream")


def read_source(text: str, param: str, *, chars_max: int = IMAGE_CHARS_MAX) -> ImageSource:
    """A picture that stands as text on the wire: an http(s) URL, or a data URL in base64.

    Nothing is fetched, and the bytes are not looked at. `param` is its path on the wire. Raises
    InvalidImage.
    """
    if not text:
        raise InvalidImage(f"'{param}' must not be empty.", param, "empty")
    if text[:5].lower() != "data:":
        if len(text) > URL_CHARS_MAX or _URL.fullmatch(text) is None:
            raise InvalidImage(
                f"'{param}' must be an http or https URL of at most {URL_CHARS_MAX} characters, or a "
                "data URL (data:image/...;base64,...).",
                param,
                "address",
            )
        return ImageSource(param, url=text)
    if len(text) > chars_max:
        raise InvalidImage(
            f"'{param}' is too long: {len(text)} characters, at most {chars_max} are allowed.",
            param,
        )
    head = _DATA_HEAD.match(text[:_DATA_HEAD_CHARS_MAX])
    if head is None:
        raise InvalidImage(f"'{param}' must begin like 'data:image/png;base64,'.", param, "format")
    try:
        data = base64.b64decode(text[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidImage(f"'{param}' is not valid base64.", param, "format") from None
    if not data:
        raise InvalidImage(f"'{param}' is empty.", param, "empty")
    return ImageSource(param, data=data)


def read_references(
    sources: Sequence[ImageSource], param: str, card: Card, *, references_max: int | None = None
) -> tuple[ImageSource, ...]:
    """The pictures of an edit, as many as the model takes. `references_max` is the wire's own limit.

    Raises UnsupportedField where the model only draws, InvalidField for too many; both name `param`.
    """
    if sources and not card.references_max:
        raise UnsupportedField(
            f"'{param}' is not supported: the model '{card.name}' edits no images.", param
        )
    most = min(card.references_max, references_max or card.references_max)
    if len(sources) > most:
        raise InvalidField(
            f"'{param}' holds {len(sources)} images: the model '{card.name}' takes at most {most}.",
            param,
        )
    return tuple(sources)
