"""OpenAI Images (also jimeng's relays): POST /v1/images/generations. A pure codec; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from danqing.dialects import jimeng, openai_shapes
from danqing.dialects.base import Dialect, Reply, ServerEvent
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
    validate,
)
from danqing.domain.card import Card, ImageFormat
from danqing.domain.errors import DanqingError, MissingField, UnknownField, UnsupportedField
from danqing.domain.task import Delivery, ImageResult, ImageTask, StreamEvent, StreamHead


class ImageFields(Wire):
    """What openai-openapi's CreateImageRequest and CreateImageEditRequest share, jimeng's `watermark`, and our
    extensions `seed` and `negative_prompt`."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    response_format: Form | None = None
    user: EndUser | None = None
    safety_identifier: EndUser | None = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    seed: Seed | None = None
    negative_prompt: str = ""
    watermark: bool | None = None


class GenerationBody(ImageFields):
    """openai-openapi's CreateImageRequest, and our extensions."""

    style: Style | None = None


class OpenAIDialect(Dialect):
    name = "openai"
    body = GenerationBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        if "jimeng" not in card.features:
            return self._decode(body, card)
        plain, changes = jimeng.translate(body, card)
        task, delivery = self._decode(plain, card, tuple(jimeng.JimengHabits.model_fields))
        return replace(task, **changes), delivery

    def _decode(
        self, body: Mapping[str, object], card: Card, also: tuple[str, ...] = ()
    ) -> tuple[ImageTask, Delivery]:
        wire = validate(GenerationBody, body, also=("input", *also))
        if wire.size is None and "size_required" in card.features:
            read_prompt(wire.prompt, "prompt", card)  # what is wrong with it comes first
            raise MissingField("size")
        task, delivery = read_fields(wire, card)
        task = replace(
            task,
            size=read_size(wire.size, card),
            style=read_style(wire.style, card),
            prompt_extend="revised_prompt" in card.features,
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return openai_shapes.encode_images(result, delivery)

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        return openai_shapes.encode_error(error, request_id, delivery)

    def encode_event(
        self, event: StreamEvent, head: StreamHead, delivery: Delivery
    ) -> list[ServerEvent]:
        return openai_shapes.encode_event(event, head, delivery)


def read_fields(wire: ImageFields, card: Card) -> tuple[ImageTask, Delivery]:
    """The task, at the model's default size, and the delivery that the shared fields ask for. Raises RequestError."""
    prompt, cut = read_prompt(wire.prompt, "prompt", card)
    negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
    check_watermark(wire.watermark, card)
    check_stream(wire.stream, wire.partial_images, card)
    image_format, compression = read_format(wire.output_format, wire.output_compression, card)
    task = ImageTask(
        model=card.name,
        prompt=prompt,
        size=card.sizes.default,
        quality=read_quality(wire.quality, card),
        n=read_n(wire.n, card.n_default, card.n_max),
        negative_prompt=negative,
        seed=wire.seed,
        ai_label=wire.watermark is not False,
        end_user=wire.safety_identifier or wire.user or None,
        moderation=read_moderation(wire.moderation, card),
        transparent=read_background(wire.background, image_format, card),
    )
    delivery = Delivery(
        form=read_form(wire.response_format, card, stream=wire.stream is True),
        format=image_format,
        compression=compression,
        truncated=cut + negative_cut,
        stream=wire.stream is True,
        partial_images=wire.partial_images or 0,
        echo="echo" in card.features,
        user_errors="user_errors" in card.features,
    )
    return task, delivery


def check_watermark(watermark: bool | None, card: Card) -> None:
    """Raises UnknownField where the model has no such switch."""
    if watermark is not None and "watermark" not in card.features:
        raise UnknownField("watermark")


def read_background(asked: str | None, image_format: ImageFormat, card: Card) -> bool:
    """Whether the background is left out. Raises UnsupportedField where the model or the format has no opacity."""
    if asked != "transparent":
        return False
    if "transparent" not in card.features:
        raise UnsupportedField(
            f"'background' may not be 'transparent' with the model '{card.name}'.", "background"
        )
    if image_format == "jpeg":
        raise UnsupportedField(
            "'background': 'transparent' needs 'output_format' png or webp.", "background"
        )
    return True


def read_moderation(asked: Literal["auto", "low"] | None, card: Card) -> Literal["low"] | None:
    """What goes on to a provider. Raises UnsupportedField where there is none that could be asked for less."""
    if asked != "low":
        return None
    if not card.knows("moderation"):
        raise UnsupportedField("'moderation' may not be 'low' here.", "moderation")
    return asked


def check_stream(stream: bool | None, partial_images: int | None, card: Card) -> None:
    """Raises UnsupportedField for a stream from a model without the feature, and for looks without a stream."""
    if stream and "stream" not in card.features:
        raise UnsupportedField(f"'stream' is not supported by the model '{card.name}'.", "stream")
    if partial_images and not stream:
        raise UnsupportedField("'partial_images' needs 'stream': true.", "partial_images")


def read_form(asked: Form | None, card: Card, *, stream: bool = False) -> Form:
    """Links or base64. Raises UnsupportedField, UnknownField."""
    if asked == "url" and stream:
        raise UnsupportedField(
            "'response_format' may not be 'url' in a stream: its events carry base64.",
            "response_format",
        )
    if asked is None and stream:
        return "b64_json"
    if asked is None:
        return "b64_json" if "b64_default" in card.features else "url"
    if "response_format" not in card.features:
        # As gpt-image does: it answers in base64 and knows no such parameter.
        raise UnknownField("response_format")
    return asked


def read_format(
    asked: ImageFormat | None, compression: int | None, card: Card
) -> tuple[ImageFormat, int | None]:
    """Format and compression; compression means something for jpeg and webp only. Raises UnsupportedField."""
    for param, value in (("output_format", asked), ("output_compression", compression)):
        if value is not None and "output_format" not in card.features:
            raise UnsupportedField(f"'{param}' is not supported by the model '{card.name}'.", param)
    image_format = asked or card.format
    if image_format == "png" and compression not in (None, 100):
        raise UnsupportedField(
            "'output_compression' other than 100 needs 'output_format' jpeg or webp.",
            "output_compression",
        )
    return image_format, None if image_format == "png" else compression
