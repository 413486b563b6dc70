"""DashScope (Model Studio) seen from its client, synchronous and with tasks. Pure; knows no HTTP library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from danqing.dialects.answers import (
    NO_MONEY,
    SHUT_OUT,
    body_of,
    check_extras,
    data_url,
    failed,
    in_places,
    list_of,
    mapping_of,
    openais_own,
    read_image,
    read_object,
    refuse_unsaid,
    text_of,
    turned_away,
    words,
)
from danqing.dialects.client import (
    ClientDialect,
    Incoming,
    Outgoing,
    Pending,
    ProviderImage,
    ProviderResult,
    Target,
)
from danqing.dialects.dashscope import NEGATIVE_CHARS_MAX
from danqing.domain.errors import (
    ContentRefused,
    DanqingError,
    InvalidField,
    InvalidImage,
    ProviderFailed,
    TooManyImages,
)
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask

EXTRAS = frozenset({"message_tasks"})
"""`message_tasks`: in the background these models take messages (`image-generation/generation`: Wan 2.6 and later),
not a prompt (`text2image/image-synthesis`)."""

SYNC = "/services/aigc/multimodal-generation/generation"
MESSAGE_TASK = "/services/aigc/image-generation/generation"
PROMPT_TASK = "/services/aigc/text2image/image-synthesis"
POLL_S = 1.0
"""The provider allows an account 20 questions a second; its SDK asks once a second at first."""

# Model Studio's page of error codes.
_NO_MONEY = frozenset(
    {
        *("Arrearage", "PrepaidBillOverdue", "PostpaidBillOverdue", "CommodityNotPurchased"),
        *("AllocationQuota.FreeTierOnly", "AccessDenied.Unpurchased"),
    }
)
_SHUT_OUT = frozenset(
    {"InvalidApiKey", "AccessDenied", "Model.AccessDenied", "Workspace.AccessDenied"}
)
_REFUSED = frozenset({"DataInspectionFailed", "DataInspection", "IPInfringementSuspect"})
_PICTURES: dict[str, Literal["address", "fetch", "format"]] = {
    "InvalidURL": "address",
    "BadRequest.InputDownloadFailed": "fetch",
    "BadRequest.UnsupportedFileFormat": "format",
}
_OVERLOADED = frozenset({"ModelUnavailable", "ModelServingError"})

FIELDS = {
    "size": "size",
    "n": "n",
    "seed": "seed",
    "negative_prompt": "negative_prompt",
    "prompt": "prompt",
    "text": "prompt",
    "image": "image",
}
"""The last part of a field's path on the wire, and what it says, of those that came from the caller."""
# Our own server quotes the whole path; the provider's words name the field bare.
_QUOTED = re.compile(r"'(?:[a-z]+(?:\[\d*\])?\.)*([a-z_]+)'")
_NAMED = re.compile(r"(?<![\w'])(size|seed|negative_prompt|prompt|image)(?![\w'])", re.I)
_ONE_IMAGE = re.compile(r"num_images_per_prompt must be 1\b")


@dataclass(frozen=True)
class DashScopeClient(ClientDialect):
    """The client side. `extras` says which route the provider's models have in the background."""

    name = "dashscope"

    extras: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_extras(self.extras, EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        said = {
            "prompt": not task.prompt,
            "quality": task.quality not in ("", "standard"),
            # The provider cuts it there and does not say so.
            "negative_prompt": len(task.negative_prompt) > NEGATIVE_CHARS_MAX,
            "style": task.style is not None,
            "ai_label": not task.ai_label,
            "end_user": task.end_user is not None,
            "client_request_id": task.client_request_id is not None,
            "history": bool(task.history),
            "fit_reference": task.fit_reference,
            "strength": task.strength is not None,
            "form": delivery.form != "url",
            "format": delivery.format != "png",
        }
        unsaid = frozenset(name for name, cannot in said.items() if cannot)
        return unsaid | openais_own(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        parameters: dict[str, Any] = {
            "size": f"{task.size.width}*{task.size.height}",
            "n": task.n,
            "prompt_extend": task.prompt_extend,
            "watermark": task.brand_mark,
        }
        if task.seed is not None:
            parameters["seed"] = task.seed
        by_prompt = (
            target.background and not target.references and "message_tasks" not in self.extras
        )
        given: dict[str, Any] = {}
        if by_prompt:
            given["prompt"] = task.prompt
            if task.negative_prompt:  # where the SDK writes it on this route
                given["negative_prompt"] = task.negative_prompt
        else:
            content: list[dict[str, str]] = [
                {"image": data_url(image)} for image in target.references
            ]
            content.append({"text": task.prompt})
            given["messages"] = [{"role": "user", "content": content}]
            if task.negative_prompt:
                parameters["negative_prompt"] = task.negative_prompt
        path = SYNC
        if target.background:
            path = PROMPT_TASK if by_prompt else MESSAGE_TASK
        return Outgoing(
            "POST",
            path,
            json={"model": target.model, "input": given, "parameters": parameters},
            headers={"X-DashScope-Async": "enable"} if target.background else {},
        )

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult | Pending:
        body = body_of(answer, self.decode_error(answer))
        output, usage = mapping_of(body.get("output")), mapping_of(body.get("usage"))
        task_id = text_of(output.get("task_id"))
        if text_of(output.get("task_status")) in ("PENDING", "RUNNING", "SUSPENDED"):
            return _pending(task_id)
        size = _size(usage)
        images = [
            replace(image, size=size) if isinstance(image, ProviderImage) else image
            for image in _images(output)
        ]
        if not images:
            raise ProviderFailed("The provider's answer holds no image.")
        return ProviderResult(
            images=in_places(images, task.n),
            revised_prompt=_actual_prompt(output),
            upstream_id=task_id or text_of(body.get("request_id")) or None,
            usage=dict(usage),
        )

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        """Also of a 200 with a code and no output, and of a task that has failed."""
        body = read_object(answer) or {}
        output = mapping_of(body.get("output"))
        if answer.status >= 400:
            return _error(body, answer)
        status = text_of(output.get("task_status"))
        if status == "FAILED":
            return _error(output, answer)
        if status == "CANCELED":
            return ProviderFailed("The provider of this model cancelled its task.")
        if status == "UNKNOWN":
            return ProviderFailed("The provider of this model lost its task.")
        return _error(body, answer) if body.get("code") and not output else None


def _pending(task_id: str) -> Pending:
    if not task_id:
        raise ProviderFailed("The provider's answer names no task.")
    path = f"/tasks/{quote(task_id, safe='')}"
    return Pending(
        task_id,
        poll=Outgoing("GET", path),
        after_s=POLL_S,
        cancel=Outgoing("POST", f"{path}/cancel"),
    )


def _images(output: Mapping[str, object]) -> Iterator[ProviderImage | DanqingError]:
    """Each image or its own error: a prompt task's results in their places, else what the choices hold."""
    for result in map(mapping_of, list_of(output.get("results"))):
        if result.get("code") and not result.get("url"):
            yield _error(result, Incoming(200, b""))
        else:
            yield read_image(result.get("url"), None)
    for choice in map(mapping_of, list_of(output.get("choices"))):
        message = mapping_of(choice.get("message"))
        for part in map(mapping_of, list_of(message.get("content"))):
            if "image" in part:  # some models answer their text beside it
                yield read_image(part.get("image"), None)


def _actual_prompt(output: Mapping[str, object]) -> str | None:
    results = map(mapping_of, list_of(output.get("results")))
    for holder in (output, *results):
        text = holder.get("actual_prompt")
        if isinstance(text, str) and text:
            return text
    return None


def _size(usage: Mapping[str, object]) -> Size | None:
    """Every model family says it in another way."""
    for names in (("width", "height"), ("output_width", "output_height")):
        width, height = (usage.get(name) for name in names)
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
            return Size.parse(f"{width}x{height}")
    size = usage.get("size")
    return Size.parse(size) if isinstance(size, str) else None


def _error(stated: Mapping[str, object], answer: Incoming) -> DanqingError:
    """The error of a code and a message, of a whole answer, a task or one image; empty for what is none."""
    code, status, text = text_of(stated.get("code")), answer.status, words(stated.get("message"))
    if code in _REFUSED:
        return ContentRefused("assistant" if text.lower().startswith("output") else "user", 1)
    if code in _NO_MONEY:
        return ProviderFailed(NO_MONEY)
    if code in _SHUT_OUT or status in (401, 403):
        return ProviderFailed(SHUT_OUT)
    is_busy = code.startswith("Throttling") or code == "LimitRequests"
    away = turned_away(answer, is_busy=is_busy, is_overloaded=code in _OVERLOADED)
    if away is not None:
        return away
    if code in _PICTURES:
        return InvalidImage(text or "The provider cannot read the image.", "image", _PICTURES[code])
    if code.startswith("InvalidParameter"):
        mended = _mendable(code, text)
        if mended is not None:
            return mended
    return failed(answer, code[:100] if re.fullmatch(r"[A-Za-z.]+", code) else "")


def _mendable(code: str, text: str) -> DanqingError | None:
    """An error that the caller can mend by another value."""
    if _ONE_IMAGE.search(text):
        return TooManyImages("n", 1)
    if code == "InvalidParameter.DataInspection":  # it could not read the picture to inspect
        return InvalidImage(text, "image")
    named = [name for name in _QUOTED.findall(text) if name in FIELDS]
    if not named:  # "the image size …" is about the size
        bare = {match.lower() for match in _NAMED.findall(text)}
        named = [name for name in FIELDS if name in bare]
    if not named:
        return None
    field = FIELDS[named[0]]
    return (InvalidImage if field == "image" else InvalidField)(text, field)
