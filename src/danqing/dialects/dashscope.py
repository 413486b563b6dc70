"""DashScope's Qwen-Image body on the OpenAI route as new-api relays take it. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from danqing.dialects import openai_shapes
from danqing.dialects.base import Dialect, Reply
from danqing.dialects.fields import (
    Seed,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_size,
    validate,
)
from danqing.domain.card import Card
from danqing.domain.errors import DanqingError, InvalidField, MissingField, UnsupportedField
from danqing.domain.task import Delivery, ImageResult, ImageTask

NEGATIVE_CHARS_MAX = 500
"""The provider cuts a longer negative prompt (Model Studio's qwen-image page)."""


class Message(Wire):
    role: Literal["user"]
    content: object = None


class Content(Wire):
    """A part of a message. Images are known only to be refused by name."""

    text: str | None = None
    image: object = None
    type: Literal["text"] | None = None


class Input(Wire):
    """Either one user message or `prompt`; `negative_prompt` as the provider's SDK writes it."""

    messages: list[object] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None


class Parameters(Wire):
    negative_prompt: str | None = None
    prompt_extend: bool = True
    watermark: bool = False
    size: str | None = None
    n: int | None = None
    seed: Seed | None = None


class DashScopeBody(Wire):
    model: str | None = None
    input: Input
    parameters: Parameters = Parameters()


class DashScopeDialect(Dialect):
    """Body as DashScope's, answers and errors as OpenAI's."""

    name = "dashscope"
    body = DashScopeBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(DashScopeBody, body)
        parameters = wire.parameters
        prompt, param = _read_input(wire.input)
        prompt, cut = read_prompt(prompt, param, card)
        negative, negative_cut = _read_negative(wire, card)
        if parameters.watermark:
            param = "parameters.watermark"
            raise UnsupportedField(f"'{param}' may not be true: there is no brand mark.", param)
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=read_size(parameters.size, card, "parameters.size"),
            quality=card.quality_default,
            n=read_n(parameters.n, card.n_default, card.n_max, "parameters.n"),
            negative_prompt=negative,
            seed=parameters.seed,
            prompt_extend=parameters.prompt_extend,
        )
        return task, Delivery(format=card.format, truncated=cut + negative_cut)

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return openai_shapes.encode_images(result, delivery)

    def encode_error(self, error: DanqingError, request_id: str) -> Reply:
        return openai_shapes.encode_error(error, request_id)


def _read_input(wire: Input) -> tuple[str, str]:
    """The prompt and its path on the wire."""
    if wire.messages is None:
        if wire.prompt is None:
            raise MissingField("input.messages")
        return wire.prompt, "input.prompt"
    if wire.prompt is not None:
        raise InvalidField(
            "'input.prompt' and 'input.messages' exclude each other.", "input.prompt"
        )
    if len(wire.messages) != 1:
        raise InvalidField("'input.messages' must hold exactly one message.", "input.messages")
    path = "input.messages[0].content"
    content = validate(Message, wire.messages[0], "input.messages[0]").content
    if content is None:
        raise MissingField(path)
    if isinstance(content, str):
        return content, path
    parts = cast("list[object]", content) if isinstance(content, list) else []
    if len(parts) != 1:
        raise InvalidField(f"'{path}' must hold exactly one text.", path)
    part = validate(Content, parts[0], f"{path}[0]")
    if part.image is not None:
        param = f"{path}[0].image"
        raise UnsupportedField(f"'{param}' is not supported: this route draws from text.", param)
    if part.text is None:
        raise MissingField(f"{path}[0].text")
    return part.text, f"{path}[0].text"


def _read_negative(wire: DashScopeBody, card: Card) -> tuple[str, tuple[str, ...]]:
    """The docs put it into `parameters`, the `dashscope` SDK into `input`."""
    in_input, in_parameters = wire.input.negative_prompt, wire.parameters.negative_prompt
    if in_input is not None and in_parameters not in (None, in_input):
        raise InvalidField(
            "'parameters.negative_prompt' differs from 'input.negative_prompt'.",
            "parameters.negative_prompt",
        )
    if in_input is not None:
        return clip(in_input, "input.negative_prompt", card, chars_max=NEGATIVE_CHARS_MAX)
    param = "parameters.negative_prompt"
    return clip(in_parameters or "", param, card, chars_max=NEGATIVE_CHARS_MAX)
