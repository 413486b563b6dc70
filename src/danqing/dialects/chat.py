"""POST /v1/chat/completions: drawing by `prompt` ("draw") and by `messages`. Pure; knows no HTTP library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from danqing.dialects import openai_shapes
from danqing.dialects.base import Dialect, Reply, ServerEvent
from danqing.dialects.chat_messages import UNUSED, Conversation, read_messages
from danqing.dialects.fields import (
    EndUser,
    Form,
    Seed,
    Wire,
    clip,
    read_n,
    read_prompt,
    read_quality,
    read_references,
    read_size,
    refuse_stream,
    validate,
)
from danqing.domain.card import Card
from danqing.domain.errors import (
    AuthError,
    DanqingError,
    ExclusiveFields,
    QuotaExceeded,
    UnsupportedField,
)
from danqing.domain.task import (
    Begun,
    Broken,
    DeliveredImage,
    Delivery,
    Finished,
    FinishedImage,
    ImageResult,
    ImageSource,
    ImageTask,
    StreamEvent,
    StreamHead,
)

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
        wire = validate(DrawBody, body, also=("messages",))
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

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
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
        "chat_id",
        "frequency_penalty",
        "include_reasoning",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "parallel_tool_calls",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "service_tier",
        "session_id",
        "stop",
        "store",
        "temperature",
        "thinking",
        "tool_choice",
        "top_k",
        "top_p",
        "verbosity",
    }
)


class StreamOptions(Wire):
    """`include_obfuscation` pads chunks against eavesdroppers who count bytes: we never do."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


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
    stream_options: StreamOptions | None = None
    edit_last_image: bool | None = None
    modalities: list[Literal["text", "image"]] | None = None
    response_format: object = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[object] | None = None
    functions: list[object] | None = None


class ChatDialect(Dialect):
    """The last user message is drawn, from its pictures if it has any; the answer shows the images as Markdown."""

    name = "chat"
    body = ChatBody

    def decode_request(self, body: Mapping[str, object], card: Card) -> tuple[ImageTask, Delivery]:
        ignored = [key for key in MEANINGLESS if body.get(key) is not None]
        meant = {key: body[key] for key in body if key not in MEANINGLESS}
        if meant.get("prompt") is not None and meant.get("messages") is not None:
            raise ExclusiveFields("prompt", "messages")
        wire = validate(ChatBody, meant, also=("prompt",))
        conversation = read_messages(wire.messages)
        references = _read_references(conversation, wire, card)
        prompt, cut = _read_prompt(conversation, card, optional=bool(references))
        negative, negative_cut = clip(wire.negative_prompt, "negative_prompt", card)
        _refuse_unsupported(wire)
        if conversation.has_earlier_pictures and not wire.edit_last_image:
            ignored.append(UNUSED)
        if wire.stream_options is not None and not wire.stream:
            ignored.append("stream_options")
        task = ImageTask(
            model=card.name,
            prompt=prompt,
            size=read_size(wire.size, card),
            quality=read_quality(wire.quality, card),
            n=read_n(wire.n, card.n_default, card.n_max),
            negative_prompt=negative,
            seed=wire.seed,
            end_user=wire.safety_identifier or wire.user or None,
            history=conversation.history,
            references=references,
            fit_reference=bool(references) and wire.size is None,
        )
        delivery = Delivery(
            form=_read_form(wire.response_format),
            format=card.format,
            ignored=tuple(sorted(ignored)),
            truncated=cut + negative_cut,
            stream=wire.stream is True,
            echo=bool(wire.stream and wire.stream_options and wire.stream_options.include_usage),
        )
        return task, delivery

    def encode_result(self, result: ImageResult, delivery: Delivery, reply_id: str) -> Reply:
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
            "usage": _usage(result),
        }
        return Reply(200, body)

    def encode_error(
        self, error: DanqingError, request_id: str, delivery: Delivery | None = None
    ) -> Reply:
        return openai_shapes.encode_error(error, request_id)

    def encode_event(
        self, event: StreamEvent, head: StreamHead, delivery: Delivery
    ) -> list[ServerEvent]:
        """openai-openapi's chat.completion.chunk objects; each image whole in one of them."""
        match event:
            case Begun():
                return [_chunk(head, delivery, {"role": "assistant", "content": ""})]
            case FinishedImage():
                gap = "\n\n" if head.n > 1 else ""
                return [_chunk(head, delivery, {"content": _markdown(event.image, delivery) + gap})]
            case Finished():
                last = [_chunk(head, delivery, {}, "stop")]
                if delivery.echo:
                    last.append(_chunk(head, delivery, None, usage=_usage(event.result)))
                return [*last, ServerEvent("[DONE]")]
            case Broken():
                error = openai_shapes.encode_error(event.error, head.reply_id).body
                return [ServerEvent(error)]
            case _:
                return []


def _chunk(
    head: StreamHead,
    delivery: Delivery,
    delta: dict[str, Any] | None,
    finish_reason: str | None = None,
    usage: dict[str, int] | None = None,
) -> ServerEvent:
    """One chunk; without `delta` the one that only states the usage, and has no choices."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    data: dict[str, Any] = {
        "id": f"chatcmpl-{head.reply_id}",
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": [] if delta is None else [choice],
    }
    if delivery.echo:  # asked for: every chunk has the key, the last one its value
        data["usage"] = usage
    return ServerEvent(data)


def _usage(result: ImageResult) -> dict[str, int]:
    usage = openai_shapes.count_usage(result)
    prompt_tokens, completion_tokens = usage.input, usage.output
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _read_references(
    conversation: Conversation, wire: ChatBody, card: Card
) -> tuple[ImageSource, ...]:
    """What an edit starts from: the last turn's pictures; the conversation's last one only where asked for."""
    own = conversation.pictures()
    if own:
        return read_references(own, f"{conversation.asking.path}.content", card)
    if not wire.edit_last_image:
        return ()
    last = conversation.last_picture()
    return () if last is None else read_references([last], "edit_last_image", card)


def _read_prompt(
    conversation: Conversation, card: Card, *, optional: bool
) -> tuple[str, tuple[str, ...]]:
    """The prompt, and its path where it was cut. A picture without words asks for a variation of it."""
    asking = conversation.asking
    if optional and not (asking.text or "").strip():
        return "", ()
    return read_prompt(asking.text, f"{asking.path}.content", card)


def _refuse_unsupported(wire: ChatBody) -> None:
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
    elif url is not None:  # a provider's own link may hold what would end it here
        url = url.replace("(", "%28").replace(")", "%29")
    return f"![image]({url})"
