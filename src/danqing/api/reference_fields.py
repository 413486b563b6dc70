"""What the fields of drawing requests mean, and what stands within them, for the API reference. Data and pure functions."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import BaseModel, create_model

from danqing.dialects.base import Dialect
from danqing.dialects.chat_messages import ImageUrl, Part
from danqing.dialects.chat_messages import Message as ChatMessage
from danqing.dialects.dashscope import Content
from danqing.dialects.dashscope import Message as DashScopeMessage
from danqing.dialects.jimeng import JimengHabits
from danqing.dialects.openai import GenerationBody

Schema = dict[str, Any]

TITLES = {
    "openai": "OpenAI Images",
    "openai_edits": "Edit",
    "openai_variations": "Variation",
    "jimeng": "jimeng",
    "chat": "Chat",
    "draw": "draw",
    "zhipu": "Zhipu",
    "dashscope": "Qwen-Image",
    "dashscope_native": "DashScope, messages",
    "dashscope_synthesis": "DashScope, prompt",
    "ark": "Volcengine Ark",
}
"""What people call each dialect."""


_PICTURE = "an http(s) URL, or a data URL in base64 (`data:image/png;base64,…`)"

# By path; a path in one dialect alone begins with its name and a colon, and goes first.
WORDS: dict[str, str] = {
    "model": "A name or alias of the catalog, in any case: `GET /v1/models` lists them. Absent: this route's default.",
    "prompt": "What to draw, up to the model's limit in characters.",
    "n": "How many images, up to the model's maximum. Absent: the model's default.",
    "size": "`WIDTHxHEIGHT`, or a name that the model has for one. Absent: the model's default.",
    "quality": "A quality of the model; it has a price of its own. Absent or `auto`: the model's default.",
    "style": "How loud the picture is, for models with the feature `style`.",
    "seed": "Our extension. The same seed gives the same picture; image *i* is drawn with `seed + i`.",
    "negative_prompt": "Our extension. What the picture should not show.",
    "user": "Your end user, kept with the task: an operator can block one.",
    "safety_identifier": "The same under OpenAI's newer name; it goes before `user`.",
    "stream": "Answer by server-sent events, each image as soon as it is finished.",
    "partial_images": "Looks at each unfinished image, in a stream.",
    "response_format": "Links, or the bytes in base64.",
    "output_format": "The format of the files, for models with the feature `output_format`.",
    "output_compression": "Quality of jpeg and webp files, 0–100.",
    "background": "`auto` and `opaque` are what is drawn anyway; `transparent` needs png or webp and a model with the feature, else it is refused by name.",
    "moderation": "`auto` is what is done anyway; `low` goes on to a provider that takes it, and is refused by name elsewhere.",
    "watermark": "The AI label. `false` needs the account's signed waiver.",
    "strength": "Our extension. How far to leave the picture: 0 keeps it, 1 draws anew. Absent: 0.75, for a variation 0.5, in a mask 1.",
    "input_fidelity": "Goes on to a provider that takes it; else the picture is taken as it is, and `high` is named in `x-danqing-ignored`.",
    "images": "The pictures to edit; the mask is for the first. As many as the model takes.",
    "images[].image_url": f"The picture: {_PICTURE}.",
    "images[].file_id": "Refused by name: there is no file store. Send `image_url`.",
    "mask": "Where to repaint the first picture: where this one, of the same size, is transparent.",
    "mask.image_url": f"The mask: {_PICTURE}.",
    "mask.file_id": "Refused by name.",
    "image": "The picture to edit.",
    "image[]": "The same part name for several pictures, as the official SDKs send them.",
    "openai_edits:size": "`WIDTHxHEIGHT`. Absent or `auto`: the model's size nearest to the first picture's shape.",
    "openai_variations:size": "`WIDTHxHEIGHT`. Absent: the model's size nearest to the picture's shape.",
    "openai_variations:image": "The picture to vary.",
    # jimeng
    "jimeng:size": "A ratio (`2:3`, at the 1K tier), a tier (`1K`, `2K`, `4K`: its square), or `WIDTHxHEIGHT`. Required, unless `ratio` or `width` says it.",
    "jimeng:n": "How many images for the one price of the call; absent: four.",
    "ratio": "The shape: `1:1`, `4:3`, `3:4`, `16:9`, `9:16`, `3:2`, `2:3` or `21:9`, at `resolution`.",
    "resolution": "The tier of `ratio`: `1k`, `2k` (when absent) or `4k`, which costs double.",
    "intelligent_ratio": "A ratio that the prompt names goes before `ratio`.",
    "width": "Pixels, beside `height`; one alone has 1024 beside it.",
    "height": "Pixels, beside `width`.",
    "sample_strength": "How far an edit may leave its picture, 0 to 1.",
    "jimeng:image": f"A picture to start from, or a list: {_PICTURE}.",
    "jimeng:images": "The same as `image`, always a list.",
    # chat
    "messages": "The conversation. Its last `user` message is drawn, from its pictures if it has any; the others are moderated, not drawn.",
    "messages[].role": "Whose message it is.",
    "messages[].content": "Words, or a list of parts.",
    "messages[].content[].type": "`text` or `image_url`; other kinds are refused by name.",
    "messages[].content[].text": "The words of a part of the type `text`.",
    "messages[].content[].image_url": f"The picture of a part of the type `image_url`: {_PICTURE}, bare or as `url`.",
    "messages[].content[].image_url.url": f"The picture: {_PICTURE}.",
    "messages[].content[].image_url.detail": "Means nothing here: a picture is taken as it is.",
    "messages[].content[].input_audio": "Refused by name.",
    "messages[].content[].file": "Refused by name.",
    "messages[].content[].cache_control": "Read over.",
    "messages[].content[].index": "Read over.",
    "messages[].images": "Pictures of an assistant's message, as OpenRouter has them.",
    **dict.fromkeys(
        (
            *("messages[].name", "messages[].refusal", "messages[].annotations"),
            *("messages[].reasoning", "messages[].reasoning_content"),
            "messages[].reasoning_details",
        ),
        "Read over: it belongs to a chat's history.",
    ),
    "chat:size": "Our extension, as OpenAI Images has it. Absent in an edit: the model's size nearest to the picture's shape.",
    "chat:quality": "Our extension, as OpenAI Images has it.",
    "chat:n": "How many images, all in one choice. Absent: the model's default.",
    "stream_options": "What else a stream says.",
    "stream_options.include_usage": "A last chunk with `usage`.",
    "stream_options.include_obfuscation": "Nothing is ever padded.",
    "edit_last_image": "Our extension. A message without a picture edits the conversation's last one.",
    "modalities": "Either or both; the answer is a picture anyway.",
    "chat:response_format": '`"url"` (when absent) or `"b64_json"`, our extension: how pictures stand in the answer. `{"type": "text"}` is fine.',
    "tools": "Only an empty list: this route draws.",
    "functions": "Only an empty list.",
    "logprobs": "Only `false`.",
    "top_logprobs": "Refused by name.",
    # draw
    "draw:n": "1.",
    "draw:stream": "Only `false`.",
    "draw:model": "`draw`, its alias `bc-Img`, or any model of the catalog. Absent: `draw`.",
    # Zhipu
    "zhipu:n": "1.",
    "watermark_enabled": "The AI label. `false` needs the account's signed waiver.",
    "user_id": "Your end user, kept with the task: an operator can block one.",
    "zhipu:user": "The same where it is no `user_id`, which goes before it.",
    "request_id": "Your own id of the request, once in 24 hours; a second time is code 1231.",
    "sensitive_word_check": "Moderation is always on.",
    "sensitive_word_check.type": "`ALL`.",
    "sensitive_word_check.status": "`ENABLE`; `DISABLE` is refused by name.",
    # DashScope
    "input": "What to draw.",
    "input.messages": "Exactly one message.",
    "input.messages[].role": "`user`.",
    "input.messages[].content": "The prompt, or a list of exactly one text and of pictures to edit.",
    "input.messages[].content[].text": "The prompt. What is over the model's limit is cut, and `x-danqing-truncated` says so.",
    "input.messages[].content[].image": f"A picture to edit: {_PICTURE}.",
    "input.messages[].content[].type": "May name the kind of the part.",
    "input.prompt": "The prompt. What is over the model's limit is cut, and `x-danqing-truncated` says so.",
    "dashscope:input.prompt": "The prompt, instead of `messages`.",
    "dashscope_native:input.prompt": "Refused by name: it is for the route with a prompt.",
    "dashscope_synthesis:input.messages": "Refused by name: it is for the routes with messages.",
    "input.negative_prompt": "What the picture should not show, where the SDK writes it; cut to 500 characters.",
    "input.images": f"Pictures to edit, as the SDK's `ImageSynthesis` writes them: each {_PICTURE}.",
    "parameters": "How to draw it.",
    "parameters.negative_prompt": "What the picture should not show; cut to 500 characters.",
    "parameters.prompt_extend": "Extend the prompt before it is drawn. Absent: as the model does.",
    "parameters.watermark": "The brand mark, not the AI label. `true` draws the operator's, or the provider's own.",
    "parameters.size": "`WIDTH*HEIGHT`, or a name that the model has for one. Absent: the model's default, in an edit the picture's shape.",
    "parameters.n": "How many images, up to the model's maximum. Absent: the model's default.",
    "parameters.seed": "The same seed gives the same picture; image *i* is drawn with `seed + i`.",
    "parameters.is_async": "The SDK writes it; the header `X-DashScope-Async` counts.",
    **dict.fromkeys(
        (
            "parameters.enable_sequential",
            "parameters.enable_thinking",
            "parameters.thinking_mode",
        ),
        "Only `false`.",
    ),
    # Ark
    "ark:size": "A tier (`1K`, `2K`, …), whose shape the prompt or the picture says, or `WIDTHxHEIGHT`. Absent: `2048x2048`, for pro and flash `2K`.",
    "ark:image": f"A picture to edit, or a list: {_PICTURE}.",
    "ark:seed": "The same seed gives the same picture; image *i* is drawn with `seed + i`. -1: any.",
    "guidance_scale": "Refused by name: a model's guidance goes with its quality.",
    "sequential_image_generation": "`auto`: a series, as many as the prompt says.",
    "sequential_image_generation_options": "Of a series.",
    "sequential_image_generation_options.max_images": "The most images of a series; with the pictures in `image` 15.",
    "optimize_prompt": "Extend the prompt before it is drawn.",
    "optimize_prompt_options": "The same.",
    "optimize_prompt_options.mode": "`fast` only where the model has it.",
    "ark:tools": "Only an empty list.",
    "ark:background": "Refused by name.",
    "layer_decomposition": "Only `false`.",
}


def model_schema(model: type[BaseModel]) -> Schema:
    """A model's JSON Schema, its parts inlined."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    inlined: Schema = _inlined(schema, parts)
    return inlined


def _inlined(value: Any, parts: Schema) -> Any:
    if isinstance(value, dict):
        if "$ref" in value:
            return _inlined(parts[value["$ref"].rsplit("/", 1)[1]], parts)
        return {key: _inlined(item, parts) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, parts) for item in value]
    return value


_TEXT: Schema = {"type": "string"}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _either(*options: Schema) -> Schema:
    return {"anyOf": [*options, {"type": "null"}]}


def _messages(message: type[BaseModel], part: Schema, **bounds: int) -> Schema:
    """A list of messages, whose content is words or a list of parts."""
    schema = model_schema(message)
    schema["properties"]["content"] = {"anyOf": [_TEXT, _list(part)]}
    schema["required"] = [*schema.get("required", []), "content"]
    return _list(schema, **bounds)


def _chat_part() -> Schema:
    part = model_schema(Part)
    part["properties"]["image_url"] = _either(_TEXT, model_schema(ImageUrl))
    return part


_CHAT = _messages(ChatMessage, _chat_part(), minItems=1)
# A turn of the assistant may have no words.
_CHAT["items"]["properties"]["content"]["anyOf"].append({"type": "null"})
_CHAT["items"]["required"].remove("content")
_TURNS = _messages(DashScopeMessage, model_schema(Content), minItems=1, maxItems=1)
_PICTURES = _either(_TEXT, _list(_TEXT))

SHAPES: dict[str, dict[str, Schema]] = {
    "chat": {
        "messages": _CHAT,
        "response_format": _either({"enum": ["url", "b64_json"]}, {"type": "object"}),
    },
    "dashscope": {"input.messages": _either(_TURNS)},
    "dashscope_native": {"input.messages": _TURNS},
    "ark": {
        "image": _PICTURES,
        "background": _either(_TEXT),
        "layer_decomposition": _either({"type": "boolean"}),
    },
    "jimeng": {"image": _PICTURES, "images": _either(_list(_TEXT))},
}
"""What stands in a field whose parts the codec reads one by one."""


def body_schemas(dialect: Dialect) -> list[Schema]:
    """The JSON Schemas of the bodies that a dialect reads, each with its title: OpenAI's route also knows jimeng's."""
    names = [dialect.name] if dialect.name != "openai" else ["openai", "jimeng"]
    return [body_schema(dialect, name) for name in names]


def body_schema(dialect: Dialect, name: str) -> Schema:
    """The JSON Schema of one kind of body of a dialect."""
    body = (
        dialect.body
        if name != "jimeng"
        else create_model("JimengRequest", __base__=(GenerationBody, JimengHabits))
    )
    return described(model_schema(body), name)


def form_schema(dialect: Dialect) -> Schema:
    """The JSON Schema of a dialect's multipart form: its texts, and its files as binary strings."""
    assert dialect.form is not None
    schema = model_schema(dialect.form)
    one = {"type": "string", "format": "binary"}
    files = {name: _list(one) if "[]" in name else dict(one) for name in dialect.files}
    schema["properties"] = files | schema["properties"]
    if not any("[]" in name for name in dialect.files):
        schema["required"] = [*dialect.files, *schema.get("required", [])]
    return described(schema, dialect.name)


def described(schema: Schema, name: str) -> Schema:
    """The schema with what its fields mean and what stands within them; `name` is the dialect's."""
    schema["title"] = TITLES[name]
    schema.pop("description", None)
    for path, shape in SHAPES.get(name, {}).items():
        place = schema
        *above, last = path.split(".")
        for part in above:
            place = place["properties"][part]
        place["properties"][last] = deepcopy(shape)
    _describe(schema, name, "")
    return schema


def _describe(schema: Schema, name: str, above: str) -> None:
    for field, inner in schema.get("properties", {}).items():
        path = f"{above}{field}"
        inner.pop("title", None)
        words = WORDS.get(f"{name}:{path}") or WORDS.get(path)
        if words is not None:
            inner["description"] = words
        else:
            inner.pop("description", None)
        for prefix, part in parts_of(inner, path):
            if part is not inner:
                part.pop("description", None)
                part.pop("title", None)
            _describe(part, name, prefix)


def parts_of(schema: Schema, path: str) -> list[tuple[str, Schema]]:
    """The objects within a field, each with what its own fields' paths begin with."""
    found: list[tuple[str, Schema]] = []
    for option in schema.get("anyOf", [schema]):
        if option.get("type") == "array" and isinstance(option.get("items"), dict):
            found += parts_of(option["items"], f"{path}[]")
        elif "properties" in option:
            found.append((f"{path}.", option))
    return found
