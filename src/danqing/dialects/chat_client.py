"""Drawing by chat, seen from its client: gateways that answer `messages` with pictures, and "draw". Pure; knows no HTTP library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from danqing.dialects.answers import (
    NO_MONEY,
    SHUT_OUT,
    body_of,
    check_extras,
    data_url,
    in_places,
    list_of,
    mapping_of,
    openais_own,
    read_image,
    read_object,
    refuse_unsaid,
    text_of,
)
from danqing.dialects.client import ClientDialect, Incoming, Outgoing, ProviderResult, Target
from danqing.dialects.openai_client import OpenAIClient
from danqing.domain.errors import ContentRefused, DanqingError, ProviderFailed
from danqing.domain.task import Delivery, ImageTask

PATH = "/chat/completions"
CHAT_EXTRAS = frozenset({"n", "seed", "quality", "negative_prompt", "response_format"})
DRAW_EXTRAS = frozenset({"seed", "negative_prompt", "user"})
"""Fields beyond what chat completions, and draw, document, or that mean text there: gateways that draw
mostly know no `n` and no `seed`. Our own server knows them all.

`size` is said always: neither document has it, and whoever does not know it draws at a size of their own.
"""

_OPENAI = OpenAIClient()

# A provider's text may be long and malicious: whatever it is, it is looked through in linear time.
_MARKDOWN = re.compile(r"!\[[^\[\]]{0,1000}\]\(\s{0,8}<?([^)\s>]+)")
# Links that stand bare, or under words: only what says by its end that it is a picture.
_LINK = re.compile(
    r"https?://[^\s()<>\"'\]\u0080-\uffff]{1,2000}\.(?i:png|jpe?g|webp)(?:\?[^\s()<>\"'\]\u0080-\uffff]*)?"
)
_BARE_CHARS_MAX = 100_000
"""Of a text in which bare links are looked for."""
_DATA = re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class ChatClient(ClientDialect):
    """`messages` in, pictures out: as Markdown, as data URLs, or in an `images` list (OpenRouter)."""

    name = "chat"

    extras: frozenset[str] = field(default=CHAT_EXTRAS)

    def __post_init__(self) -> None:
        check_extras(self.extras, CHAT_EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        said = {
            "n": task.n > 1 and "n" not in self.extras,
            "quality": task.quality not in ("", "standard") and "quality" not in self.extras,
            "seed": task.seed is not None and "seed" not in self.extras,
            "negative_prompt": bool(task.negative_prompt) and "negative_prompt" not in self.extras,
            "form": delivery.form == "b64_json" and "response_format" not in self.extras,
            # A chat model would draw on what was only to be checked.
            "history": bool(task.history),
        }
        return frozenset(name for name, cannot in said.items() if cannot) | _unsaid(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        content: str | list[dict[str, Any]] = task.prompt
        if target.references:
            content = [{"type": "text", "text": task.prompt}]
            content += [
                {"type": "image_url", "image_url": {"url": data_url(image)}}
                for image in target.references
            ]
        fields: dict[str, Any] = {
            "model": target.model,
            "messages": [{"role": "user", "content": content}],
            "modalities": ["image", "text"],
            "n": task.n,
            "size": str(task.size),
        }
        fields |= _optional(task)
        if task.quality and "quality" in self.extras:
            fields["quality"] = task.quality
        if delivery.form == "b64_json":
            fields["response_format"] = "b64_json"
        return Outgoing("POST", PATH, json=fields)

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        body = body_of(answer, self.decode_error(answer))
        found = [url for choice in _choices(body) for url in _pictures(choice)]
        if not found:
            if any(_is_refusal(choice) for choice in _choices(body)):
                raise ContentRefused("assistant", 1)
            raise ProviderFailed("The provider answered without an image.")
        images = [read_image(url, None) for url in dict.fromkeys(found)]
        return ProviderResult(
            images=in_places(images, task.n),
            upstream_id=text_of(body.get("id")) or answer.headers.get("x-request-id") or None,
            usage=dict(mapping_of(body.get("usage"))),
        )

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        """OpenAI's error objects; also one that stands in a choice (OpenRouter), or names a message."""
        body = read_object(answer) or {}
        stated = mapping_of(body.get("error"))
        for choice in _choices(body):
            stated = stated or mapping_of(choice.get("error"))
        if not stated:
            return _OPENAI.decode_error(answer)
        if str(stated.get("param")).startswith("messages"):
            stated = {**stated, "param": "prompt"}
        status, code = answer.status, stated.get("code")
        if status < 400 and isinstance(code, int) and 400 <= code < 600:
            status = code  # OpenRouter: the stream of an answer had begun with 200
        raw = json.dumps({"error": stated}).encode()
        return _OPENAI.decode_error(Incoming(status, raw, answer.headers))


@dataclass(frozen=True)
class DrawClient(ClientDialect):
    """`prompt` in, one link out, and HTTP 200 whatever happens."""

    name = "draw"

    extras: frozenset[str] = field(default=DRAW_EXTRAS)

    def __post_init__(self) -> None:
        check_extras(self.extras, DRAW_EXTRAS)

    def unsupported(self, task: ImageTask, delivery: Delivery) -> frozenset[str]:
        said = {
            "n": task.n > 1,
            "quality": task.quality not in ("", "standard"),
            "seed": task.seed is not None and "seed" not in self.extras,
            "negative_prompt": bool(task.negative_prompt) and "negative_prompt" not in self.extras,
            "end_user": task.end_user is not None and "user" not in self.extras,
            "history": bool(task.history),
            "references": bool(task.references),
            "form": delivery.form == "b64_json",
        }
        return frozenset(name for name, cannot in said.items() if cannot) | _unsaid(task, delivery)

    def encode_request(self, task: ImageTask, delivery: Delivery, target: Target) -> Outgoing:
        refuse_unsaid(self.unsupported(task, delivery))
        fields = {"model": target.model, "prompt": task.prompt, "size": str(task.size)}
        return Outgoing("POST", PATH, json=fields | _optional(task))

    def decode_result(self, answer: Incoming, task: ImageTask) -> ProviderResult:
        error = self.decode_error(answer)
        if error is not None:
            raise error
        return _OPENAI.decode_result(answer, task)

    def decode_error(self, answer: Incoming) -> DanqingError | None:
        """`codes` 900 is our key there, 300 our balance; the rest are OpenAI's error objects."""
        body = read_object(answer) or {}
        code = text_of(body.get("codes"))
        if code and not list_of(body.get("data")):
            told = {"900": SHUT_OUT, "300": NO_MONEY}
            return ProviderFailed(told.get(code, "The provider of this model failed."))
        return _OPENAI.decode_error(answer)


def _unsaid(task: ImageTask, delivery: Delivery) -> frozenset[str]:
    """What neither wire can say. The pictures come in the format they come in."""
    said = {
        "prompt": not task.prompt,
        "style": task.style is not None,
        "prompt_extend": task.prompt_extend,
        "ai_label": not task.ai_label,
        "client_request_id": task.client_request_id is not None,
        "fit_reference": task.fit_reference,
        "strength": task.strength is not None,
        "brand_mark": task.brand_mark,
    }
    return frozenset(name for name, cannot in said.items() if cannot) | openais_own(task, delivery)


def _optional(task: ImageTask) -> dict[str, Any]:
    fields = {"seed": task.seed, "user": task.end_user}
    said: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if task.negative_prompt:
        said["negative_prompt"] = task.negative_prompt
    return said


def _choices(body: Mapping[str, object]) -> list[Mapping[str, object]]:
    return [mapping_of(choice) for choice in list_of(body.get("choices"))]


def _is_refusal(choice: Mapping[str, object]) -> bool:
    refusal = mapping_of(choice.get("message")).get("refusal")
    return choice.get("finish_reason") == "content_filter" or bool(refusal)


def _pictures(choice: Mapping[str, object]) -> Iterator[str]:
    """The addresses (links, data URLs) of a choice's pictures: of its `images`, else of its content."""
    message = mapping_of(choice.get("message"))
    content = message.get("content")
    parts = [*list_of(message.get("images")), *list_of(content)]
    listed = [url for part in parts if (url := _url(mapping_of(part)))]
    if listed:
        yield from listed
        return
    texts = [content, *(mapping_of(part).get("text") for part in list_of(content))]
    for text in texts:
        if isinstance(text, str):
            found = _MARKDOWN.findall(text) or _DATA.findall(text)
            yield from found or _LINK.findall(text[:_BARE_CHARS_MAX])


def _url(part: Mapping[str, object]) -> str:
    """The address in one part: `{image_url: {url}}`, `{image_url: "…"}` or `{url}`."""
    found = part.get("image_url")
    if isinstance(found, dict):
        found = mapping_of(part.get("image_url")).get("url")
    url = found or part.get("url")
    return url if isinstance(url, str) else ""
