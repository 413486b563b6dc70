"""Volcengine Ark's image generation (Seedream): POST /api/v3/images/generations. A pure codec; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field

from danqing.dialects import ark_shapes
from danqing.dialects.base import Dialect, Reply, ServerEvent
from danqing.dialects.fields import (
    EndUser,
    Form,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_references,
    read_size,
    read_source,
    validate,
)
from danqing.dialects.prompt_hints import read_count, read_ratio
from danqing.domain.card import Card
from danqing.domain.errors import (
    DanqingError,
    InvalidField,
    UnsupportedField,
)
from danqing.domain.sizes import SQUARE, Size
from danqing.domain.task import (
    SEED_MAX,
    Delivery,
    ImageResult,
    ImageSource,
    ImageTask,
    StreamEvent,
    StreamHead,
)

IMAGES_MAX = 15
"""References and outputs of one call together (Ark's image generation API)."""
MAX_IMAGES = "sequential_image_generation_options.max_images"


class SequentialOptions(Wire):
    max_images: Annotated[int, Field(ge=1, le=IMAGES_MAX)] | None = None


class OptimizeOptions(Wire):
    mode: Literal["standard", "fast"] | None = None


class ArkBody(Wire):
    """The documented fields, those that only the SDK knows, and our extensions `negative_prompt` and `user`."""

    model: str | None = None
    prompt: str
    image: object = None
    size: str | None = None
    seed: Annotated[int, Field(ge=-1, le=SEED_MAX)] | None = None
    guidance_scale: float | None = None
    sequential_image_generation: Literal["auto", "disabled"] = "disabled"
    sequential_image_generation_options: SequentialOptions | None = None
    stream: bool | None = None
    response_format: Form = "url"
    watermark: bool = True
    optimize_prompt: bool | None = None
    optimize_prompt_options: OptimizeOptions | None = None
    output_format: Literal["png", "jpeg"] | None = None
    tools: list[object] | None = None
    background: object = None
    layer_decomposition: object = None
    negative_prompt: str = ""
    user: EndUser | None = None


class ArkDialect(Dialect):
    """One image, or a series where the body says so; under an AI label unless a waiver drops it."""

    name = "ark"
    body = ArkBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(ArkBody, body)
        prompt, cut = read_prompt(wire.prompt, "prompt", card)
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        _refuse_unsupported(wire, card)
        references = read_references(
            _read_images(wire.image), "image", card, references_max=IMAGES_MAX - 1
        )
        size, fits = _read_size(wire.size, prompt, card)
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=size,
            quality=card.quality_default,
            n=_read_series(wire, prompt, card, len(references)),
            negative_prompt=negative,
            seed=None if wire.seed == -1 else wire.seed,
            prompt_extend=wire.optimize_prompt is True or wire.optimize_prompt_options is not None,
            ai_label=wire.watermark,
            end_user=wire.user or None,
            references=references,
            fit_reference=fits and bool(references),
        )
        delivery = Delivery(
            form=wire.response_format,
            format=wire.output_format or card.format,
            truncated=cut + negative_cut,
            stream=wire.stream is True,
            asked_model=wire.model or None,
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return ark_shapes.encode_images(result, delivery)

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        return ark_shapes.encode_error(error, request_id, delivery)

    def encode_event(
        self, event: StreamEvent, head: StreamHead, delivery: Delivery
    ) -> list[ServerEvent]:
        return ark_shapes.encode_event(event, head, delivery)


def _refuse_unsupported(wire: ArkBody, card: Card) -> None:
    if wire.stream and "stream" not in card.features:
        raise UnsupportedField(f"'stream' is not supported by the model '{card.name}'.", "stream")
    if wire.guidance_scale is not None:
        raise UnsupportedField(
            "'guidance_scale' is not supported: a model's guidance goes with its quality.",
            "guidance_scale",
        )
    if wire.output_format is not None and "output_format" not in card.features:
        raise UnsupportedField(
            f"'output_format' is not supported by the model '{card.name}'.", "output_format"
        )
    options = wire.optimize_prompt_options
    if options and options.mode == "fast" and "optimize_fast" not in card.features:
        param = "optimize_prompt_options.mode"
        raise UnsupportedField(f"'{param}' may not be 'fast' for '{card.name}'.", param)
    for param in ("tools", "background", "layer_decomposition"):
        if getattr(wire, param) not in (None, False, []):
            raise UnsupportedField(f"'{param}' is not supported here.", param)


def _read_images(image: object) -> tuple[ImageSource, ...]:
    """`image`: one picture or a list, each a URL or a data URL."""
    if image is None:
        return ()
    if isinstance(image, str):
        return (read_source(image, "image"),)
    pictures = cast("list[object]", image) if isinstance(image, list) else [None]
    sources: list[ImageSource] = []
    for index, picture in enumerate(pictures):
        if not isinstance(picture, str):
            raise InvalidField("'image' must be a string or a list of strings.", "image")
        sources.append(read_source(picture, f"image[{index}]"))
    return tuple(sources)


def _read_size(size: str | None, prompt: str, card: Card) -> tuple[Size, bool]:
    """The size in pixels, and whether its ratio is still open: a tier's, of a prompt that names none.

    What is open is a reference's ratio to say; without one it is a square.
    """
    tier = card.sizes.tier(size if size is not None else card.sizes.default_tier or "")
    if tier is None:
        return read_size(size, card), False
    ratio = read_ratio(prompt)
    return tier.get(ratio or SQUARE, tier[SQUARE]), ratio not in tier


def _read_series(wire: ArkBody, prompt: str, card: Card, references: int) -> int:
    """How many images: one, or for "auto" what the prompt says, else `max_images`, else one.

    With the references no more than 15, nor more than the card's. Raises InvalidField, TooManyImages,
    UnsupportedField.
    """
    options = wire.sequential_image_generation_options
    asked = None if options is None else options.max_images
    if wire.sequential_image_generation == "disabled":
        if asked is not None:
            raise UnsupportedField(
                f"'{MAX_IMAGES}' needs 'sequential_image_generation' to be 'auto'.", MAX_IMAGES
            )
        return 1
    if "sequential" not in card.features:
        param = "sequential_image_generation"
        raise UnsupportedField(f"'{param}' may not be 'auto' for '{card.name}'.", param)
    most = min(card.n_max, IMAGES_MAX - references)
    limit = read_n(asked, most, most, MAX_IMAGES)
    said = read_count(prompt)
    if said is not None:
        return min(said, limit)
    return limit if asked is not None else 1
