"""Answers in OpenAI's shapes, shared by every dialect that answers so: images, usage, errors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from danqing.dialects.base import Reply, ServerEvent
from danqing.domain import errors
from danqing.domain.card import ImageFormat
from danqing.domain.task import (
    Broken,
    DeliveredImage,
    Delivery,
    FinishedImage,
    ImageResult,
    PartialImage,
    StreamEvent,
    StreamHead,
)

REFUSED = "Your request was rejected as a result of our safety system. "
"""Clients match this text, its last space included; dall-e's and draw's own."""
BLOCKED = "Your request was rejected by the safety system."
"""GPT Image's own."""

_INVALID = "invalid_request_error"
_USER_ERROR = "image_generation_user_error"
_USER_CODES = frozenset({"invalid_value", "invalid_image_file"})
"""What GPT Image 2 and its successors say in a type of their own."""


class ErrorShape(NamedTuple):
    status: int
    type: str
    code: str


# openai-openapi's ErrorResponse and OpenAI's error guide.
# A class not listed is shaped as its nearest listed parent.
SHAPES: dict[type[Exception], ErrorShape] = {
    errors.RequestError: ErrorShape(400, _INVALID, "invalid_request"),
    errors.InvalidBody: ErrorShape(400, _INVALID, "invalid_body"),
    errors.BodyTooLarge: ErrorShape(413, _INVALID, "request_too_large"),
    errors.BodyTooSlow: ErrorShape(408, _INVALID, "request_timeout"),
    errors.MissingField: ErrorShape(400, _INVALID, "missing_required_parameter"),
    errors.InvalidField: ErrorShape(400, _INVALID, "invalid_value"),
    errors.PromptTooLong: ErrorShape(400, _INVALID, "string_above_max_length"),
    errors.InvalidImage: ErrorShape(400, _INVALID, "invalid_image_file"),
    errors.UnknownField: ErrorShape(400, _INVALID, "unknown_parameter"),
    errors.UnsupportedField: ErrorShape(400, _INVALID, "unsupported_parameter"),
    errors.ModelNotFound: ErrorShape(404, _INVALID, "model_not_found"),
    errors.NotFound: ErrorShape(404, _INVALID, "not_found"),
    errors.MethodNotAllowed: ErrorShape(405, _INVALID, "method_not_allowed"),
    errors.IdempotencyConflict: ErrorShape(409, _INVALID, "idempotency_conflict"),
    errors.DuplicateRequestId: ErrorShape(409, _INVALID, "duplicate_request_id"),
    errors.AuthError: ErrorShape(401, _INVALID, "invalid_api_key"),
    errors.PermissionDenied: ErrorShape(403, _INVALID, "permission_denied"),
    errors.WaiverRequired: ErrorShape(403, _INVALID, "waiver_required"),
    errors.AccountSuspended: ErrorShape(403, _INVALID, "account_suspended"),
    errors.EndUserBlocked: ErrorShape(403, _INVALID, "end_user_blocked"),
    errors.ModelNotAllowed: ErrorShape(403, _INVALID, "model_not_allowed"),
    errors.QuotaExceeded: ErrorShape(429, "insufficient_quota", "insufficient_quota"),
    errors.ContentRefused: ErrorShape(400, _INVALID, "content_policy_violation"),
    errors.Busy: ErrorShape(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.RateLimited: ErrorShape(429, "requests", "rate_limit_exceeded"),
    errors.Cancelled: ErrorShape(499, _INVALID, "cancelled"),
    errors.DanqingError: ErrorShape(500, "server_error", "server_error"),
    errors.ProviderFailed: ErrorShape(502, "server_error", "provider_failed"),
    errors.Unavailable: ErrorShape(503, "server_error", "server_is_overloaded"),
}


# Statuses that the SDKs would retry (409, 429) for what no retry mends.
_FINAL = (
    errors.QuotaExceeded,
    errors.AccountSuspended,
    errors.IdempotencyConflict,
    errors.DuplicateRequestId,
)


def error_headers(error: errors.DanqingError, request_id: str) -> dict[str, str]:
    """`x-request-id`, and what the SDKs' retry loops read (openai, zai-sdk)."""
    headers = {"x-request-id": request_id}
    if isinstance(error, errors.Busy | errors.RateLimited | errors.Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, _FINAL):
        headers["x-should-retry"] = "false"
    return headers


def encode_error(
    error: errors.DanqingError, request_id: str, delivery: Delivery | None = None
) -> Reply:
    """`{"error": {message, type, param, code}}`, all four keys always there.

    A refusal by GPT Image (see `Delivery.echo`) has its own code, and says what was refused; GPT Image 2
    (`Delivery.user_errors`) has its own type for a bad value or picture.
    """
    if isinstance(error, errors.ContentRefused) and delivery is not None and delivery.echo:
        return Reply(400, {"error": _blocked(error)}, error_headers(error, request_id))
    shape = next(SHAPES[cls] for cls in type(error).__mro__ if cls in SHAPES)
    message = REFUSED if isinstance(error, errors.ContentRefused) else error.message
    param: str | None = getattr(error, "param", None)
    code: str | None = shape.code
    if isinstance(error, errors.TooManyImages) and error.n_max == 1:
        param = code = None  # dall-e-3's and draw's own shape for this one
    is_users = delivery is not None and delivery.user_errors and code in _USER_CODES
    kind = _USER_ERROR if is_users else shape.type
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = error_headers(error, request_id)
    if isinstance(error, errors.RateLimited) and not isinstance(error, errors.ConcurrencyExceeded):
        headers |= {
            "x-ratelimit-limit-requests": str(error.limit),
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{max(1, math.ceil(error.retry_after_s))}s",
        }
    return Reply(shape.status, body, headers)


def _blocked(error: errors.ContentRefused) -> dict[str, Any]:
    stage = "output" if error.role == "assistant" else "input"
    return {
        "message": BLOCKED,
        "type": _USER_ERROR,
        "param": None,
        "code": "moderation_blocked",
        "moderation_details": {"moderation_stage": stage, "categories": []},
    }


def encode_images(result: ImageResult, delivery: Delivery) -> Reply:
    """`{created, data: [{url | b64_json, revised_prompt?}]}` of the images that came out.

    With `delivery.echo` also size, quality, output_format, background and usage, as gpt-image.
    """
    body: dict[str, Any] = {
        "created": result.created,
        "data": [_item(image, result, delivery) for image in result.delivered],
    }
    if delivery.echo and result.delivered:
        first = result.delivered[0]
        body |= {
            "background": "transparent" if result.transparent else "opaque",
            "output_format": first.format,
            "quality": result.quality,
            "size": str(first.size),
            "usage": _usage(count_usage(result)),
        }
    return Reply(200, body)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "total_tokens": usage.input + usage.output,
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "input_tokens_details": {"text_tokens": usage.text, "image_tokens": usage.image},
    }


def encode_event(event: StreamEvent, head: StreamHead, delivery: Delivery) -> list[ServerEvent]:
    """OpenAI's events (openai-openapi's ImageGenPartialImageEvent, ImageGenCompletedEvent and their edit twins).

    One `completed` for each image; an image that failed is left out, as it is of a plain answer. No
    `[DONE]`: the end of the stream is the end. With several images our `image_index` tells them apart.
    """
    match event:
        case PartialImage():
            data = _event_data(head, "partial_image", event.index, event.format, event.b64)
            data["partial_image_index"] = event.number
        case FinishedImage():
            image = event.image
            data = _event_data(head, "completed", event.index, image.format, image.b64)
            data["usage"] = _usage(_count(head.prompt, head.input_pixels, image.size.pixels))
            if event.revised_prompt is not None:
                data["revised_prompt"] = event.revised_prompt
        case Broken():
            error = encode_error(event.error, head.reply_id, delivery).body["error"]
            return [ServerEvent({"type": "error", "error": error}, "error")]
        case _:
            return []
    return [ServerEvent(data, data["type"])]


def _event_data(
    head: StreamHead, what: str, index: int, format: ImageFormat, b64: str | None
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": f"{'image_edit' if head.is_edit else 'image_generation'}.{what}",
        "b64_json": b64,
        "created_at": head.created,
        "size": str(head.size),
        "quality": head.quality,
        "background": "transparent" if head.transparent else "opaque",
        "output_format": format,
    }
    if head.n > 1:
        data["image_index"] = index
    return data


def _item(image: DeliveredImage, result: ImageResult, delivery: Delivery) -> dict[str, Any]:
    item: dict[str, Any] = {"url": image.url} if delivery.form == "url" else {"b64_json": image.b64}
    if result.revised_prompt is not None:
        item["revised_prompt"] = result.revised_prompt
    return item


class Usage(NamedTuple):
    """Tokens by a formula of our own that the docs state; they are not what is charged."""

    text: int
    image: int
    output: int

    @property
    def input(self) -> int:
        return self.text + self.image


def count_usage(result: ImageResult) -> Usage:
    """Text: characters (code points) of the prompt. Images in and out: one per 256 pixels, rounded.

    It is how Volcengine Ark counts its `output_tokens`.
    """
    pixels = sum(image.size.pixels for image in result.delivered)
    return _count(result.prompt, result.input_pixels, pixels)


def _count(prompt: str, input_pixels: int, output_pixels: int) -> Usage:
    return Usage(len(prompt), round(input_pixels / 256), round(output_pixels / 256))
