"""Volcengine Ark seen from its client. Pure; knows no HTTP library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from danqing.dialects.answers import (
    NO_MONEY,
    SHUT_OUT,
    body_of,
    check_extras,
    data_url,
    failed,
    field_of,
    in_places,
    list_of,
    mapping_of,
    openais_own,
    read_image,
    read_object,
    refuse_unsaid,
    shut_out,
    text_of,
    turned_away,
    words,
)
from danqing.dialects.ark import IMAGES_MAX
from danqing.dialects.ark_shapes import CAUSES, EMPTY_URL
from danqing.dialects.client import (
    ClientDialect,
    Incoming,
    Outgoing,
    ProviderImage,
    ProviderResult,
    Target,
)
from danqing.dialects.prompt_hints import read_count
from danqing.domain.errors import (
    ContentRefused,
    DanqingError,
    InvalidField,
    InvalidImage,
    ProviderFailed,
)
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask

EXTRAS = frozenset({"seed", "output_format", "negative_prompt", "user"})
"""Fields that not every server of this dialect knows: `seed` was Seedream 3.0's, `output_format` is 5.0's, the
others are ours. Our own server knows them all."""

_NO_MONEY = frozenset({"AccountOverdueError", "QuotaExceeded", "SetLimitExceeded"})
_REQUEST_ID = re.compile(r"\s*request id:\s*\S*\s*$", re.I)
# Where `param` is empty the provider's words name the field: "the parameter `size` specified in …".
_NAMED = re.compile(r"parameter [`']([a-z_]+(?:\.[a-z_]+)*)[`']")
_MENDABLE = {
    "prompt": "prompt",
    "image": "image",
    "size": "size",
    "seed": "seed",
    "output_format": "output_format",
    "negative_prompt": "negative_prompt",
    "user": "user",
    "watermark": "watermark",
    "sequential_image_generation": "n",
    "sequential_image_generation_options": "n",
    "optimize_prompt": "prompt_extend",
}
"""The wire's fields that came from the caller, and what each says: an error about one is the caller's to mend."""


@dataclass(frozen=True)
class ArkClient(ClientDialect):
    """The client side. `extras` are the fields beyond Seedream 4.0's that the other side knows."""

    name = "ark"

    extras: frozenset[str] = EXTRAS

    def __post_init__(self) -> None:
        check_extras(self.extras, EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        said = {
            "prompt": not task.prompt,
            "quality": task.quality not in ("", "standard"),
            "n": not _can_say_n(task),
            "negative_prompt": bool(task.negative_prompt) and "negative_prompt" not in self.extras,
            "style": task.style is not None,
            "seed": task.seed is not None and "seed" not in self.extras,
            "end_user": task.end_user is not None and "user" not in self.extras,
            "client_request_id": task.client_request_id is not None,
            "history": bool(task.history),
            "references": len(task.references) >= IMAGES_MAX,
            "fit_reference": task.fit_reference,
            "strength": task.strength is not None,
            "format": delivery.format == "webp",
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
            "response_format": delivery.form,
            "watermark": task.ai_label,
        }
        if target.references:
            fields["image"] = [data_url(image) for image in target.references]
        if task.n > 1:
            fields["sequential_image_generation"] = "auto"
            fields["sequential_image_generation_options"] = {"max_images": task.n}
        if task.prompt_extend:
            fields["optimize_prompt"] = True
        if "output_format" in self.extras:
            fields["output_format"] = delivery.format
        if task.seed is not None:
            fields["seed"] = task.seed
        if task.negative_prompt:
            fields["negative_prompt"] = task.negative_prompt
        if task.end_user is not None:
            fields["user"] = task.end_user
        return Outgoing("POST", "/images/generations", json=fields)

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        body = body_of(answer, self.decode_error(answer))
        items = [mapping_of(item) for item in list_of(body.get("data"))]
        if not items:
            raise ProviderFailed("The provider's answer holds no image.")
        return ProviderResult(
            images=in_places([_image(item) for item in items], task.n),
            upstream_id=answer.headers.get("x-request-id") or None,
            usage=dict(mapping_of(body.get("usage"))),
        )

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        body = read_object(answer) or {}
        stated = mapping_of(body.get("error"))
        if answer.status < 400 and (not stated or list_of(body.get("data"))):
            return None
        return _error(stated, answer)


def _can_say_n(task: ImageTask) -> bool:
    """A series has up to `max_images` images, and the prompt has the first word on how many."""
    if task.n == 1:
        return True
    return task.n + len(task.references) <= IMAGES_MAX and read_count(task.prompt) in (None, task.n)


def _image(item: Mapping[str, object]) -> ProviderImage | DanqingError:
    if error := mapping_of(item.get("error")):
        return _error(error, Incoming(200, b""))
    image = read_image(item.get("url"), item.get("b64_json"))
    size = item.get("size")
    if isinstance(image, DanqingError) or not isinstance(size, str):
        return image
    return replace(image, size=Size.parse(size))


def _error(error: Mapping[str, object], answer: Incoming) -> DanqingError:
    """The error of an Ark error object, of a whole answer or of one image; `error` is empty for what is none."""
    code, status = text_of(error.get("code")), answer.status
    if "SensitiveContentDetected" in code:
        role = "assistant" if code.startswith("Output") else "user"
        subject = "image" if "Image" in code else "text"
        cause = code.partition(".")[2]
        level = 0 if cause == "SevereViolation" else 1
        known = cause if cause in CAUSES else None
        return ContentRefused(role, level, subject=subject, category=known)
    if code in _NO_MONEY or status == 402:
        return ProviderFailed(NO_MONEY)
    if status == 401 or code == "AuthenticationError":
        return ProviderFailed(SHUT_OUT)
    if status == 403 or code == "AccessDenied":
        return shut_out(
            words(error.get("message")), "watermark", param=field_of(error.get("param"))
        )
    if (away := turned_away(answer)) is not None:
        return away
    if code.startswith(("InvalidParameter", "MissingParameter", "InvalidImageURL")):
        mended = _mendable(error, code)
        if mended is not None:
            return mended
    return failed(answer, code[:100] if re.fullmatch(r"[A-Za-z.]+", code) else "")


def _mendable(error: Mapping[str, object], code: str) -> DanqingError | None:
    """An error that the caller can mend by another value."""
    text = _REQUEST_ID.sub("", words(error.get("message")))
    param = field_of(error.get("param"))
    if not param and (named := _NAMED.search(text)):
        param = named[1]
    if code.startswith("InvalidImageURL"):
        fault = "empty" if code == EMPTY_URL else None
        return InvalidImage(text or "The provider cannot read the image.", param or "image", fault)
    root = re.split(r"[.\[]", param, maxsplit=1)[0]
    if root not in _MENDABLE:
        return None
    ours = param if _MENDABLE[root] == root else _MENDABLE[root]
    return InvalidField(text or f"The provider refuses the value of '{ours}'.", ours)
