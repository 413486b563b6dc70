"""POST /v1/chat/completions: drawing by `prompt` ("draw") and by `messages`. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from danqing.dialects import openai_shapes
from danqing.dialects.base import Dialect, Reply
from danqing.dialects.fields import (
    EndUser,
    Form,
    Seed,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_quality,
    read_size,
    refuse_stream,
    validate,
)
from danqing.domain.card import Card
from danqing.domain.errors import (
    AuthError,
    DanqingError,
    InvalidField,
    MissingField,
    QuotaExceeded,
    UnsupportedField,
)
from danqing.domain.task import DeliveredImage, Delivery, ImageResult, ImageTask

BAD_KEY = "密钥错误或已过期，请联系管理员获取"
"""Clients match its first words; the original goes on to name a site."""
NO_QUOTA = "当前额度不足，请充值后继续使用"


class DrawBody(Wire):
    """What draw documents (`prompt`, `model`), OpenAI's `n`, and our extensions."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    seed: Seed | None = None
    negative_prompt: str = ""
    user: EndUser | None = None
    stream: bool | None = None


class DrawDialect(Dialect):
    """One image per call, and HTTP 200 whatever happens."""

    name = "draw"
    body = DrawBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        wire = validate(DrawBody, body)
        prompt, cut = read_prompt(wire.prompt, "prompt", card)
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        refuse_stream(wire.stream)
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=read_size(wire.size, card),
            quality=card.quality_default,
            n=read_n(wire.n, 1, 1),
            negative_prompt=negative,
            seed=wire.seed,
            end_user=wire.user or None,
        )
        return task, Delivery(format=card.format, truncated=cut + negative_cut)

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        return openai_shapes.encode_images(result, delivery)

    def encode_error(self, error: DanqingError, request_id: str) -> Reply:
        reply = openai_shapes.encode_error(error, request_id)
        body = reply.body
        if isinstance(error, AuthError):
            body = {"codes": 900, "mess": BAD_KEY, "data": "token"}
        elif isinstance(error, QuotaExceeded):
            body = {"codes": 300, "mess": NO_QUOTA, "data": ""}
        return Reply(200, body, reply.headers)


# Text parameters that chat front ends send with every request and that mean nothing for images.
MEANINGLESS = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "parallel_tool_calls",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "repetition_penalty",
        "service_tier",
        "stop",
        "store",
        "stream_options",
        "temperature",
        "tool_choice",
        "top_k",
        "top_p",
        "verbosity",
    }
)


class ChatBody(Wire):
    """OpenAI chat completion's `messages`, and image parameters as extensions."""

    messages: list[object]
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    seed: Seed | None = None
    negative_prompt: str = ""
    user: EndUser | None = None
    safety_identifier: EndUser | None = None
    stream: bool | None = None
    modalities: list[Literal["text", "image"]] | None = None
    response_format: object = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None


class Message(Wire):
    """One turn. `content` is a string or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: object = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[object] | None = None
    reasoning_content: str | None = None


class Part(Wire):
    """A part of a message. The kinds that are no text are known only to be refused by name."""

    type: Literal["text", "image_url", "input_audio", "file"]
    text: str | None = None
    image_url: object = None
    input_audio: object = None
    file: object = None


class ChatDialect(Dialect):
    """The last user message is drawn; the answer shows the images as Markdown."""

    name = "chat"
    body = ChatBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        ignored = tuple(sorted(key for key in MEANINGLESS if body.get(key) is not None))
        wire = validate(ChatBody, {key: body[key] for key in body if key not in MEANINGLESS})
        prompt, param, history = _read_messages(wire.messages)
        prompt, cut = read_prompt(prompt, param, card)
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        _refuse_unsupported(wire)
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=read_size(wire.size, card),
            quality=read_quality(wire.quality, card),
            n=read_n(wire.n, card.n_default, card.n_max),
            negative_prompt=negative,
            seed=wire.seed,
            end_user=wire.safety_identifier or wire.user or None,
            history=history,
        )
        delivery = Delivery(
            form=_read_form(wire.response_format),
            format=card.format,
            ignored=ignored,
            truncated=cut + negative_cut,
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
        prompt_tokens, completion_tokens = openai_shapes.count_usage(result)
        content = "\n\n".join(_markdown(image, delivery) for image in result.delivered)
        message = {"role": "assistant", "content": content, "refusal": None}
        body: dict[str, Any] = {
            "id": f"chatcmpl-{reply_id}",
            "object": "chat.completion",
            "created": result.created,
            "model": result.model,
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        return Reply(200, body)

    def encode_error(self, error: DanqingError, request_id: str) -> Reply:
        return openai_shapes.encode_error(error, request_id)


def _read_messages(messages: list[object]) -> tuple[str | None, str, tuple[str, ...]]:
    """The last user turn's text, its path on the wire, and the texts of all other turns."""
    turns: list[tuple[str, str | None]] = []
    for index, raw in enumerate(messages):
        message = validate(Message, raw, f"messages[{index}]")
        turns.append((message.role, _read_content(message.content, f"messages[{index}].content")))
    asked = [index for index, (role, _) in enumerate(turns) if role == "user"]
    if not asked:
        raise InvalidField("'messages' must hold a message of the role 'user'.", "messages")
    last = asked[-1]
    history = tuple(text for index, (_, text) in enumerate(turns) if index != last and text)
    return turns[last][1], f"messages[{last}].content", history


def _read_content(content: object, path: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidField(f"'{path}' must be a string or a list of text parts.", path)
    parts: list[str] = []
    for index, raw in enumerate(cast("list[object]", content)):
        part_path = f"{path}[{index}]"
        part = validate(Part, raw, part_path)
        if part.type != "text":
            raise UnsupportedField(f"'{part_path}': only parts of type 'text' are read.", part_path)
        if part.text is None:
            raise MissingField(f"{part_path}.text")
        parts.append(part.text)
    return "\n".join(parts)


def _refuse_unsupported(wire: ChatBody) -> None:
    refuse_stream(wire.stream)
    for param in ("tools", "functions", "logprobs", "top_logprobs"):
        if getattr(wire, param):
            raise UnsupportedField(f"'{param}' is not supported: this route draws images.", param)


def _read_form(response_format: object) -> Form:
    """ "url" or "b64_json" (our extension); chat's own {"type": "text"} is what we answer anyway."""
    if response_format in (None, {"type": "text"}, "url"):
        return "url"
    if response_format == "b64_json":
        return "b64_json"
    raise UnsupportedField(
        "'response_format' may be 'url', 'b64_json' or {\"type\": \"text\"} here.",
        "response_format",
    )


def _markdown(image: DeliveredImage, delivery: Delivery) -> str:
    url = image.url
    if delivery.form == "b64_json":
        url = f"data:image/{image.format};base64,{image.b64}"
    return f"![image]({url})"
