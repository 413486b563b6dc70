"""Zhipu CogView and GLM-Image: /paas/v4/images/generations, also asynchronous. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from danqing.dialects.base import Dialect, Reply
from danqing.dialects.fields import (
    EndUser,
    Form,
    Seed,
    Style,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_quality,
    read_size,
    read_style,
    refuse_stream,
    validate,
)
from danqing.dialects.openai_shapes import encode_images, error_headers
from danqing.domain import errors
from danqing.domain.card import Card
from danqing.domain.task import Delivery, ImageResult, ImageTask, TaskReport

REFUSED = (
    "系统检测到输入或生成内容可能包含不安全或敏感内容，"
    "请您避免输入易产生敏感内容的提示语，感谢您的配合。"
)
"""The provider's own words for code 1301."""


class SensitiveWordCheck(Wire):
    """Moderation is always on here, so only "ENABLE" can be honoured."""

    type: Literal["ALL"] | None = None
    status: Literal["ENABLE", "DISABLE"] | None = None


class ZhipuBody(Wire):
    """The documented fields, those that only zai-sdk knows, and our extensions."""

    model: str | None = None
    prompt: str
    quality: str | None = None
    size: str | None = None
    watermark_enabled: bool = True
    user_id: Annotated[str, Field(min_length=6, max_length=128)] | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    n: int | None = None
    response_format: Form = "url"
    style: Style | None = None
    sensitive_word_check: SensitiveWordCheck | None = None
    user: EndUser | None = None
    stream: bool | None = None
    seed: Seed | None = None
    negative_prompt: str = ""


class ErrorShape(NamedTuple):
    status: int
    code: str


# Zhipu's error-code page. Statuses are documented by category only: 434 is "no permission for the
# API", 429 covers account anomalies. A class not listed is shaped as its nearest listed parent.
SHAPES: dict[type[Exception], ErrorShape] = {
    errors.RequestError: ErrorShape(400, "1210"),
    errors.BodyTooLarge: ErrorShape(413, "1210"),
    errors.BodyTooSlow: ErrorShape(408, "1210"),
    errors.MissingField: ErrorShape(400, "1213"),
    errors.InvalidField: ErrorShape(400, "1214"),
    errors.ExclusiveFields: ErrorShape(400, "1215"),
    errors.ModelNotFound: ErrorShape(400, "1211"),
    errors.NotFound: ErrorShape(404, "1222"),
    errors.MethodNotAllowed: ErrorShape(405, "1222"),
    errors.DuplicateRequestId: ErrorShape(400, "1231"),
    errors.AuthError: ErrorShape(401, "1000"),
    errors.MissingToken: ErrorShape(401, "1001"),
    errors.InvalidToken: ErrorShape(401, "1002"),
    errors.ExpiredToken: ErrorShape(401, "1003"),
    errors.PermissionDenied: ErrorShape(434, "1220"),
    errors.AccountSuspended: ErrorShape(429, "1112"),
    errors.EndUserBlocked: ErrorShape(434, "1300"),
    errors.QuotaExceeded: ErrorShape(429, "1113"),
    errors.ContentRefused: ErrorShape(400, "1301"),
    errors.Busy: ErrorShape(429, "1305"),
    errors.RateLimited: ErrorShape(429, "1303"),
    errors.ConcurrencyExceeded: ErrorShape(429, "1302"),
    errors.Cancelled: ErrorShape(499, "1230"),
    errors.DanqingError: ErrorShape(500, "500"),
    errors.Unavailable: ErrorShape(503, "500"),
}


class ZhipuDialect(Dialect):
    """One image per call, under an AI label unless a waiver drops it."""

    name = "zhipu"
    body = ZhipuBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(ZhipuBody, body)
        prompt, cut = read_prompt(wire.prompt, "prompt", card)
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        check = wire.sensitive_word_check
        if check is not None and check.status == "DISABLE":
            param = "sensitive_word_check.status"
            raise errors.UnsupportedField(f"'{param}' may not be 'DISABLE' here.", param)
        refuse_stream(wire.stream)
        if wire.user and wire.user_id and wire.user != wire.user_id:
            raise errors.ExclusiveFields("user_id", "user")
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=read_size(wire.size, card),
            quality=read_quality(wire.quality, card),
            n=read_n(wire.n, 1, 1),
            negative_prompt=negative,
            style=read_style(wire.style, card),
            seed=wire.seed,
            ai_label=wire.watermark_enabled,
            end_user=wire.user_id or wire.user or None,
            client_request_id=wire.request_id,
        )
        delivery = Delivery(
            form=wire.response_format, format=card.format, truncated=cut + negative_cut
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        reply = encode_images(result, delivery)
        levels = [{"role": found.role, "level": found.level} for found in result.safety]
        return Reply(200, {**reply.body, "content_filter": levels})

    def encode_error(
        self, error: errors.DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        shape = _shape(error)
        return Reply(shape.status, _error_body(error), error_headers(error, request_id))

    def encode_accepted(self, report: TaskReport, request_id: str) -> Reply:
        return Reply(200, {"id": report.task_id, **_standing(report), "task_status": "PROCESSING"})

    def encode_task(self, report: TaskReport, request_id: str) -> Reply:
        body = _standing(report)
        if report.result is not None:
            answer = self.encode_result(report.result, report.delivery, report.task_id).body
            body |= {
                "task_status": "SUCCESS",
                "image_result": answer["data"],
                "content_filter": answer["content_filter"],
            }
        elif report.state in ("failed", "cancelled"):
            # The provider's page has no field for the reason; an answer without one helps nobody.
            body |= {"task_status": "FAIL", **_error_body(report.error or errors.Cancelled())}
        else:
            body["task_status"] = "PROCESSING"
        return Reply(200, body)


def _standing(report: TaskReport) -> dict[str, Any]:
    """What every answer about a task begins with; a client that gave no `request_id` gets one."""
    return {"model": report.model, "request_id": report.client_request_id or report.task_id}


def _shape(error: errors.DanqingError) -> ErrorShape:
    if isinstance(error, errors.NotFound) and error.param is not None:
        return ErrorShape(404, "1214")  # a task or file: the URL itself is right
    if isinstance(error, errors.UnsupportedField) and error.param == "stream":
        return ErrorShape(400, "1212")  # no model here can be called so
    return next(SHAPES[cls] for cls in type(error).__mro__ if cls in SHAPES)


def _error_body(error: errors.DanqingError) -> dict[str, Any]:
    body: dict[str, Any] = {"error": {"code": _shape(error).code, "message": _message(error)}}
    if isinstance(error, errors.ContentRefused):
        body["contentFilter"] = [{"role": error.role, "level": error.level}]
    return body


def _message(error: errors.DanqingError) -> str:
    """The body has no `param`, so the message itself must name the field."""
    if isinstance(error, errors.ContentRefused):
        return REFUSED
    if isinstance(error, errors.DuplicateRequestId):
        return error.message  # the provider's own words, field or not
    param: str | None = getattr(error, "param", None)
    if param and f"'{param}'" not in error.message:
        return f"'{param}': {error.message}"
    return error.message
