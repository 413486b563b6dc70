"""OpenAI's edits and variations: POST /v1/images/edits (multipart or JSON) and /v1/images/variations. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from danqing.dialects import openai_shapes
from danqing.dialects.base import Dialect, Reply, ServerEvent, Upload
from danqing.dialects.fields import (
    EndUser,
    Form,
    Seed,
    Wire,
    clip,
    read_n,
    read_references,
    read_size,
    read_source,
    validate,
)
from danqing.dialects.forms import FormBody, typed, uploads_of
from danqing.dialects.openai import (
    ImageFields,
    check_watermark,
    read_fields,
    read_form,
)
from danqing.domain.card import Card
from danqing.domain.errors import (
    DanqingError,
    InvalidField,
    MissingField,
    UnsupportedField,
)
from danqing.domain.sizes import Size
from danqing.domain.task import (
    Delivery,
    ImageResult,
    ImageSource,
    ImageTask,
    StreamEvent,
    StreamHead,
)

REFERENCES_MAX = 16
"""openai-openapi's `maxItems` of `images`."""


Strength = Annotated[float, Field(ge=0, le=1)]


class ImageRef(Wire):
    """A picture in the JSON variant: openai-openapi's ImageRefParam."""

    image_url: str | None = None
    file_id: str | None = None


class EditForm(ImageFields):
    """openai-openapi's CreateImageEditRequest but for its files, and our extensions."""

    input_fidelity: Literal["low", "high"] | None = None
    strength: Strength | None = None


class EditBody(EditForm):
    """openai-openapi's EditImageBodyJsonParam."""

    images: list[ImageRef]
    mask: ImageRef | None = None


class VariationForm(Wire):
    """openai-openapi's CreateImageVariationRequest but for its file, and our extensions."""

    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: Form | None = None
    user: EndUser | None = None
    strength: Strength | None = None
    seed: Seed | None = None
    negative_prompt: str = ""
    watermark: bool | None = None


class OpenAIEditsDialect(Dialect):
    name = "openai_edits"
    body = EditBody
    form = EditForm
    files = ("image", "image[]", "mask")

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire, references, mask = _read_edit(body)
        param = "image" if isinstance(body, FormBody) else "images"
        task, delivery = read_fields(wire, card)
        if task.transparent and not card.may_be_relayed:
            raise UnsupportedField("'background' may not be 'transparent' for edits.", "background")
        size, fit = read_edit_size(wire.size, card)
        task = replace(
            task,
            size=size,
            references=read_references(references, param, card, references_max=REFERENCES_MAX),
            mask=mask,
            mask_from_alpha=mask is None and "alpha_mask" in card.features,
            fit_reference=fit,
            strength=wire.strength,
            input_fidelity=wire.input_fidelity if card.knows("input_fidelity") else None,
        )
        if wire.input_fidelity == "high" and task.input_fidelity is None:
            # The picture is always taken as it is; LobeChat says so with every edit.
            delivery = replace(delivery, ignored=("input_fidelity",))
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


class OpenAIVariationsDialect(Dialect):
    name = "openai_variations"
    body = form = VariationForm
    files = ("image",)

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        rest = _without_files(body, *self.files)
        wire = validate(VariationForm, typed(rest, VariationForm), also=self.files)
        references = [_one_file(body, "image", needed=True)]
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        check_watermark(wire.watermark, card)
        size, fit = read_edit_size(wire.size, card)
        task = ImageTask(
            model=card.name,
            prompt="",
            size=size,
            quality=card.quality_default,
            n=read_n(wire.n, card.n_default, card.n_max),
            negative_prompt=negative,
            seed=wire.seed,
            ai_label=wire.watermark is not False,
            end_user=wire.user or None,
            references=read_references([one for one in references if one], "image", card),
            fit_reference=fit,
            strength=wire.strength,
        )
        delivery = Delivery(
            form=read_form(wire.response_format, card),
            format=card.format,
            truncated=negative_cut,
            echo="echo" in card.features,
            user_errors="user_errors" in card.features,
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return openai_shapes.encode_images(result, delivery)

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        return openai_shapes.encode_error(error, request_id, delivery)


def _read_edit(
    body: Mapping[str, object],
) -> tuple[EditForm, list[ImageSource], ImageSource | None]:
    """The fields, the references and the mask, of either variant."""
    if not isinstance(body, FormBody):
        linked = validate(EditBody, body)
        if not linked.images:
            raise MissingField("images")
        references = [_linked(one, f"images[{at}]") for at, one in enumerate(linked.images)]
        return linked, references, linked.mask and _linked(linked.mask, "mask")
    if "markup" in body:
        raise UnsupportedField("'markup' is not supported: send a mask.", "markup")
    files = OpenAIEditsDialect.files
    rest = _without_files(body, *files)
    if "images" in rest:
        raise UnsupportedField("'images' is for JSON bodies: a form has 'image'.", "images")
    wire = validate(EditForm, typed(rest, EditForm), also=files)
    return wire, _all_files(body), _one_file(body, "mask")


def _linked(ref: ImageRef, path: str) -> ImageSource:
    """The picture of the JSON variant."""
    if ref.file_id is not None:
        raise UnsupportedField(
            f"'{path}.file_id' is not supported: send 'image_url'.", f"{path}.file_id"
        )
    if ref.image_url is None:
        raise MissingField(f"{path}.image_url")
    return read_source(ref.image_url, f"{path}.image_url")


def _without_files(body: Mapping[str, object], *names: str) -> FormBody:
    return FormBody({name: value for name, value in body.items() if name not in names})


def _all_files(body: Mapping[str, object]) -> list[ImageSource]:
    """The files `image` and `image[]`, in order. Raises MissingField, InvalidField."""
    files = [*_files(body, "image"), *_files(body, "image[]")]
    if not files:
        raise MissingField("image")
    if len(files) == 1:
        return [ImageSource("image", data=files[0].data)]
    return [ImageSource(f"image[{at}]", data=one.data) for at, one in enumerate(files)]


def _one_file(body: Mapping[str, object], name: str, *, needed: bool = False) -> ImageSource | None:
    """Raises MissingField, InvalidField."""
    files = _files(body, name)
    if len(files) > 1:
        raise InvalidField(f"'{name}' must be one file.", name)
    if not files and needed:
        raise MissingField(name)
    return ImageSource(name, data=files[0].data) if files else None


def _files(body: Mapping[str, object], name: str) -> list[Upload]:
    files = uploads_of(body.get(name))
    if not files and body.get(name) is not None:
        raise InvalidField(f"'{name}' must be a file: give its part a filename.", name)
    return files


def read_edit_size(size: str | None, card: Card) -> tuple[Size, bool]:
    """The size, and whether the first reference's counts instead: for `auto`, and where nothing is said."""
    if size not in (None, "auto"):
        return read_size(size, card), False
    return card.sizes.named.get("auto", card.sizes.default), True
