"""The chapters of the API reference: what each API is called, where it is, how it is called, and what its errors mean. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from danqing.domain import errors
from danqing.domain.errors import DanqingError

HERE = "http://127.0.0.1:8000"
"""Where the examples say that the server is."""


@dataclass(frozen=True, slots=True)
class Example:
    """A piece of code that a test runs. `runs_in` is the environment that it needs; "answer" = what comes back."""

    title: str
    code: str
    runs_in: str = "bash"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation; `dialect` says whose body and answer are shown where a route has several."""

    method: str
    path: str
    title: str
    words: str = ""
    dialect: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One API. `errors_of` is the dialect whose error table it has."""

    id: str
    title: str
    words: str
    routes: tuple[Route, ...]
    examples: tuple[Example, ...] = ()
    errors_of: str = ""
    errors_words: str = ""


def _curl(path: str, body: str, *headers: str) -> str:
    said = "".join(f' \\\n  -H "{header}"' for header in headers)
    return (
        f'curl {HERE}{path} \\\n  -H "Authorization: Bearer $DANQING_TOKEN" \\\n'
        f"  -H \"Content-Type: application/json\"{said} \\\n  -d '{body}'"
    )


_OPENAI = (
    f'from openai import OpenAI\n\nclient = OpenAI(base_url="{HERE}/v1", api_key="YOUR_TOKEN")\n'
)
_SAME = "The errors are those of [OpenAI Images](#openai-errors)."

CHAPTERS: tuple[Chapter, ...] = (
    Chapter(
        "openai",
        "OpenAI Images",
        "Works with the official `openai` clients: base URL `/v1`, API key a token. GPT Image, DALL·E and every other model of the "
        "catalog may be asked for. GPT Image models answer in base64, the others with links.",
        (
            Route("POST", "/v1/images/generations", "Draw", "", "openai"),
            Route(
                "POST",
                "/v1/images/edits",
                "Edit pictures by a prompt",
                "As a multipart form, as the official clients send it, or in JSON.",
                "openai_edits",
            ),
            Route(
                "POST",
                "/v1/images/variations",
                "Vary a picture",
                "A multipart form with one file and no prompt.",
                "openai_variations",
            ),
            Route(
                "GET",
                "/v1/models",
                "List models",
                "With sizes, qualities, prices, limits and what really draws each.",
            ),
            Route("GET", "/v1/models/{name}", "One model"),
        ),
        (
            Example(
                "curl",
                _curl(
                    "/v1/images/generations",
                    '{"model": "dall-e-3", "prompt": "A red apple on a table", "size": "1024x1024"}',
                ),
            ),
            Example(
                "Answer",
                '{"created": 1790000000, "data": [{"url": "https://…/files/7c9e….png?x-expires=…&x-signature=…"}]}',
                "answer",
            ),
            Example(
                "Python: draw",
                f'{_OPENAI}image = client.images.generate(model="dall-e-3", prompt="A red apple on a table")\n'
                "print(image.data[0].url)",
                "test",
            ),
            Example(
                "Python: edit, with looks at the unfinished picture",
                f"import base64\nimport urllib.request\n\n{_OPENAI}"
                'apple = client.images.generate(model="dall-e-2", prompt="A red apple", size="512x512").data[0].url\n'
                "events = client.images.edit(\n"
                '    model="gpt-image-1",\n'
                '    image=("apple.png", urllib.request.urlopen(apple).read()),\n'
                '    prompt="A green apple",\n'
                "    stream=True,\n"
                "    partial_images=2,\n"
                ")\n"
                "for event in events:\n"
                "    print(event.type, len(base64.b64decode(event.b64_json)))",
                "test",
            ),
            Example(
                "Node",
                'import OpenAI from "openai";\n\n'
                f'const client = new OpenAI({{ baseURL: "{HERE}/v1", apiKey: "YOUR_TOKEN" }});\n'
                'const image = await client.images.generate({ model: "dall-e-3", prompt: "A red apple on a table" });\n'
                "console.log(image.data[0].url);",
                "node",
            ),
        ),
        "openai",
        '`{"error": {message, type, param, code}}`, all four always there; `param` is the field\'s path. In Python: 400 is `BadRequestError`, 401 '
        "`AuthenticationError`, 403 `PermissionDeniedError`, 404 `NotFoundError`, 409 `ConflictError`, 429 `RateLimitError`, from 500 up `InternalServerError`.",
    ),
    Chapter(
        "chat",
        "Chat completions",
        "Drawing for chat front ends: the last message of the role `user` is drawn, from its pictures if it has any. The answer shows the images as Markdown. "
        "Text parameters that front ends send along (`temperature`, `max_tokens`, …) are accepted and named in `x-danqing-ignored`.",
        (Route("POST", "/v1/chat/completions", "Draw in a conversation", "", "chat"),),
        (
            Example(
                "curl",
                _curl(
                    "/v1/chat/completions",
                    '{"model": "dall-e-3", "messages": [{"role": "user", "content": "A red apple on a table"}]}',
                ),
            ),
            Example(
                "Answer",
                '{"id": "chatcmpl-…", "object": "chat.completion", "created": 1790000000, "model": "dall-e-3",\n "choices": [{"index": 0, "message": {"role": "assistant", "content": "![image](https://…)", "refusal": null},\n              "logprobs": null, "finish_reason": "stop"}],\n "usage": {"prompt_tokens": 22, "completion_tokens": 4096, "total_tokens": 4118}}',
                "answer",
            ),
            Example(
                "Python",
                f"{_OPENAI}answer = client.chat.completions.create(\n"
                '    model="dall-e-3", messages=[{"role": "user", "content": "A red apple on a table"}]\n'
                ")\nprint(answer.choices[0].message.content)",
                "test",
            ),
        ),
        "",
        _SAME,
    ),
    Chapter(
        "draw",
        "draw",
        "Chat-style drawing without a conversation: a body with `prompt` and no `messages`. Whatever happens is HTTP 200: read the body.",
        (Route("POST", "/v1/chat/completions", "Draw", "", "draw"),),
        (
            Example(
                "curl",
                _curl("/v1/chat/completions", '{"prompt": "画一个红苹果", "model": "bc-Img"}'),
            ),
        ),
        "draw",
        "All are HTTP 200. A bad key and an empty balance have a shape of their own, `{codes, mess, data}`; the rest are OpenAI's error objects.",
    ),
    Chapter(
        "jimeng",
        "jimeng",
        "OpenAI's route with a model `jimeng-…`: four JPEG links for the price of one call, sizes by ratio. Every field of OpenAI Images may be sent besides, but for "
        "`style` and the formats.",
        (Route("POST", "/v1/images/generations", "Draw", "", "jimeng"),),
        (
            Example(
                "curl",
                _curl(
                    "/v1/images/generations",
                    '{"model": "jimeng-4.0", "prompt": "一只可爱的小猪", "size": "2:3"}',
                ),
            ),
            Example(
                "Python",
                f'{_OPENAI}images = client.images.generate(model="jimeng-4.0", prompt="一只可爱的小猪", size="2:3")\n'
                "print(*(image.url for image in images.data))",
                "test",
            ),
        ),
        "",
        _SAME,
    ),
    Chapter(
        "qwen",
        "Qwen-Image on OpenAI's path",
        "DashScope's body, answered in OpenAI's shape: as relays of the new-api kind have it. The provider's own routes: [DashScope](#dashscope).",
        (Route("POST", "/v1/images/generations", "Draw", "", "dashscope"),),
        (
            Example(
                "curl",
                _curl(
                    "/v1/images/generations",
                    '{"model": "qwen-image",\n'
                    '       "input": {"messages": [{"role": "user", "content": [{"text": "一只猫"}]}]},\n'
                    '       "parameters": {"size": "1328*1328", "negative_prompt": "低质量"}}',
                ),
            ),
        ),
        "",
        _SAME,
    ),
    Chapter(
        "zhipu",
        "Zhipu CogView and GLM-Image",
        "Works with `zai-sdk` and `zhipuai`: base URL `/api/paas/v4` (the same routes are at `/paas/v4`), the plain key or its JWT. One image a request, under an AI "
        "label; links live 30 days.",
        (
            Route("POST", "/api/paas/v4/images/generations", "Draw", "", "zhipu"),
            Route(
                "POST",
                "/api/paas/v4/async/images/generations",
                "Draw in the background",
                "Takes the same body and answers at once, for any model.",
                "zhipu",
            ),
            Route("GET", "/api/paas/v4/async-result/{id}", "What became of it"),
        ),
        (
            Example(
                "curl",
                _curl(
                    "/api/paas/v4/images/generations",
                    '{"model": "cogview-4-250304", "prompt": "桌上的一个红苹果", "size": "1024x1024"}',
                ),
            ),
            Example(
                "Answer",
                '{"created": 1790000000, "data": [{"url": "https://…"}],\n "content_filter": [{"role": "user", "level": 3}, {"role": "assistant", "level": 3}]}',
                "answer",
            ),
            Example(
                "Python (zai-sdk)",
                "from zai import ZhipuAiClient\n\n"
                f'client = ZhipuAiClient(base_url="{HERE}/api/paas/v4", api_key="YOUR_TOKEN")\n'
                'image = client.images.generations(model="cogview-4-250304", prompt="桌上的一个红苹果")\n'
                "print(image.data[0].url)",
                "test",
            ),
        ),
        "zhipu",
        '`{"error": {code, message}}`; the code is a string, and the message names the field. A refusal of content has `contentFilter` beside it. The SDKs raise '
        "`APIRequestFailedError` (400), `APIAuthenticationError` (401), `APIReachLimitError` (429), `APIInternalError` (500), `APIServerFlowExceedError` (503).",
    ),
    Chapter(
        "dashscope",
        "DashScope (Model Studio)",
        "Works with the `dashscope` SDK: `base_http_api_url` is `/api/v1`. Routes with tasks need the header `X-DashScope-Async: enable`, as the SDK sends it; then ask for the task.",
        (
            Route(
                "POST",
                "/api/v1/services/aigc/multimodal-generation/generation",
                "Draw from a message",
                "",
                "dashscope_native",
            ),
            Route(
                "POST",
                "/api/v1/services/aigc/image-generation/generation",
                "Draw from a message, as a task",
                "",
                "dashscope_native",
            ),
            Route(
                "POST",
                "/api/v1/services/aigc/text2image/image-synthesis",
                "Draw from a prompt, as a task",
                "",
                "dashscope_synthesis",
            ),
            Route(
                "POST",
                "/api/v1/services/aigc/image2image/image-synthesis",
                "Edit by a prompt, as a task",
                "",
                "dashscope_synthesis",
            ),
            Route("GET", "/api/v1/tasks/{task_id}", "What became of a task"),
            Route("POST", "/api/v1/tasks/{task_id}/cancel", "Cancel a task"),
            Route("GET", "/api/v1/tasks", "List tasks"),
        ),
        (
            Example(
                "curl",
                _curl(
                    "/api/v1/services/aigc/multimodal-generation/generation",
                    '{"model": "qwen-image",\n'
                    '       "input": {"messages": [{"role": "user", "content": [{"text": "一只猫"}]}]},\n'
                    '       "parameters": {"size": "1328*1328"}}',
                ),
            ),
            Example(
                "Answer",
                '{"output": {"choices": [{"finish_reason": "stop",\n                         "message": {"role": "assistant", "content": [{"image": "https://…"}]}}],\n            "task_metric": {"TOTAL": 1, "SUCCEEDED": 1, "FAILED": 0}},\n "usage": {"image_count": 1, "width": 1328, "height": 1328},\n "request_id": "0199f6ae-…"}',
                "answer",
            ),
            Example(
                "Python: a message",
                "import dashscope\n\n"
                f'dashscope.base_http_api_url = "{HERE}/api/v1"\n'
                'messages = [{"role": "user", "content": [{"text": "一只猫"}]}]\n'
                'answer = dashscope.MultiModalConversation.call("qwen-image", messages, api_key="YOUR_TOKEN")\n'
                'print(answer.output.choices[0].message.content[0]["image"])',
                "dashscope",
            ),
            Example(
                "Python: a task, waited for",
                "import dashscope\n\n"
                f'dashscope.base_http_api_url = "{HERE}/api/v1"\n'
                'task = dashscope.ImageSynthesis.call("qwen-image", "桌上的一个红苹果", api_key="YOUR_TOKEN")\n'
                "print(task.output.results[0].url)",
                "dashscope",
            ),
        ),
        "dashscope_native",
        "`{code, message, request_id}`; the message names the field. The SDK raises nothing: read `status_code`, `code` and `message` of what it returns. A task "
        "that failed is HTTP 200 with the same `code` and `message` in `output`.",
    ),
    Chapter(
        "ark",
        "Volcengine Ark (Seedream)",
        "Works with `volcenginesdkarkruntime`: base URL `/api/v3`. Tiers whose shape the prompt says, series, streams, pictures to start from. Images are under an AI label; links live a day.",
        (Route("POST", "/api/v3/images/generations", "Draw", "", "ark"),),
        (
            Example(
                "curl",
                _curl(
                    "/api/v3/images/generations",
                    '{"model": "doubao-seedream-4-0-250828", "prompt": "一只可爱的小猪，横版", "size": "1K"}',
                ),
            ),
            Example(
                "Answer",
                '{"model": "doubao-seedream-4-0-250828", "created": 1790000000,\n "data": [{"url": "https://…", "size": "1280x720"}],\n "usage": {"generated_images": 1, "output_tokens": 3600, "total_tokens": 3600}}',
                "answer",
            ),
            Example(
                "Python",
                "from volcenginesdkarkruntime import Ark\n\n"
                f'client = Ark(base_url="{HERE}/api/v3", api_key="YOUR_TOKEN")\n'
                'model = "doubao-seedream-4-0-250828"\n'
                'print(client.images.generate(model=model, prompt="A red apple", size="1K").data[0].url)',
                "ark",
            ),
        ),
        "ark",
        '`{"error": {code, message, param, type}}`; the message ends with the request\'s id, and `x-error-code` repeats the code. An image of a series that failed has '
        '`{"error": {code, message}}` in its place in `data`.',
    ),
    Chapter(
        "tasks",
        "Tasks and files",
        "Every drawing is a task, whatever API it came by: its id is in `x-danqing-task`. With the header `Prefer: respond-async` a drawing route answers 202 with the task's address.",
        (
            Route("GET", "/v1/images/tasks/{task_id}", "What became of a task"),
            Route("DELETE", "/v1/images/tasks/{task_id}", "Cancel a task"),
            Route("GET", "/files/{name}", "An image's bytes"),
        ),
        (
            Example(
                "curl",
                f"task=$(curl -s {HERE}/v1/images/generations \\\n"
                '  -H "Authorization: Bearer $DANQING_TOKEN" -H "Content-Type: application/json" \\\n'
                '  -H "Prefer: respond-async" -d \'{"prompt": "A red apple"}\' | grep -o \'"id": *"[^"]*"\' | cut -d\'"\' -f4)\n'
                "sleep 3\n"
                f'curl {HERE}/v1/images/tasks/$task -H "Authorization: Bearer $DANQING_TOKEN"',
            ),
        ),
        "",
        _SAME,
    ),
)

BOOKS = (
    (
        "account",
        "Your account",
        "/account/v1",
        "For the holder of an account: balance, statement, tokens, webhook, label waiver.",
    ),
    (
        "admin",
        "Administration",
        "/admin/v1",
        "For operators: accounts, characters, tokens, moderation, the books.",
    ),
    ("ops", "Health and metrics", "", "For whoever runs the server."),
)
"""Chapters that list all routes below a path: id, title, path, words."""

FAULTS: tuple[tuple[DanqingError, str], ...] = (
    (
        errors.InvalidBody("x"),
        "the body is not JSON, or not an object; it is nested too deep, or holds too much",
    ),
    (errors.BodyTooLarge("x"), "the body is too large"),
    (errors.BodyTooSlow("x"), "the body did not arrive in time"),
    (errors.MissingField("x"), "a required field is absent or null"),
    (
        errors.InvalidField("x", "x"),
        "a field has the wrong type, or a value that is not on its list or out of range",
    ),
    (errors.PromptTooLong("x", 2, 1), "a text is longer than the model takes"),
    (errors.TooManyImages("n", 1), "more than one image of what gives one"),
    (
        errors.InvalidImage("x", "x"),
        "a picture is none, is too large or too small, or cannot be fetched",
    ),
    (errors.InvalidImage("x", "x", "empty"), "a picture's address is empty"),
    (errors.InvalidImage("x", "x", "address"), "what should be a picture's address is none"),
    (errors.InvalidImage("x", "x", "fetch"), "a picture cannot be fetched"),
    (errors.InvalidImage("x", "x", "format"), "a picture is none, or is damaged"),
    (errors.ExclusiveFields("x", "y"), "of two fields only one may be there"),
    (errors.UnknownField("x"), "there is no such field; the message suggests the nearest there is"),
    (errors.UnsupportedField("x", "x"), "a known field cannot be honoured"),
    (errors.ModelNotFound("x"), "there is no such model"),
    (errors.NotFound("x"), "no such URL; no such task or file of yours"),
    (errors.MethodNotAllowed("x"), "not with this method"),
    (errors.IdempotencyConflict(), "the `Idempotency-Key` was used for another request"),
    (errors.DuplicateRequestId("x"), "the request id was used before"),
    (errors.RequestError("x"), "the request cannot be honoured as it is written"),
    (errors.MissingToken("x"), "no token"),
    (errors.InvalidToken("x"), "a wrong or revoked token"),
    (errors.ExpiredToken("x"), "an expired token"),
    (errors.AuthError("x"), "the token cannot be checked"),
    (errors.PermissionDenied("x"), "the token may not do this"),
    (
        errors.WaiverRequired("x"),
        "images without the AI label need the account's signed waiver, or the provider's leave",
    ),
    (errors.AccountSuspended("x"), "the account is suspended"),
    (errors.EndUserBlocked(), "the end user named in the request is blocked"),
    (errors.ModelNotAllowed("x"), "the token may not use this model"),
    (errors.QuotaExceeded(2, 1), "not enough characters"),
    (errors.TokenBudgetExceeded("day", 2, 1), "the token's budget is used up"),
    (errors.ContentRefused("user", 1), "the content was refused"),
    (errors.ContentRefused("assistant", 1), "what was to be drawn, or was drawn, was refused"),
    (errors.Busy(2.0), "busy: the queue is full"),
    (errors.RateLimited(60, 2.0), "the token's rate limit"),
    (errors.ConcurrencyExceeded(4), "too many of the token's requests at once"),
    (errors.Cancelled(), "the task was cancelled"),
    (errors.ServerFault(), "our own failure"),
    (errors.EngineFailed(), "drawing failed"),
    (errors.ProviderFailed(), "the provider that the model is relayed to failed"),
    (errors.Unavailable("x"), "nothing can draw this model now"),
)
"""Every error there is, and when it comes."""
