"""`background: transparent`: the thing alone, with soft edges and its labels; refused by name where it cannot be."""

from __future__ import annotations

import base64
import io

import httpx2
import numpy as np
import pytest
from PIL import Image

from danqing.storage import metadata
from tests.api.sse import events
from tests.conftest import LiveServer

PATH = "/v1/images/generations"
BODY = {"prompt": "a red apple", "size": "1024x1024", "background": "transparent", "seed": 3}


def drawn(server: LiveServer, **fields: object) -> tuple[dict, np.ndarray, bytes]:
    """The answer, its image as H x W x 4, and its bytes."""
    answer = server.client.post(PATH, json=BODY | fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    item = body["data"][0]
    data = (
        base64.b64decode(item["b64_json"])
        if "b64_json" in item
        else httpx2.get(item["url"]).content
    )
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGBA"
        return body, np.asarray(image), data


@pytest.mark.parametrize("format", ["png", "webp"])
def test_the_thing_stands_alone(server: LiveServer, format: str) -> None:
    body, pixels, data = drawn(server, model="gpt-image-1", output_format=format)
    assert (body["background"], body["output_format"]) == ("transparent", format)
    opacity = pixels[..., 3]
    assert 0.5 < (opacity == 0).mean() < 0.95  # the ground is gone
    assert (opacity[:20] == 0).all()
    assert (opacity[420:700, 420:600] >= 250).all()  # the apple has no holes
    soft = (opacity > 0) & (opacity < 255)
    assert 0 < soft.mean() < 0.05
    red = pixels[opacity == 255].astype(int)
    assert (red[:, 0] > red[:, 2] + 40).mean() > 0.7
    # Its edge holds nothing of the pale ground: it is no lighter than what lies inside.
    assert pixels[soft][:, 1:3].mean() < 100
    assert metadata.read(data).xmp is not None
    assert metadata.read(data).format == format


def test_a_thumbnail_is_transparent_too(server: LiveServer) -> None:
    answer = server.client.post(PATH, json=BODY | {"model": "pocket"}).json()
    small = Image.open(io.BytesIO(httpx2.get(answer["data"][0]["url"] + "&w=256").content))
    assert (small.mode, small.size) == ("RGBA", (256, 256))
    assert np.asarray(small)[:5, :, 3].max() == 0


def test_looks_and_the_image_of_a_stream_say_so(server: LiveServer) -> None:
    body = BODY | {"model": "gpt-image-1", "stream": True, "partial_images": 2}
    with server.client.stream("POST", PATH, json=body) as answer:
        sent = list(events(answer.iter_lines()))
    assert len(sent) == 3
    for event in (one.data for one in sent):
        assert event["background"] == "transparent"
        image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
        assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "gpt-image-1", "output_format": "jpeg"}, "png or webp"),
        ({"model": "dall-e-3"}, "'dall-e-3'"),
        ({"model": "dall-e-2"}, "'dall-e-2'"),
    ],
)
def test_where_it_cannot_be_it_is_refused(
    server: LiveServer, fields: dict[str, str], said: str
) -> None:
    answer = server.client.post(PATH, json=BODY | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("background", "unsupported_parameter")
    assert said in error["message"]
