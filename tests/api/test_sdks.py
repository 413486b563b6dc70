"""The official clients, pointed at the server by base URL alone: they generate, and get their own typed errors."""

from __future__ import annotations

import base64
import io

import httpx2
import numpy as np
import openai
import openai.types
import pytest
import zai
from PIL import Image

from tests.conftest import LiveServer


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(api_key=server.token, base_url=f"{server.url}/v1", max_retries=0)


@pytest.fixture
def zhipu(server: LiveServer) -> zai.ZhipuAiClient:
    return zai.ZhipuAiClient(
        api_key=server.token, base_url=f"{server.url}/api/paas/v4", max_retries=0
    )


def test_openai_generates_by_link(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a cat on a beach", model="dall-e-3", style="vivid")
    assert answer.data[0].url
    assert answer.data[0].revised_prompt
    assert httpx2.get(answer.data[0].url).status_code == 200


def test_openai_generates_base64(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a dog", model="gpt-image-1", size="1024x1536", quality="low", output_format="webp"
    )
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (image.format, image.size) == ("WEBP", (1024, 1536))
    assert (answer.size, answer.quality, answer.output_format) == ("1024x1536", "low", "webp")


def test_openai_edits_repaints_and_varies(client: openai.OpenAI) -> None:
    """With pocket: a red apple turns green, a mask keeps what it covers, a variation is another picture."""

    def pixels(answer: openai.types.ImagesResponse) -> np.ndarray:
        with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))) as image:
            return np.array(image.convert("RGB")).astype(int)

    model = {"model": "gpt-image-1", "quality": "low", "extra_body": {"seed": 3}}
    answer = client.images.generate(prompt="a red apple on a table", size="1024x1024", **model)
    data = base64.b64decode(answer.data[0].b64_json)
    red = pixels(answer)
    green = pixels(client.images.edit(image=("a.png", data), prompt="a green apple", **model))
    assert green.shape == red.shape
    middle = np.s_[500:700, 400:700]
    assert (red[middle][..., 0] - red[middle][..., 1]).mean() > 50
    assert (green[middle][..., 0] - green[middle][..., 1]).mean() < 0

    mask = Image.open(io.BytesIO(data)).convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, 0, 400, 500))
    out = io.BytesIO()
    mask.save(out, "PNG")
    sun = pixels(
        client.images.edit(
            image=("a.png", data), mask=("m.png", out.getvalue()), prompt="a yellow sun", **model
        )
    )
    assert np.abs(sun[600:, 450:] - red[600:, 450:]).mean() < 4
    assert np.abs(sun[:400, :300] - red[:400, :300]).mean() > 10
    events = list(
        client.images.edit(
            image=("a.png", data), prompt="a blue apple", stream=True, partial_images=1, **model
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert events[1].usage.input_tokens_details.image_tokens == 1024 * 1024 / 256
    with pytest.warns(DeprecationWarning, match="deprecated"):
        varied = client.images.create_variation(
            image=data, model="dall-e-2", size="1024x1024", response_format="b64_json"
        )
    assert np.abs(pixels(varied) - red).mean() > 1  # by any seed


def test_openai_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"draw", "cogview-4-250304", "jimeng-4.0", "dall-e-3", "qwen-image", "pocket"} <= set(
        names
    )
    assert client.models.retrieve("bc-Img").id == "draw"


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="dall-e-3", messages=[{"role": "user", "content": "a cat"}]
    )
    assert "](http" in answer.choices[0].message.content


def test_openai_typed_errors(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt="x", model="dall-e-3", size="1x1")  # type: ignore[arg-type]
    assert bad.value.param == "size"
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="x", model="nothing")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-no.no").images.generate(prompt="x", model="dall-e-3")
    poor = server.account("poor-sdk")
    with pytest.raises(openai.RateLimitError) as quota:
        client.with_options(api_key=poor).images.generate(prompt="x", model="dall-e-3", n=4)
    assert quota.value.code == "insufficient_quota"


@pytest.mark.parametrize("jwt", [False, True])
def test_zhipu_generates(server: LiveServer, jwt: bool) -> None:
    client = zai.ZhipuAiClient(
        api_key=server.token,
        base_url=f"{server.url}/api/paas/v4",
        disable_token_cache=not jwt,
        max_retries=0,
    )
    answer = client.images.generations(
        model="cogview-4-250304", prompt="一只小猫", size="768x1344", quality="hd"
    )
    image = Image.open(io.BytesIO(httpx2.get(answer.data[0].url).content))
    assert image.size == (768, 1344)


def test_zhipu_typed_errors(zhipu: zai.ZhipuAiClient, server: LiveServer) -> None:
    with pytest.raises(zai.core.APIRequestFailedError) as bad:
        zhipu.images.generations(model="cogview-4", prompt="x", size="1x1")
    assert bad.value.status_code == 400
    stranger = zai.ZhipuAiClient(
        api_key="sk-no.no", base_url=f"{server.url}/api/paas/v4", max_retries=0
    )
    with pytest.raises(zai.core.APIAuthenticationError):
        stranger.images.generations(model="cogview-4", prompt="x")
