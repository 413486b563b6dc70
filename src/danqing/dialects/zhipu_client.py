"""Zhipu (bigmodel.cn, Z.AI) seen from its client, synchronous and with tasks. Pure; knows no HTTP library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from danqing.dialects.answers import (
    NO_MONEY,
    body_of,
    check_extras,
    failed,
    in_places,
    list_of,
    mapping_of,
    openais_own,
    read_image,
    read_object,
    refuse_unsaid,
    retry_after_s,
    shut_out,
    text_of,
    turned_away,
    words,
)
from danqing.dialects.client import (
    ClientDialect,
    Incoming,
    Outgoing,
    Pending,
    ProviderResult,
    Target,
)
from danqing.domain.errors import (
    Busy,
    ContentRefused,
    DanqingError,
    DuplicateRequestId,
    InvalidField,
    ProviderFailed,
    TooManyImages,
    UnsupportedField,
)
from danqing.domain.task import Delivery, ImageTask, SafetyLevel

EXTRAS = frozenset(
    {"watermark_enabled", "response_format", "style", "seed", "negative_prompt", "user"}
)
"""`watermark_enabled`: the key's account has signed the provider's disclaimer, so it may say false. The rest is
not on the provider's page: some its SDK knows, some is ours. Our own server knows them all."""

USER_ID_CHARS = range(6, 129)
REQUEST_ID_CHARS = range(1, 65)
POLL_S = 2.0

# The provider's page of error codes.
_SHUT_OUT = frozenset(
    {
        *("1000", "1001", "1002", "1003", "1004"),
        "1100",
        "1110",
        "1111",
        "1112",
        "1120",
        "1121",
        "1220",
    }
)
_NO_MONEY = frozenset({"1113", "1304", "1308", "1309"})
_BUSY = frozenset({"1302", "1303", "1305"})
_REFUSED = frozenset({"1300", "1301"})
_INVALID = frozenset({"1210", "1212", "1213", "1214", "1215"})

_FIELDS = (
    *("prompt", "size", "quality", "style", "seed", "negative_prompt", "response_format"),
    *("watermark_enabled", "user_id", "user", "request_id"),
)
# Our own server quotes the field; the provider's words name it bare.
_QUOTED = re.compile(rf"'({'|'.join(_FIELDS)}|n)'")
_NAMED = re.compile(rf"(?<![\w'])({'|'.join(_FIELDS)})(?![\w'])")
_DUPLICATE = re.compile(r"already have a request: *(\S+)")


@dataclass(frozen=True)
class ZhipuClient(ClientDialect):
    """The client side. `extras` are the fields beyond the provider's page that the other side knows."""

    name = "zhipu"

    extras: frozenset[str] = EXTRAS

    def __post_init__(self) -> None:
        check_extras(self.extras, EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        request_id = task.client_request_id
        said = {
            "prompt": not task.prompt,
            "quality": task.quality not in ("", "standard", "hd"),
            "n": task.n != 1,
            "negative_prompt": bool(task.negative_prompt) and "negative_prompt" not in self.extras,
            "style": task.style is not None and "style" not in self.extras,
            "seed": task.seed is not None and "seed" not in self.extras,
            "prompt_extend": task.prompt_extend,
            "ai_label": not task.ai_label and "watermark_enabled" not in self.extras,
            "end_user": task.end_user is not None and self._user_field(task.end_user) is None,
            "client_request_id": request_id is not None and len(request_id) not in REQUEST_ID_CHARS,
            "history": bool(task.history),
            "references": bool(task.references),
            "strength": task.strength is not None,
            "form": delivery.form != "url" and "response_format" not in self.extras,
            "format": delivery.format != "png",
            "brand_mark": task.brand_mark,
        }
        unsaid = frozenset(name for name, cannot in said.items() if cannot)
        return unsaid | openais_own(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        fields: dict[str, Any] = {
            "model": target.model,
            "prompt": task.prompt,
            "size": str(task.size),
        }
        optional = {
            "watermark_enabled": None if task.ai_label else False,
            "quality": task.quality or None,
            "style": task.style,
            "negative_prompt": task.negative_prompt or None,
            "seed": task.seed,
            "request_id": task.client_request_id,
            "response_format": None if delivery.form == "url" else delivery.form,
        }
        fields |= {name: value for name, value in optional.items() if value is not None}
        if task.end_user is not None:
            fields[str(self._user_field(task.end_user))] = task.end_user
        path = "/async/images/generations" if target.background else "/images/generations"
        return Outgoing("POST", path, json=fields)

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult | Pending:
        """Of a task that is not done: Pending; its `upstream_id` is empty where the answer does not say it."""
        body = body_of(answer, self.decode_error(answer))
        upstream_id = text_of(body.get("id"))
        if body.get("task_status") == "PROCESSING":
            poll = Outgoing("GET", f"/async-result/{quote(upstream_id, safe='')}")
            return Pending(upstream_id, poll, after_s=POLL_S)
        items = [
            mapping_of(item)
            for item in list_of(body.get("image_result")) or list_of(body.get("data"))
        ]
        if not items:
            raise ProviderFailed("The provider's answer holds no image.")
        images = [read_image(item.get("url"), item.get("b64_json")) for item in items]
        revised = [text for item in items if (text := text_of(item.get("revised_prompt")))]
        return ProviderResult(
            images=in_places(images, task.n),
            revised_prompt=revised[0] if revised else None,
            safety=_safety(body.get("content_filter")),
            upstream_id=upstream_id or answer.headers.get("x-request-id") or None,
            usage=dict(mapping_of(body.get("usage"))),
        )

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        body = read_object(answer) or {}
        stated = mapping_of(body.get("error"))
        if answer.status < 400:
            if list_of(body.get("data")) or list_of(body.get("image_result")):
                return None
            if not stated and body.get("task_status") != "FAIL":
                return None
        return _error(stated, body, answer)

    def _user_field(self, user: str) -> str | None:
        """The field that can say this end user."""
        if len(user) in USER_ID_CHARS:
            return "user_id"
        return "user" if user and "user" in self.extras else None


def _error(
    error: Mapping[str, object], body: Mapping[str, object], answer: Incoming
) -> DanqingError:
    """The error of a Zhipu error object; `error` is empty for what is none."""
    code, status, text = text_of(error.get("code")), answer.status, words(error.get("message"))
    if code in _REFUSED or body.get("contentFilter"):
        found = _safety(body.get("contentFilter"))
        worst = min(found, key=lambda one: one.level, default=SafetyLevel("user", 1))
        return ContentRefused(worst.role, worst.level)
    if code in _NO_MONEY:
        return ProviderFailed(NO_MONEY)
    if code in _BUSY:
        return Busy(retry_after_s(answer.headers))
    if code in _SHUT_OUT or status in (401, 403, 434):
        return shut_out(text, "watermark_enabled")
    if (away := turned_away(answer)) is not None:
        return away
    if code == "1231" and (named := _DUPLICATE.search(text)):
        return DuplicateRequestId(named[1])
    if code in _INVALID and status in (200, 400) and (mended := _mendable(code, text)) is not None:
        return mended
    return failed(answer, f"code {code}" if code.isdigit() else "")


def _mendable(code: str, text: str) -> DanqingError | None:
    """An error that the caller can mend by another value, or by leaving a field out."""
    found = _QUOTED.search(text) or _NAMED.search(text)
    if found is None:
        return None
    field = found[1]
    if field == "n" and "n=1" in text:
        return TooManyImages("n", 1)
    kind = UnsupportedField if code in ("1210", "1212") else InvalidField
    return kind(text, field)


def _safety(value: object) -> tuple[SafetyLevel, ...]:
    """What moderation found. Items may lack their role; then it is the answer's side."""
    found: list[SafetyLevel] = []
    for item in map(mapping_of, list_of(value)):
        level, role = item.get("level"), item.get("role")
        if isinstance(level, int) and not isinstance(level, bool) and 0 <= level <= 3:
            known = role if role in ("user", "assistant", "history") else "assistant"
            found.append(SafetyLevel(known, level))
    return tuple(found)
