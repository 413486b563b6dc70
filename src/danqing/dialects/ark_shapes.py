"""Answers and errors in Volcengine Ark's shapes. Pure; knows no HTTP library."""

from __future__ import annotations

from typing import Any, NamedTuple

from danqing.dialects.base import Reply, ServerEvent
from danqing.dialects.openai_shapes import count_usage, error_headers
from danqing.domain import errors
from danqing.domain.task import (
    Broken,
    DeliveredImage,
    Delivery,
    FailedImage,
    Finished,
    FinishedImage,
    ImageResult,
    StreamEvent,
    StreamHead,
)

UNAUTHENTICATED = "the API key or AK/SK in the request is missing or invalid."
"""The provider's own words for every fault of a key."""


class ErrorShape(NamedTuple):
    status: int
    type: str
    code: str


# Ark's table of error codes (image generation API, 2026). It has no code for a body that is too large,
# a wrong URL or method, or a client that left: those stand under the nearest one, with HTTP's status.
# A class not listed is shaped as its nearest listed parent.
SHAPES: dict[type[Exception], ErrorShape] = {
    errors.RequestError: ErrorShape(400, "BadRequest", "InvalidParameter"),
    errors.BodyTooLarge: ErrorShape(413, "BadRequest", "InvalidParameter"),
    errors.BodyTooSlow: ErrorShape(408, "BadRequest", "InvalidParameter"),
    errors.MissingField: ErrorShape(400, "BadRequest", "MissingParameter"),
    errors.InvalidImage: ErrorShape(400, "BadRequest", "InvalidImageURL.InvalidFormat"),
    errors.ModelNotFound: ErrorShape(404, "NotFound", "InvalidEndpointOrModel.NotFound"),
    errors.NotFound: ErrorShape(404, "NotFound", "InvalidParameter"),
    errors.MethodNotAllowed: ErrorShape(405, "BadRequest", "InvalidParameter"),
    errors.AuthError: ErrorShape(401, "Unauthorized", "AuthenticationError"),
    errors.PermissionDenied: ErrorShape(403, "Forbidden", "AccessDenied"),
    errors.ModelNotAllowed: ErrorShape(404, "NotFound", "ModelNotOpen"),
    errors.QuotaExceeded: ErrorShape(403, "Forbidden", "AccountOverdueError"),
    errors.TokenBudgetExceeded: ErrorShape(429, "TooManyRequests", "SetLimitExceeded"),
    errors.ContentRefused: ErrorShape(400, "BadRequest", "SensitiveContentDetected"),
    errors.Busy: ErrorShape(429, "TooManyRequests", "ServerOverloaded"),
    errors.RateLimited: ErrorShape(429, "TooManyRequests", "AccountRateLimitExceeded"),
    errors.ConcurrencyExceeded: ErrorShape(429, "TooManyRequests", "InflightBatchsizeExceeded"),
    errors.Cancelled: ErrorShape(499, "BadRequest", "InvalidParameter"),
    errors.DanqingError: ErrorShape(500, "InternalServerError", "InternalServiceError"),
    errors.Unavailable: ErrorShape(503, "InternalServerError", "InternalServiceError"),
}
REFUSALS = {
    "user": "InputTextSensitiveContentDetected",
    "history": "InputTextSensitiveContentDetected",
    "assistant": "OutputImageSensitiveContentDetected",
}
"""The code of a refusal, by whose content it was."""
REFUSED_REFERENCE = "InputImageSensitiveContentDetected"
CAUSES = {
    "SevereViolation": "SensitiveContentDetected",
    "Violence": "SensitiveContentDetected",
    "PolicyViolation": REFUSED_REFERENCE,
    "PrivacyInformation": REFUSED_REFERENCE,
    "DeepFake": "OutputImageSensitiveContentDetected",
}
"""What may follow a refusal's code. Only an Ark behind a relay says so; our own judges' categories are no clients' affair."""
EMPTY_URL = "InvalidImageURL.EmptyURL"
ENDPOINT_LIMIT = "RateLimitExceeded.EndpointRPMExceeded"
"""The limit, where the model was named by an endpoint (`ep-...`)."""


def shape_of(error: errors.DanqingError, delivery: Delivery | None = None) -> ErrorShape:
    shape = next(SHAPES[cls] for cls in type(error).__mro__ if cls in SHAPES)
    if isinstance(error, errors.ContentRefused):
        return shape._replace(code=_refusal(error))
    if isinstance(error, errors.InvalidImage) and error.fault == "empty":
        return shape._replace(code=EMPTY_URL)
    if type(error) is errors.RateLimited and delivery is not None:
        by_endpoint = (delivery.asked_model or "").startswith("ep-")
        return shape._replace(code=ENDPOINT_LIMIT) if by_endpoint else shape
    return shape


def _refusal(error: errors.ContentRefused) -> str:
    """The code of a refusal, by whose content it was, and by its cause where Ark itself gave one."""
    cause = error.category if error.source == "provider" else None
    if cause in CAUSES:
        return f"{CAUSES[cause]}.{cause}"
    if error.role != "assistant" and error.subject == "image":
        return REFUSED_REFERENCE
    return REFUSALS.get(error.role, SHAPES[errors.ContentRefused].code)


def encode_error(
    error: errors.DanqingError, request_id: str, delivery: Delivery | None = None
) -> Reply:
    """`{"error": {code, message, param, type}}`; the message ends with the request's id."""
    shape = shape_of(error, delivery)
    message = _message(error)
    if isinstance(error, errors.AuthError):
        message = f"{UNAUTHENTICATED} request id: {request_id}"
    else:
        message = f"{message} Request id: {request_id}"
    body = {
        "error": {
            "code": shape.code,
            "message": message,
            "param": getattr(error, "param", None) or "",
            "type": shape.type,
        }
    }
    headers = error_headers(error, request_id) | {"x-error-code": shape.code}
    return Reply(shape.status, body, headers)


def _message(error: errors.DanqingError) -> str:
    return error.message.strip()


def encode_images(result: ImageResult, delivery: Delivery) -> Reply:
    """`{model, created, data, usage}`; a failed image leaves its error in its place."""
    return Reply(
        200,
        {
            "model": delivery.asked_model or result.model,
            "created": result.created,
            "data": [
                item(image, delivery)
                if isinstance(image, DeliveredImage)
                else {"error": item_error(image)}
                for image in result.images
            ],
            "usage": usage(result),
        },
    )


def item(image: DeliveredImage, delivery: Delivery) -> dict[str, Any]:
    picture = {"url": image.url} if delivery.form == "url" else {"b64_json": image.b64}
    return picture | {"size": str(image.size)}


def item_error(error: errors.DanqingError) -> dict[str, str]:
    """One image's error: `{code, message}`."""
    return {"code": shape_of(error).code, "message": _message(error)}


def usage(result: ImageResult) -> dict[str, int]:
    """`output_tokens` is the sum of width x height / 256 over the images that came, rounded."""
    tokens = count_usage(result).output
    return {
        "generated_images": len(result.delivered),
        "output_tokens": tokens,
        "total_tokens": tokens,
    }


def encode_event(event: StreamEvent, head: StreamHead, delivery: Delivery) -> list[ServerEvent]:
    """Ark's events: one for each image as it ends, `completed` with the usage, then `[DONE]`.

    A task that came to nothing ends with an `error` event instead: the SDK raises on it.
    """
    match event:
        case FinishedImage():
            data = {"image_index": event.index} | item(event.image, delivery)
            return [_event("partial_succeeded", head, delivery, data)]
        case FailedImage():
            data = {"image_index": event.index, "error": item_error(event.error)}
            return [_event("partial_failed", head, delivery, data)]
        case Finished():
            data = {"usage": usage(event.result)}
            return [_event("completed", head, delivery, data), ServerEvent("[DONE]")]
        case Broken():
            error = encode_error(event.error, head.reply_id, delivery).body["error"]
            return [ServerEvent({"type": "error", "error": error}, "error"), ServerEvent("[DONE]")]
        case _:
            return []


def _event(what: str, head: StreamHead, delivery: Delivery, data: dict[str, Any]) -> ServerEvent:
    name = f"image_generation.{what}"
    model = delivery.asked_model or head.model
    return ServerEvent({"type": name, "model": model, "created": head.created} | data, name)
