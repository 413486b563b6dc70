"""The example request of each seed document, verbatim, over real HTTP: answered with an image that pocket drew."""

from __future__ import annotations

import base64
import io
import itertools
import time

import httpx2
import pytest
from PIL import Image, ImageChops

from tests.conftest import LiveServer
from tests.pictures import are_alike

CAT = "一只可爱的小猫咪，坐在阳光明媚的窗台上，背景是蓝天白云."


def fetch(url: str) -> Image.Image:
    """Follow a link with no token, as whoever gets it would."""
    answer = httpx2.get(url)
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def is_a_picture(image: Image.Image) -> bool:
    """Not one colour, and not noise: neighbouring pixels mostly agree."""
    grey = image.convert("L").resize((64, 64))
    pixels = grey.tobytes()
    steps = [abs(a - b) for a, b in itertools.pairwise(pixels)]
    return max(pixels) - min(pixels) > 40 and sum(steps) / len(steps) < 40


def test_draw(server: LiveServer) -> None:
    body = {"prompt": "画一个钢铁侠", "model": "bc-Img"}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert set(answer.json()) == {"created", "data"}
    (item,) = answer.json()["data"]
    assert set(item) == {"url"}
    assert is_a_picture(fetch(item["url"]))
    assert answer.headers["x-danqing-charged"] == "5000"


@pytest.mark.parametrize("mount", ["/paas/v4", "/api/paas/v4"])
def test_zhipu(server: LiveServer, mount: str) -> None:
    body = {"model": "cogView-4-250304", "prompt": CAT, "size": "1024x1024"}
    before = int(time.time())
    answer = server.client.post(f"{mount}/images/generations", json=body)
    assert answer.status_code == 200
    result = answer.json()
    assert set(result) == {"created", "data", "content_filter"}
    assert before <= result["created"] <= time.time()
    image = fetch(result["data"][0]["url"])
    assert image.size == (1024, 1024)
    assert is_a_picture(image)
    assert result["content_filter"] == [{"role": "user", "level": 3}]
    assert answer.headers["x-danqing-model"] == "pocket; stand-in"


def test_jimeng_gives_four_jpegs_for_one_price(server: LiveServer) -> None:
    body = {"size": "2:3", "prompt": "一只可爱的小猪", "model": "jimeng-4.0"}
    answer = server.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert len(data) == 4
    images = [fetch(item["url"]) for item in data]
    assert {image.size for image in images} == {(832, 1248)}
    assert {image.format for image in images} == {"JPEG"}
    assert len({image.tobytes() for image in images}) == 4
    assert answer.headers["x-danqing-charged"] == "5000"
    assert len(answer.headers["x-danqing-seed"].split(",")) == 4


def test_openai(server: LiveServer) -> None:
    answer = server.client.post("/v1/images/generations", json={"prompt": "a cute cat"})
    assert answer.status_code == 200
    result = answer.json()
    assert isinstance(result["created"], int)
    assert result["data"][0]["revised_prompt"].startswith("a cute cat")
    assert fetch(result["data"][0]["url"]).size == (1024, 1024)


def test_qwen(server: LiveServer) -> None:
    body = {
        "model": "qwen-image",
        "input": {"messages": [{"role": "user", "content": [{"text": "海边的一座房子"}]}]},
        "parameters": {
            "negative_prompt": "云",
            "prompt_extend": True,
            "watermark": False,
            "size": "1328*1328",
        },
    }
    answer = server.client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    assert fetch(item["url"]).size == (1328, 1328)


def test_chat_messages(server: LiveServer) -> None:
    body = {
        "model": "dall-e-3",
        "temperature": 0.7,
        "messages": [
            {"role": "system", "content": "You draw."},
            {"role": "user", "content": "a red apple on a table"},
        ],
    }
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    completion = answer.json()
    assert completion["object"] == "chat.completion"
    message = completion["choices"][0]["message"]
    assert message["role"] == "assistant"
    url = message["content"].split("](")[1].split(")")[0]
    assert is_a_picture(fetch(url))
    assert "temperature" in answer.headers["x-danqing-ignored"]


def test_same_seed_draws_the_same_picture(server: LiveServer) -> None:
    body = {"prompt": "a blue bird", "seed": 7, "size": "256x256", "response_format": "b64_json"}
    first, second, other = (
        server.client.post("/v1/images/generations", json=body | {"seed": seed}).json()
        for seed in (7, 7, 8)
    )
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        for answer in (first, second, other)
    ]
    assert are_alike(pictures[0], pictures[1])
    assert not are_alike(pictures[0], pictures[2])


def test_images_carry_their_labels(server: LiveServer) -> None:
    """Zhipu's model: hidden label in metadata, visible one in the corner; a picture without for comparison."""
    answer = server.client.post(
        "/api/paas/v4/images/generations",
        json={"model": "cogview-4", "prompt": "一只猫", "size": "512x512"},
    )
    image = fetch(answer.json()["data"][0]["url"])
    image_id = answer.json()["data"][0]["url"].split("/files/")[1].split(".")[0]
    xmp = image.info["XML:com.adobe.xmp"]
    assert "http://www.tc260.org.cn/ns/AIGC/1.0/" in xmp
    assert image_id in xmp


def corner_differs(labelled: Image.Image, plain: Image.Image) -> bool:
    """Whether two drawings of one seed differ in the label's corner, and only there, by more than marks do."""
    first, second = labelled.convert("RGB"), plain.convert("RGB")
    width, height = first.size
    difference = ImageChops.difference(first, second).convert("L")
    box = difference.point([0] * 41 + [255] * 215).getbbox()
    return box is not None and box[0] > width * 0.4 and box[1] > height * 0.8


def test_the_visible_label_is_in_its_corner(server: LiveServer) -> None:
    body = {"prompt": "一只猫", "size": "512x512", "seed": 5}
    path = "/v1/images/generations"
    cogview, dalle = (
        fetch(server.client.post(path, json=body | {"model": model}).json()["data"][0]["url"])
        for model in ("cogview-4", "dall-e-2")
    )
    assert corner_differs(cogview, dalle)


def test_the_waiver_switches_the_visible_label_off(server: LiveServer) -> None:
    labelled = {"model": "cogview-4", "prompt": "一只猫", "size": "512x512", "seed": 5}
    body = labelled | {"watermark_enabled": False}
    token = server.account("waiver-account")
    path, headers = "/api/paas/v4/images/generations", {"authorization": f"Bearer {token}"}
    refused = server.client.post(path, json=body, headers=headers)
    assert refused.status_code in (403, 434)
    assert refused.json()["error"]["code"] == "1220"
    assert "watermark_enabled" in refused.json()["error"]["message"]
    assert server.balance("waiver-account") == 15_000
    server.books(lambda books: books.accounts.waive("waiver-account"))
    deadline = time.time() + 60  # token facts are cached for up to 5 seconds
    while (answer := server.client.post(path, json=body, headers=headers)).status_code != 200:
        assert time.time() < deadline
        time.sleep(0.5)
    waived = fetch(answer.json()["data"][0]["url"])
    assert "AIGC" in waived.info["XML:com.adobe.xmp"]
    other = server.client.post(path, json=labelled, headers=headers)
    assert corner_differs(fetch(other.json()["data"][0]["url"]), waived)
