"""OpenAI Images seen from its client, and what speaks it: gateways, vLLM-Omni, SGLang, LocalAI. Pure; knows no HTTP library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from danqing.dialects.answers import (
    NO_MONEY,
    SHUT_OUT,
    body_of,
    check_extras,
    failed,
    field_of,
    in_places,
    list_of,
    mapping_of,
    read_image,
    read_object,
    refuse_unsaid,
    shut_out,
    text_of,
    turned_away,
    words,
)
from danqing.dialects.base import Upload
from danqing.dialects.client import (
    ClientDialect,
    Incoming,
    Outgoing,
    ProviderImage,
    ProviderLook,
    ProviderResult,
    Target,
)
from danqing.dialects.jimeng_failures import read_failure
from danqing.domain.card import ImageFormat
from danqing.domain.errors import (
    ContentRefused,
    DanqingError,
    InvalidField,
    InvalidImage,
    ProviderFailed,
    TooManyImages,
    UnsupportedField,
)
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask, InputImage

EXTRAS = frozenset(
    {
        *("response_format", "output_format", "style", "seed", "negative_prompt", "watermark"),
        *("strength", "background", "input_fidelity", "moderation", "stream"),
    }
)
"""Fields that not every server of this dialect knows. Our own knows them all."""

# OpenAI's error guide, and codes that gateways copied from it. Nothing was drawn after any of these.
_REFUSED_CODES = frozenset(
    {
        *("content_policy_violation", "moderation_blocked", "content_filter", "content_refused"),
        # Of providers whose errors gateways pass on, and of DashScope's and Ark's own OpenAI routes.
        *("responsibleaipolicyviolation", "prohibited_content", "image_safety", "nsfw", "1301"),
        *("data_inspection_failed", "datainspectionfailed"),
    }
)
_REFUSED_WORDS = re.compile(
    r"safety system|content[ _]policy|content (?:filter|management)|moderation|nsfw|敏感|违规"
    r"|(?:inappropriate|sensitive|prohibited|harmful|unsafe) content",
    re.I,
)
_NO_REFUSAL = frozenset({401, 402, 404, 429})
"""Statuses below 500 that are about the server's account or the model, whatever the words."""
_KEY_CODES = frozenset(
    {
        *("invalid_api_key", "invalid_organization", "account_deactivated", "permission_denied"),
        # Of our own server, where draw's HTTP 200 says nothing.
        *("account_suspended", "end_user_blocked", "model_not_allowed"),
    }
)
_MONEY_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "project_spend_limit_exceeded",
    }
)
_BUSY_CODES = frozenset({"slow_down", "rate_limit_exceeded"})
_OVERLOADED_CODES = frozenset({"server_is_overloaded"})
"""Another key would not help."""
_UNKNOWN_CODES = frozenset({"unknown_parameter", "unsupported_parameter"})
_IMAGE_CODES = frozenset({"invalid_image_file", "invalid_image", "image_too_large"})

_MENDABLE = frozenset(
    {
        *("prompt", "n", "size", "quality", "style", "user", "background", "moderation", "seed"),
        *("strength", "watermark", "input_fidelity", "stream", "partial_images"),
        *("output_format", "output_compression", "negative_prompt", "image", "mask", "images"),
    }
)
"""Fields of ours that came from the caller as they are: an error about one is the caller's to mend."""


@dataclass(frozen=True)
class OpenAIClient(ClientDialect):
    """The client side. `extras` are the fields beyond OpenAI's present ones that the other side knows."""

    name = "openai"

    extras: frozenset[str] = EXTRAS

    def __post_init__(self) -> None:
        check_extras(self.extras, EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        edit = task.is_edit
        # openai-openapi's variation request has no output_format.
        no_format = self._lacks("output_format") or not task.prompt
        # GPT Image streams drawings and edits, in base64. Its events do not say which of several images they are of.
        no_stream = self._lacks("stream") or not task.prompt or delivery.form == "url"
        streams = delivery.stream and not no_stream
        said = {
            "n": streams and task.n > 1,
            "negative_prompt": bool(task.negative_prompt) and self._lacks("negative_prompt", edit),
            "style": task.style is not None and self._lacks("style", edit),
            "seed": task.seed is not None and self._lacks("seed", edit),
            "ai_label": not task.ai_label and self._lacks("watermark", edit),
            "prompt_extend": task.prompt_extend,
            "client_request_id": task.client_request_id is not None,
            "history": bool(task.history),
            "strength": task.strength is not None and (not edit or self._lacks("strength")),
            # A variation is of one picture, all of it.
            "references": len(task.references) > 1 and not task.prompt,
            "mask": task.mask is not None and not (task.references and task.prompt),
            "form": delivery.form == "b64_json" and self._lacks("response_format") and not streams,
            "format": delivery.format != "png" and no_format,
            "compression": delivery.compression is not None and no_format,
            "stream": delivery.stream and no_stream,
            "partial_images": bool(delivery.partial_images) and not streams,
            "input_fidelity": task.input_fidelity is not None
            and (not edit or not task.prompt or self._lacks("input_fidelity")),
            # openai-openapi's edit has none.
            "moderation": task.moderation is not None and (edit or self._lacks("moderation")),
            # GPT Image's; a variation has none, and JPEG no opacity.
            "transparent": task.transparent
            and (self._lacks("background") or not task.prompt or delivery.format == "jpeg"),
            "brand_mark": task.brand_mark,
        }
        return frozenset(name for name, cannot in said.items() if cannot)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        fields = self._fields(task, delivery, target)
        if not target.references:
            return Outgoing("POST", "/images/generations", json=fields)
        form: list[tuple[str, str | Upload]] = [
            (name, str(value).lower() if isinstance(value, bool) else str(value))
            for name, value in fields.items()
        ]
        several = len(target.references) > 1
        for image in target.references:  # as the official SDKs name the parts
            form.append(("image[]" if several else "image", _upload(image, "image")))
        if target.mask is not None:
            form.append(("mask", _upload(target.mask, "mask")))
        variation = not task.prompt
        return Outgoing(
            "POST", "/images/variations" if variation else "/images/edits", form=tuple(form)
        )

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        body = body_of(answer, self.decode_error(answer))
        items = [mapping_of(item) for item in list_of(body.get("data"))]
        if not items:
            raise ProviderFailed("The provider's answer holds no image.")
        revised = next((found for item in items if (found := _text(item, "revised_prompt"))), None)
        return ProviderResult(
            images=in_places([_image(item, body) for item in items], task.n),
            revised_prompt=revised,
            upstream_id=answer.headers.get("x-request-id") or text_of(body.get("id")) or None,
            usage=dict(mapping_of(body.get("usage"))),
        )

    def decode_event(self, event: Incoming, name: str) -> ProviderLook | ProviderResult | None:
        """openai-openapi's ImageGenPartialImageEvent, ImageGenCompletedEvent and their edit twins."""
        if event.body.strip() == b"[DONE]":  # not OpenAI's own, and some gateways'
            return None
        body = body_of(event, self.decode_error(event))
        kind = text_of(body.get("type")) or name
        if kind.endswith(".partial_image"):
            look = read_image(None, body.get("b64_json"))
            return ProviderLook(look) if isinstance(look, ProviderImage) else None
        if not kind.endswith(".completed"):
            return None
        image = _image(body, body)
        if isinstance(image, DanqingError):
            raise image
        return ProviderResult(
            images=(image,),
            revised_prompt=_text(body, "revised_prompt"),
            upstream_id=event.headers.get("x-request-id") or text_of(body.get("id")) or None,
            usage=dict(mapping_of(body.get("usage"))),
        )

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        body = read_object(answer) or {}
        stated = body.get("error")
        if (failure := read_failure(body, answer)) is not None:
            return failure
        if answer.status < 400 and (not stated or list_of(body.get("data"))):
            return None
        return _error(answer, mapping_of(stated) or _plain_error(body, stated))

    def _lacks(self, extra: str, edit: bool = False) -> bool:
        # openai-openapi's edit and variation requests have no style.
        return extra not in self.extras or (edit and extra == "style")

    def _fields(self, task: ImageTask, delivery: Delivery, target: Target) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": target.model}
        if task.prompt:
            fields["prompt"] = task.prompt
        fields |= {"n": task.n, "size": str(task.size)}
        optional = {
            "quality": task.quality if task.prompt else None,  # a variation has none
            "user": task.end_user,
            "style": task.style,
            "negative_prompt": task.negative_prompt,
        }
        fields |= {name: value for name, value in optional.items() if value}
        if task.seed is not None:
            fields["seed"] = task.seed
        if task.strength is not None:
            fields["strength"] = task.strength
        if not task.ai_label:
            fields["watermark"] = False
        if delivery.stream:
            fields["stream"] = True
            if delivery.partial_images:
                fields["partial_images"] = delivery.partial_images
        if task.transparent:
            fields["background"] = "transparent"
        if task.input_fidelity is not None:
            fields["input_fidelity"] = task.input_fidelity
        if task.moderation is not None:
            fields["moderation"] = task.moderation
        if "response_format" in self.extras:
            fields["response_format"] = delivery.form
        if "output_format" in self.extras and task.prompt:
            fields["output_format"] = delivery.format
            if delivery.compression is not None:
                fields["output_compression"] = delivery.compression
        return fields


def _image(item: Mapping[str, object], body: Mapping[str, object]) -> ProviderImage | DanqingError:
    if error := mapping_of(item.get("error")):  # an image's own error, as gateways pass it on
        return _error(Incoming(200, b""), error)
    image = read_image(item.get("url"), item.get("b64_json"))
    if isinstance(image, DanqingError):
        return image
    return replace(image, size=_size(body.get("size")), format=_format(body.get("output_format")))


def _plain_error(body: Mapping[str, object], stated: object) -> Mapping[str, object]:
    """An error that is no OpenAI error object: a text (LocalAI, Ollama), or FastAPI's own `detail`."""
    if isinstance(stated, str):
        return {"message": stated}
    if details := list_of(body.get("detail")):
        first = mapping_of(details[0])
        place = list_of(first.get("loc"))
        return {"message": first.get("msg"), "param": place[-1] if place else None}
    return {"message": body.get("detail"), **body}


def _upload(image: InputImage, name: str) -> Upload:
    return Upload(image.data, f"{name}.{image.format}", f"image/{image.format}")


def _text(item: Mapping[str, object], name: str) -> str | None:
    value = item.get(name)
    return value if isinstance(value, str) and value else None


def _error(answer: Incoming, error: Mapping[str, object]) -> DanqingError:
    """The error of an OpenAI error object (message, type, param, code), whatever the status."""
    status = answer.status
    message = words(error.get("message"))
    codes = {text_of(error.get("code")).lower(), text_of(error.get("type")).lower()} - {""}
    field = field_of(error.get("param"))
    is_about_content = status < 500 and status not in _NO_REFUSAL
    if codes & _REFUSED_CODES or any("sensitivecontent" in code for code in codes):
        stage = mapping_of(error.get("moderation_details")).get("moderation_stage")
        return ContentRefused("assistant" if stage == "output" else "user", 1)
    if is_about_content and field != "moderation" and _REFUSED_WORDS.search(message):
        return ContentRefused("user", 1)
    if status == 403 or "waiver_required" in codes:
        return shut_out(message, "watermark", param=field)
    if status == 401 or codes & _KEY_CODES:
        return ProviderFailed(SHUT_OUT)
    if status == 402 or codes & _MONEY_CODES:
        return ProviderFailed(NO_MONEY)
    away = turned_away(
        answer,
        is_busy=bool(codes & _BUSY_CODES),
        is_overloaded=bool(codes & _OVERLOADED_CODES),
    )
    if away is not None:
        return away
    if status < 500 and (mended := _mendable(codes, field, message)) is not None:
        return mended
    return failed(answer)


def _mendable(codes: Set[str], field: str, message: str) -> DanqingError | None:
    """An error that the caller can mend by another value, or by leaving a field out."""
    if "n=1" in message and not field:
        return TooManyImages("n", 1)
    root = re.split(r"[.\[]", field, maxsplit=1)[0]
    if codes & _IMAGE_CODES:
        return InvalidImage(message or "The provider cannot read the image.", field or "image")
    if "invalid_input_fidelity_model" in codes:  # GPT Image 2 and its successors
        return UnsupportedField(message, "input_fidelity")
    if root not in _MENDABLE:
        return None
    text = message or f"The provider refuses the value of '{field}'."
    if codes & _UNKNOWN_CODES:
        return UnsupportedField(text, field)
    return InvalidField(text, field)


def _size(value: object) -> Size | None:
    return Size.parse(value) if isinstance(value, str) else None


def _format(value: object) -> ImageFormat | None:
    return value if value in ("png", "jpeg", "webp") else None
