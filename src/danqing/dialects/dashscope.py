"""DashScope's request body, and its dialect on the OpenAI route as new-api relays take it. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from danqing.dialects import openai_shapes
from danqing.dialects.base import Dialect, Reply
from danqing.dialects.fields import (
    Seed,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_references,
    read_size,
    read_source,
    validate,
)
from danqing.domain.card import Card
from danqing.domain.errors import DanqingError, ExclusiveFields, InvalidField, MissingField
from danqing.domain.task import Delivery, ImageResult, ImageSource, ImageTask

NEGATIVE_CHARS_MAX = 500
"""The provider cuts a longer negative prompt (Model Studio's qwen-image page)."""


class Message(Wire):
    role: Literal["user"]
    content: object = None


class Content(Wire):
    """A part of a message: a text, or a picture to edit."""

    text: str | None = None
    image: str | None = None
    type: Literal["text", "image"] | None = None


class Input(Wire):
    """Either one user message or `prompt`; `negative_prompt` as the provider's SDK writes it."""

    messages: list[object] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None


class Parameters(Wire):
    """`prompt_extend` absent: the model's default, which is true for those that extend prompts at all."""

    negative_prompt: str | None = None
    prompt_extend: bool | None = None
    watermark: bool = False
    size: str | None = None
    n: int | None = None
    seed: Seed | None = None


class DashScopeBody(Wire):
    model: str | None = None
    input: Input
    parameters: Parameters = Parameters()


@dataclass(frozen=True, slots=True)
class Asked:
    """What an `input` says. `param` is the prompt's path on the wire."""

    prompt: str
    param: str
    references: tuple[ImageSource, ...] = ()


class DashScopeDialect(Dialect):
    """Body as DashScope's, answers and errors as OpenAI's."""

    name = "dashscope"
    body = DashScopeBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(DashScopeBody, body)
        asked = _read_input(wire.input)
        return decode(asked, wire.input.negative_prompt, wire.parameters, card)

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return openai_shapes.encode_images(result, delivery)

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        return openai_shapes.encode_error(error, request_id)


def decode(
    asked: Asked, input_negative: str | None, parameters: Parameters, card: Card
) -> tuple[ImageTask, Delivery]:
    """The task that a DashScope body asks for; `input_negative` is `input`'s. Raises RequestError."""
    prompt, cut = read_prompt(asked.prompt, asked.param, card)
    negative, negative_cut = _read_negative(input_negative, parameters.negative_prompt, card)
    extend = parameters.prompt_extend
    references = asked.references
    task = ImageTask(
        model=card.name,
        prompt=prompt,
        size=read_size(parameters.size, card, "parameters.size"),
        quality=card.quality_default,
        n=read_n(parameters.n, card.n_default, card.n_max, "parameters.n"),
        negative_prompt=negative,
        seed=parameters.seed,
        prompt_extend="revised_prompt" in card.features if extend is None else extend,
        brand_mark=parameters.watermark,
        references=read_references(references, references[0].param, card) if references else (),
        # As the provider's editing models: the picture's own shape.
        fit_reference=bool(references) and parameters.size is None,
    )
    return task, Delivery(format=card.format, truncated=cut + negative_cut)


def _read_input(wire: Input) -> Asked:
    """An `input` of either kind. Raises RequestError."""
    if wire.messages is None:
        if wire.prompt is None:
            raise MissingField("input.messages")
        return Asked(wire.prompt, "input.prompt")
    if wire.prompt is not None:
        raise ExclusiveFields("input.prompt", "input.messages")
    return read_messages(wire.messages)


def read_messages(messages: list[object]) -> Asked:
    """One user message of one text and any number of pictures. Raises RequestError."""
    if len(messages) != 1:
        raise InvalidField("'input.messages' must hold exactly one message.", "input.messages")
    path = "input.messages[0].content"
    content = validate(Message, messages[0], "input.messages[0]").content
    if content is None:
        raise MissingField(path)
    if isinstance(content, str):
        return Asked(content, path)
    texts: list[tuple[str, str]] = []
    references: list[ImageSource] = []
    for index, given in enumerate(
        cast("list[object]", content) if isinstance(content, list) else []
    ):
        part = validate(Content, given, f"{path}[{index}]")
        if part.text is not None and part.image is not None:
            param = f"{path}[{index}].image"
            raise InvalidField(f"'{param}' and the text beside it are two parts.", param)
        if part.image is not None:
            param = f"{path}[{index}].image"
            references.append(read_source(part.image, param))
        elif part.text is not None:
            texts.append((part.text, f"{path}[{index}].text"))
        else:
            raise MissingField(f"{path}[{index}].text")
    if len(texts) != 1:
        raise InvalidField(f"'{path}' must hold exactly one text.", path)
    ((prompt, param),) = texts
    return Asked(prompt, param, tuple(references))


def _read_negative(
    in_input: str | None, in_parameters: str | None, card: Card
) -> tuple[str, tuple[str, ...]]:
    """The docs put it into `parameters`, the `dashscope` SDK into `input`."""
    if in_input is not None and in_parameters not in (None, in_input):
        raise InvalidField(
            "'parameters.negative_prompt' differs from 'input.negative_prompt'.",
            "parameters.negative_prompt",
        )
    if in_input is not None:
        return clip(in_input, "input.negative_prompt", card, chars_max=NEGATIVE_CHARS_MAX)
    param = "parameters.negative_prompt"
    return clip(in_parameters or "", param, card, chars_max=NEGATIVE_CHARS_MAX)
