"""What the client sides share: reading JSON, pictures and Retry-After in answers; refusing what a wire cannot say. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from email.utils import parsedate_to_datetime
from typing import cast

from danqing.dialects.base import UNSTORABLE
from danqing.dialects.client import Incoming, ProviderImage
from danqing.domain.errors import (
    Busy,
    DanqingError,
    ProviderFailed,
    Unavailable,
    UnsupportedField,
    WaiverRequired,
)
from danqing.domain.task import Delivery, ImageTask, InputImage

RETRY_S_DEFAULT = 5.0
"""When to come back where a provider says that it is busy, and not for how long."""
RETRY_S_MAX = 3600.0
TEXT_CHARS_MAX = 500
"""Of a provider's own words at most,"""
FIELD_CHARS_MAX = 100
"""and of a field's path."""
COMMAS_MAX = 200_000
"""Of an answer: every value but its list's first follows one, and may take twenty times the memory it has as text."""

_DATA_URL = re.compile(r"data:[^,]{0,300};base64,", re.I)
# What looks like a key in a provider's words: it may quote ours.
_KEY = re.compile(r"(?i)\b(?:sk-|bearer\s+)[^\s'\",]{4,}|[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{8,}")
_STRANGE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
# How what no database takes comes in by JSON; an emoji's two halves look like it, too.
_MAYBE_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


SHUT_OUT = "The provider does not let this server in."
NO_MONEY = "This server's quota at the provider is used up."


def shut_out(text: str, switch: str, *, param: str = "") -> ProviderFailed | WaiverRequired:
    """What a provider's "no permission" is about: the `switch` of its AI label where it names that, else our key."""
    named = param == switch or re.search(rf"(?<![\w.]){switch}(?![\w.])", text)
    return WaiverRequired(switch) if named else ProviderFailed(SHUT_OUT)


def check_extras(extras: Set[str], known: Set[str]) -> None:
    """Raises ValueError for an extra that is no field of the dialect."""
    if unknown := extras - known:
        raise ValueError(f"not a field of this dialect: {', '.join(sorted(unknown))}")


def body_of(answer: Incoming, error: DanqingError | None) -> Mapping[str, object]:
    """The JSON object of an answer that is none of errors. Raises the error, ProviderFailed for what is no JSON."""
    if error is not None:
        raise error
    body = read_object(answer)
    if body is None:
        raise ProviderFailed("The provider's answer is not JSON.")
    return body


def turned_away(
    answer: Incoming, *, is_busy: bool = False, is_overloaded: bool = False
) -> Busy | Unavailable | None:
    """A provider that has too much to do, by the status or by a code that the caller knows."""
    if is_busy or answer.status == 429:
        return Busy(retry_after_s(answer.headers))
    if is_overloaded or answer.status == 503:
        return Unavailable("The provider of this model is overloaded. Please retry later.")
    return None


def failed(answer: Incoming, told: str = "") -> ProviderFailed:
    """What none of the rest explains; `told` is the provider's own code, where it looks like one."""
    told = f"{told}, " if told else ""
    return ProviderFailed(f"The provider of this model failed ({told}HTTP {answer.status}).")


def refuse_unsaid(fields: Set[str]) -> None:
    """Raise UnsupportedField for the first of the fields that a wire cannot say, if there is one."""
    if fields:
        field = min(fields)
        raise UnsupportedField(f"'{field}' is not supported by this model's provider.", field)


def openais_own(task: ImageTask, delivery: Delivery) -> frozenset[str]:
    """Which of the fields are set that no wire but OpenAI's has a place for."""
    said = {
        "mask": task.mask is not None,
        "compression": delivery.compression is not None,
        "stream": delivery.stream,
        "partial_images": bool(delivery.partial_images),
        "transparent": task.transparent,
        "input_fidelity": task.input_fidelity is not None,
        "moderation": task.moderation is not None,
    }
    return frozenset(name for name, is_set in said.items() if is_set)


def data_url(image: InputImage) -> str:
    return f"data:image/{image.format};base64,{base64.b64encode(image.data).decode('ascii')}"


def read_object(answer: Incoming) -> Mapping[str, object] | None:
    """The JSON object of an answer; None where it is anything else (HTML, a list, cut off).

    What no database takes is replaced: NULs and lone surrogates by U+FFFD, numbers that are none by null.
    No text in it quotes our key, however the JSON writes that. Read once: nobody changes it.
    """
    if not answer.read:
        answer.read.append(_read_object(answer))
    return answer.read[0]


def _read_object(answer: Incoming) -> Mapping[str, object] | None:
    try:
        text = answer.body.decode("utf-8-sig")
        if text.count(",") > COMMAS_MAX:
            return None
        value: object = json.loads(text, parse_float=_finite, parse_constant=lambda _: None)
        if _MAYBE_UNSTORABLE.search(text):
            value = _rewritten(value, _storable)
        if answer.secret is not None and ("\\" in text or answer.secret in text):
            value = _rewritten(value, answer.plain)
    except (ValueError, RecursionError):
        return None
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _storable(text: str) -> str:
    return UNSTORABLE.sub("\ufffd", text)


def _rewritten(value: object, write: Callable[[str], str]) -> object:
    """A JSON value with all its texts, names too, as `write` has them."""
    if isinstance(value, str):
        return write(value)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {write(key): _rewritten(item, write) for key, item in items}
    if isinstance(value, list):
        return [_rewritten(item, write) for item in cast("list[object]", value)]
    return value


def words(value: object) -> str:
    """A provider's own text, safe to pass on: clipped, on one line, and without what looks like a key."""
    if not isinstance(value, str):
        return ""
    plain = _STRANGE.sub(" ", value[: 2 * TEXT_CHARS_MAX]).strip()
    return _KEY.sub("[key]", plain)[:TEXT_CHARS_MAX]


def field_of(value: object) -> str:
    """The path of a field that a provider names, clipped; "" for anything else."""
    return _STRANGE.sub(" ", value[:FIELD_CHARS_MAX]) if isinstance(value, str) else ""


def text_of(value: object) -> str:
    """A code or type as text: providers write numbers with and without quotes. "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value)


def mapping_of(value: object) -> Mapping[str, object]:
    """A JSON object, or an empty one for anything else."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def list_of(value: object) -> Sequence[object]:
    """A JSON list, or an empty one for anything else."""
    return cast("list[object]", value) if isinstance(value, list) else ()


def read_image(url: object, b64: object) -> ProviderImage | DanqingError:
    """One picture of an answer: base64 (also as a data URL) before a link. ProviderFailed for neither."""
    text = b64 if isinstance(b64, str) and b64 else url
    if not isinstance(text, str) or not text:
        return ProviderFailed("The provider's answer holds no image where one should be.")
    head = _DATA_URL.match(text[:310])
    if head is None and text is url:
        return ProviderImage(url=text)
    try:
        raw = "".join(text[head.end() if head else 0 :].split()).encode("ascii")
        data = base64.b64decode(raw, validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return ProviderFailed("The provider's answer holds an image that is no valid base64.")
    return ProviderImage(data=data) if data else ProviderFailed("The provider's image is empty.")


def in_places(
    images: Sequence[ProviderImage | DanqingError], n: int
) -> tuple[ProviderImage | DanqingError, ...]:
    """As many as were asked for: what is missing is ProviderFailed in its place, what is over is left."""
    missing = ProviderFailed(f"The provider answered {len(images)} of {n} images.")
    return (*images[:n], *[missing] * (n - len(images)))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds by `retry-after-ms` or `retry-after` (RFC 9110: seconds or a date); a default of ours without."""
    try:
        return _bounded(float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    given = headers.get("retry-after", "")
    try:
        return _bounded(float(given))
    except ValueError:
        pass
    try:  # a date is read against the provider's own clock
        wait = parsedate_to_datetime(given) - parsedate_to_datetime(headers.get("date", ""))
        return _bounded(wait.total_seconds())
    except (ValueError, TypeError):
        return RETRY_S_DEFAULT


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), RETRY_S_MAX) if math.isfinite(seconds) else RETRY_S_DEFAULT
