"""JSON Schemas of what each dialect answers, for the API reference and what tests it. Data only; the codecs know none of it."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_NAME: Schema = {"type": ["string", "null"]}


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None) -> Schema:
    """An object with these keys and no others; all of them required where nothing else is said."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


LINK: Schema = {"type": "string", "pattern": "^https?://|^/"}

_IMAGE = _object({"url": LINK, "b64_json": _TEXT, "revised_prompt": _TEXT}, ())
_USAGE = _object(
    {
        "total_tokens": _NUMBER,
        "input_tokens": _NUMBER,
        "output_tokens": _NUMBER,
        "input_tokens_details": _object({"text_tokens": _NUMBER, "image_tokens": _NUMBER}),
    }
)
IMAGES = _object(
    {
        "created": _NUMBER,
        "data": _list(_IMAGE, 1),
        "background": {"const": "opaque"},
        "output_format": {"enum": ["png", "jpeg", "webp"]},
        "quality": _TEXT,
        "size": _TEXT,
        "usage": _USAGE,
    },
    ("created", "data"),
)
"""openai-openapi's ImagesResponse."""

_DETAILS = _object({"moderation_stage": {"enum": ["input", "output"]}, "categories": _list(_TEXT)})
OPENAI_ERROR = _object(
    {
        "error": _object(
            {
                "message": _TEXT,
                "type": _TEXT,
                "param": _NAME,
                "code": _NAME,
                "moderation_details": _DETAILS,
            },
            ("message", "type", "param", "code"),
        )
    }
)

COMPLETION = _object(
    {
        "id": _TEXT,
        "object": {"const": "chat.completion"},
        "created": _NUMBER,
        "model": _TEXT,
        "choices": _list(
            _object(
                {
                    "index": _NUMBER,
                    "message": _object(
                        {"role": {"const": "assistant"}, "content": _TEXT, "refusal": _NAME}
                    ),
                    "logprobs": {"type": "null"},
                    "finish_reason": {"const": "stop"},
                }
            ),
            1,
        ),
        "usage": _object(
            {"prompt_tokens": _NUMBER, "completion_tokens": _NUMBER, "total_tokens": _NUMBER}
        ),
    }
)

DRAW: Schema = {
    "anyOf": [
        IMAGES,
        OPENAI_ERROR,
        _object({"codes": {"enum": [300, 900]}, "mess": _TEXT, "data": _TEXT}),
    ]
}
"""Every answer of the draw API: HTTP 200, whatever happened."""

_LEVELS = _list(
    _object(
        {
            "role": {"enum": ["user", "assistant", "history"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 3},
        }
    )
)
_ZHIPU_FAULT = _object({"code": _TEXT, "message": _TEXT})
ZHIPU_IMAGES = _object({"created": _NUMBER, "data": _list(_IMAGE, 1), "content_filter": _LEVELS})
ZHIPU_ERROR = _object({"error": _ZHIPU_FAULT, "contentFilter": _LEVELS}, ("error",))
ZHIPU_ACCEPTED = _object(
    {"id": _TEXT, "model": _TEXT, "request_id": _TEXT, "task_status": {"const": "PROCESSING"}}
)
ZHIPU_TASK = _object(
    {
        "model": _TEXT,
        "request_id": _TEXT,
        "task_status": {"enum": ["PROCESSING", "SUCCESS", "FAIL"]},
        "image_result": _list(_IMAGE, 1),
        "content_filter": _LEVELS,
        "error": _ZHIPU_FAULT,
        "contentFilter": _LEVELS,
    },
    ("model", "request_id", "task_status"),
)

_ARK_FAULT = _object({"code": _TEXT, "message": _TEXT})
ARK_IMAGES = _object(
    {
        "model": _TEXT,
        "created": _NUMBER,
        "data": _list(
            {
                "anyOf": [
                    _object({"url": LINK, "b64_json": _TEXT, "size": _TEXT}, ("size",)),
                    _object({"error": _ARK_FAULT}),
                ]
            },
            1,
        ),
        "usage": _object(
            {"generated_images": _NUMBER, "output_tokens": _NUMBER, "total_tokens": _NUMBER}
        ),
    }
)
ARK_ERROR = _object(
    {"error": _object({"code": _TEXT, "message": _TEXT, "param": _TEXT, "type": _TEXT})}
)

_CHOICES = _list(
    _object(
        {
            "finish_reason": {"const": "stop"},
            "message": _object(
                {
                    "role": {"const": "assistant"},
                    "content": _list(_object({"image": _TEXT}), 1),
                }
            ),
        }
    ),
    1,
)
_METRICS = _object({"TOTAL": _NUMBER, "SUCCEEDED": _NUMBER, "FAILED": _NUMBER})
_COUNT = _object({"image_count": _NUMBER, "width": _NUMBER, "height": _NUMBER}, ("image_count",))
DASHSCOPE_IMAGES = _object(
    {
        "output": _object(
            {"choices": _CHOICES, "task_metric": _METRICS, "actual_prompt": _TEXT},
            ("choices", "task_metric"),
        ),
        "usage": _COUNT,
        "request_id": _TEXT,
    }
)
DASHSCOPE_ERROR = _object({"code": _TEXT, "message": _TEXT, "request_id": _TEXT})
DASHSCOPE_ACCEPTED = _object(
    {
        "output": _object({"task_status": {"const": "PENDING"}, "task_id": _TEXT}),
        "request_id": _TEXT,
    }
)
_STATUS: Schema = {
    "enum": ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN", "SUSPENDED"]
}
_DASHSCOPE_RESULT: Schema = {
    "anyOf": [
        _object(
            {"orig_prompt": _TEXT, "actual_prompt": _TEXT, "url": _TEXT}, ("orig_prompt", "url")
        ),
        _object({"code": _TEXT, "message": _TEXT}),
    ]
}
DASHSCOPE_TASK = _object(
    {
        "request_id": _TEXT,
        "output": _object(
            {
                "task_id": _TEXT,
                "task_status": _STATUS,
                "submit_time": _TEXT,
                "scheduled_time": _TEXT,
                "end_time": _TEXT,
                "finished": {"const": True},
                "choices": _CHOICES,
                "task_metric": _METRICS,
                "results": _list(_DASHSCOPE_RESULT, 1),
                "task_metrics": _METRICS,
                "actual_prompt": _TEXT,
                "code": _TEXT,
                "message": _TEXT,
            },
            ("task_id", "task_status"),
        ),
        "usage": _COUNT,
    },
    ("request_id", "output"),
)
DASHSCOPE_TASKS = _object(
    {
        "request_id": _TEXT,
        "data": _list(
            _object(
                {
                    **dict.fromkeys(
                        ("task_id", "request_id", "api_key_id", "caller_uid", "model_name"), _NAME
                    ),
                    "status": _STATUS,
                    **dict.fromkeys(("gmt_create", "start_time", "end_time"), _NUMBER),
                },
                ("task_id", "model_name", "status", "gmt_create"),
            )
        ),
        **dict.fromkeys(("page_no", "page_size", "total", "total_page"), _NUMBER),
    }
)
DASHSCOPE_CANCELLED = _object({"request_id": _TEXT})

ACCEPTED = _object({"id": _TEXT, "object": {"const": "image.task"}, "status": {"const": "queued"}})
"""202 of a request with `Prefer: respond-async`."""

ANSWERS: dict[str, Schema] = {
    "openai": IMAGES,
    "openai_edits": IMAGES,
    "openai_variations": IMAGES,
    "dashscope": IMAGES,
    "chat": COMPLETION,
    "draw": DRAW,
    "zhipu": ZHIPU_IMAGES,
    "ark": ARK_IMAGES,
    "dashscope_native": DASHSCOPE_IMAGES,
    "dashscope_synthesis": DASHSCOPE_IMAGES,
}
"""What a dialect answers with HTTP 200, by its name."""

ERRORS: dict[str, Schema] = {
    "openai": OPENAI_ERROR,
    "openai_edits": OPENAI_ERROR,
    "openai_variations": OPENAI_ERROR,
    "dashscope": OPENAI_ERROR,
    "chat": OPENAI_ERROR,
    "draw": OPENAI_ERROR,
    "zhipu": ZHIPU_ERROR,
    "ark": ARK_ERROR,
    "dashscope_native": DASHSCOPE_ERROR,
    "dashscope_synthesis": DASHSCOPE_ERROR,
}
"""What a dialect answers with any HTTP status from 400 up."""

ACCEPTED_NATIVELY: dict[str, Schema] = {
    "zhipu": ZHIPU_ACCEPTED,
    "dashscope_native": DASHSCOPE_ACCEPTED,
    "dashscope_synthesis": DASHSCOPE_ACCEPTED,
}
"""What a dialect's own asynchronous route answers at once."""

_MAYBE_TEXT = {"type": ["string", "null"]}
STORED_TASK = _object(
    {
        "id": _TEXT,
        "object": {"const": "image.task"},
        "model": _TEXT,
        "status": _TEXT,
        "created": _NUMBER,
        "finished": {"type": ["integer", "null"]},
        "charged": {"type": ["integer", "null"]},
        "revised_prompt": _MAYBE_TEXT,
        "extension": _MAYBE_TEXT,
        "error": {
            "anyOf": [_object({"code": _TEXT, "message": _TEXT}), {"type": "null"}],
        },
        "data": _list(
            _object(
                {"url": LINK, "thumbnail_url": LINK, "size": _TEXT, "seed": _NUMBER},
                ("url", "size", "seed"),
            )
        ),
    }
)

_MAYBE = {"type": ["boolean", "null"]}
INSPECTION = _object(
    {
        "object": {"const": "image.inspection"},
        "image_id": _MAYBE_TEXT,
        "visible": {"type": "boolean"},
        "metadata": {"type": ["object", "null"]},
        "pixel_mark": _MAYBE_TEXT,
        "pixels_unchanged": _MAYBE,
        "ours": _MAYBE,
    }
)

STORED_IMAGE = _object(
    {
        "id": _TEXT,
        "object": {"const": "image.file"},
        "account_id": _TEXT,
        "task_id": _TEXT,
        "created": _NUMBER,
        "expires": _NUMBER,
        "format": _TEXT,
        "size": _TEXT,
        "bytes": _NUMBER,
        "label_visible": {"type": "boolean"},
        "label_metadata": {"type": "boolean"},
        "url": LINK,
        "thumbnail_url": LINK,
    }
)
STORED_IMAGES = _object(
    {
        "object": {"const": "list"},
        "data": _list(STORED_IMAGE),
        "last_id": {"type": ["string", "null"]},
        "has_more": {"type": "boolean"},
    }
)

MODEL = _object(
    {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _NUMBER,
        "owned_by": _TEXT,
        "danqing": {"type": "object"},
    }
)
MODELS = _object({"object": {"const": "list"}, "data": _list(MODEL)})


PUBLIC: dict[str, Any] = {"security": []}
"""FastAPI's `openapi_extra` of a route that needs no token."""


def answers(schema: Schema, *, events: bool = False, status: int = 200) -> dict[str, Any]:
    """FastAPI's `openapi_extra` of a route with this answer; `events`: or a stream of events."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"responses": {str(status): {"description": "Done.", "content": content}}}


def statement() -> dict[str, Any]:
    """A page as JSON, or everything as CSV."""
    extra = answers({"type": "object"})
    extra["responses"]["200"]["content"]["text/csv"] = {"schema": _TEXT}
    return extra


def drawing(
    names: tuple[str, ...], *, native: bool = False, events: bool = False
) -> dict[str, Any]:
    """The answers of a route that draws, in the dialects called `names`.

    `native`: the route is asynchronous by its provider's own rules, and answers that with HTTP 200.
    `events`: one of the dialects streams.
    """
    known = ACCEPTED_NATIVELY if native else ANSWERS
    kinds = [known.get(name, {}) for name in names]
    extra = answers(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}, events=events)
    if not native:
        extra["responses"] |= answers(ACCEPTED, status=202)["responses"]
    return extra
