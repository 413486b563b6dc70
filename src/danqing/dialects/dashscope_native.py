"""DashScope's own routes (Model Studio), synchronous and with tasks. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple

from danqing.dialects.base import Dialect, Reply
from danqing.dialects.dashscope import Asked, Parameters, decode, read_messages
from danqing.dialects.fields import Wire, read_source, validate
from danqing.dialects.openai_shapes import error_headers
from danqing.domain import errors
from danqing.domain.card import Card
from danqing.domain.task import (
    DeliveredImage,
    Delivery,
    ImageResult,
    ImageTask,
    TaskReport,
)

TASK_LIFE_S = 86_400
"""A task is kept for a day after its end (the page on asynchronous tasks)."""

_BEIJING = timezone(timedelta(hours=8))

ARREARAGE = "Access denied, please make sure your account is in good standing."
NOT_SYNCHRONOUS = "current user api does not support synchronous calls"
NOT_ASYNCHRONOUS = "current user api does not support asynchronous calls"
"""The provider's own words, which clients match."""


class NativeParameters(Parameters):
    """Also what the newer models have, as far as it asks for nothing."""

    is_async: bool | None = None
    """The SDK writes it beside the header that counts."""
    enable_sequential: Literal[False] | None = None
    enable_thinking: Literal[False] | None = None
    thinking_mode: Literal[False] | None = None


class MessagesInput(Wire):
    messages: list[object]
    prompt: None = None
    negative_prompt: str | None = None


class MessagesBody(Wire):
    model: str | None = None
    input: MessagesInput
    parameters: NativeParameters = NativeParameters()


class PromptInput(Wire):
    """`images` as the SDK's `ImageSynthesis` writes pictures to edit."""

    messages: None = None
    prompt: str
    negative_prompt: str | None = None
    images: list[str] | None = None


class PromptBody(Wire):
    model: str | None = None
    input: PromptInput
    parameters: NativeParameters = NativeParameters()


class ErrorShape(NamedTuple):
    status: int
    code: str


# Model Studio's page of error codes. A class not listed is shaped as its nearest listed parent.
SHAPES: dict[type[Exception], ErrorShape] = {
    errors.RequestError: ErrorShape(400, "InvalidParameter"),
    errors.BodyTooLarge: ErrorShape(413, "BadRequest.TooLarge"),
    errors.BodyTooSlow: ErrorShape(408, "RequestTimeOut"),
    errors.ModelNotFound: ErrorShape(404, "ModelNotFound"),
    errors.MethodNotAllowed: ErrorShape(405, "InvalidParameter"),
    errors.AuthError: ErrorShape(401, "InvalidApiKey"),
    errors.PermissionDenied: ErrorShape(403, "AccessDenied"),
    errors.AccountSuspended: ErrorShape(400, "Arrearage"),
    errors.ModelNotAllowed: ErrorShape(403, "Model.AccessDenied"),
    errors.QuotaExceeded: ErrorShape(400, "Arrearage"),
    errors.ContentRefused: ErrorShape(400, "DataInspectionFailed"),
    errors.Busy: ErrorShape(429, "Throttling"),
    errors.RateLimited: ErrorShape(429, "Throttling.RateQuota"),
    errors.ConcurrencyExceeded: ErrorShape(429, "LimitRequests"),
    errors.Cancelled: ErrorShape(408, "RequestTimeOut"),
    errors.DanqingError: ErrorShape(500, "InternalError"),
    errors.EngineFailed: ErrorShape(500, "InternalError.Algo"),
    errors.Unavailable: ErrorShape(503, "ModelUnavailable"),
}

# 415 as the table has it of old; newer ones say 400 for the same codes.
_PICTURES = {
    "empty": ErrorShape(400, "InvalidURL"),
    "address": ErrorShape(400, "InvalidURL"),
    "fetch": ErrorShape(415, "BadRequest.InputDownloadFailed"),
    "format": ErrorShape(415, "BadRequest.UnsupportedFileFormat"),
}
"""Codes of their own for what is wrong with a picture."""
_EMPTY = {
    "input": "BadRequest.EmptyInput",
    "parameters": "BadRequest.EmptyParameters",
    "model": "BadRequest.EmptyModel",
}
"""Codes of their own for the parts of a body that are missing whole."""

STATUS = {
    "queued": "PENDING",
    "running": "RUNNING",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELED",
}


class DashScopeMessages(Dialect):
    """`multimodal-generation/generation`, and with tasks `image-generation/generation`: a message in, choices out."""

    name = "dashscope_native"
    body = MessagesBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(MessagesBody, body)
        asked = read_messages(wire.input.messages)
        return decode(asked, wire.input.negative_prompt, wire.parameters, card)

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        """`reply_id` is the `request_id`: a UUID, like the provider's."""
        body = {
            "output": self.encode_output(result, delivery),
            "usage": _usage(result),
            "request_id": reply_id,
        }
        return Reply(200, body)

    def encode_error(
        self, error: errors.DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        fault = encode_fault(error)
        body = {"code": fault["code"], "message": fault["message"], "request_id": request_id}
        return Reply(_shape(error).status, body, error_headers(error, request_id))

    def encode_accepted(self, report: TaskReport, request_id: str) -> Reply:
        output = {"task_status": "PENDING", "task_id": report.task_id}
        return Reply(200, {"output": output, "request_id": request_id})

    def encode_task(self, report: TaskReport, request_id: str) -> Reply:
        output: dict[str, Any] = {
            "task_id": report.task_id,
            "task_status": STATUS[report.state],
            "submit_time": _time(report.created_ms),
        }
        if report.started_ms is not None:
            output["scheduled_time"] = _time(report.started_ms)
        if report.finished_ms is not None:
            output["end_time"] = _time(report.finished_ms)
        body: dict[str, Any] = {"request_id": request_id, "output": output}
        if report.result is not None:
            output |= self.encode_task_output(report.result, report.delivery)
            body["usage"] = self.encode_task_usage(report.result)
        elif report.state == "failed":
            output |= encode_fault(report.error or errors.ServerFault())
        return Reply(200, body)

    def encode_output(self, result: ImageResult, delivery: Delivery) -> dict[str, Any]:
        content = [{"image": _address(image)} for image in result.delivered]
        output: dict[str, Any] = {
            "choices": [
                {
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": content},
                }
            ],
            "task_metric": _metrics(result),
        }
        if result.revised_prompt is not None:
            output["actual_prompt"] = result.revised_prompt  # as in the results of a task
        return output

    def encode_task_output(self, result: ImageResult, delivery: Delivery) -> dict[str, Any]:
        return {"finished": True, **self.encode_output(result, delivery)}

    def encode_task_usage(self, result: ImageResult) -> dict[str, Any]:
        return _usage(result)


class DashScopePrompt(DashScopeMessages):
    """`text2image/image-synthesis`, `image2image/…`: a prompt in, always a task; results out, failures in their places."""

    name = "dashscope_synthesis"
    body = PromptBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(PromptBody, body)
        pictures = [
            read_source(picture, f"input.images[{index}]")
            for index, picture in enumerate(wire.input.images or ())
        ]
        asked = Asked(wire.input.prompt, "input.prompt", tuple(pictures))
        return decode(asked, wire.input.negative_prompt, wire.parameters, card)

    def encode_task_output(self, result: ImageResult, delivery: Delivery) -> dict[str, Any]:
        return {
            "results": [_result(image, result) for image in result.images],
            "task_metrics": _metrics(result),
        }

    def encode_task_usage(self, result: ImageResult) -> dict[str, Any]:
        return {"image_count": len(result.delivered)}


def encode_unknown(task_id: str, request_id: str) -> Reply:
    """The answer for a task that is not there, is not the caller's, or is no longer kept."""
    output = {"task_id": task_id, "task_status": "UNKNOWN"}
    return Reply(200, {"request_id": request_id, "output": output})


def encode_not_pending(request_id: str) -> Reply:
    """The answer for cancelling a task that is not waiting."""
    body = {
        "code": "UnsupportedOperation",
        "message": "Failed to cancel the task, please confirm if the task is in PENDING status.",
        "request_id": request_id,
    }
    return Reply(400, body, {"x-request-id": request_id})


def encode_fault(error: errors.DanqingError) -> dict[str, str]:
    """`code` and `message`, as they stand in an error, a failed task and a failed image."""
    return {"code": _shape(error).code, "message": _message(error)}


def _shape(error: errors.DanqingError) -> ErrorShape:
    if isinstance(error, errors.MissingField) and error.param in _EMPTY:
        return ErrorShape(400, _EMPTY[error.param])
    if isinstance(error, errors.InvalidImage) and error.fault is not None:
        return _PICTURES[error.fault]
    return next(SHAPES[cls] for cls in type(error).__mro__ if cls in SHAPES)


def _message(error: errors.DanqingError) -> str:
    """The provider's own words where clients match them. The body has no `param`: the message names it."""
    match error:
        case errors.MissingToken():
            return "No API-key provided."
        case errors.AuthError():
            return "Invalid API-key provided."
        case errors.TooManyImages(n_max=1):
            return "num_images_per_prompt must be 1"
        case errors.NotFound(param=None):
            return "url error, please check url!"
        case errors.QuotaExceeded() | errors.AccountSuspended():
            return f"{ARREARAGE} {error.message}"
        case errors.ContentRefused():
            data = "Output" if error.role == "assistant" else "Input"
            return f"{data} data may contain inappropriate content."
        case _:
            param: str | None = getattr(error, "param", None)
            unnamed = param is not None and f"'{param}'" not in error.message
            return f"'{param}': {error.message}" if unnamed else error.message


def _time(at_ms: int) -> str:
    """Beijing's time with milliseconds, as the provider writes it: "2026-01-02 10:00:00.123"."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(_BEIJING)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1000:03}"


def read_time(text: str, param: str) -> int:
    """Unix milliseconds of a list's `start_time` or `end_time`: "20230420000000". Raises InvalidField."""
    try:
        if len(text) != 14 or not (text.isascii() and text.isdigit()):
            raise ValueError
        at = datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=_BEIJING)
    except ValueError:
        raise errors.InvalidField(
            f"'{param}' must be a time like '20230420000000'.", param
        ) from None
    return int(at.timestamp()) * 1000


def _address(image: DeliveredImage) -> str:
    """The image's link; bytes (asked for on another route) as a data URL."""
    return image.url or f"data:image/{image.format};base64,{image.b64}"


def _result(image: DeliveredImage | errors.DanqingError, result: ImageResult) -> dict[str, Any]:
    if not isinstance(image, DeliveredImage):
        return encode_fault(image)
    actual = {} if result.revised_prompt is None else {"actual_prompt": result.revised_prompt}
    return {"orig_prompt": result.prompt, **actual, "url": _address(image)}


def _metrics(result: ImageResult) -> dict[str, int]:
    total, succeeded = len(result.images), len(result.delivered)
    return {"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": total - succeeded}


def _usage(result: ImageResult) -> dict[str, int]:
    width, height = result.delivered[0].size
    return {"image_count": len(result.delivered), "width": width, "height": height}
