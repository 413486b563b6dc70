"""Relays by Zhipu's and DashScope's wires, synchronous and with tasks: one live server of ours asks another. The ledgers are asserted."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageChops

from tests.conftest import LiveServer, shared_server, start_server, stop_server

PRICE = 5000
BACKEND = """
[backends.{name}]
dialect = "{dialect}"
base_url = "{url}{mount}"
key_file = "{key}"
model = "{model}"
background = {background}
extras = {extras}

[models.{name}]
like = "dall-e-3"
backend = "{name}"
references_max = 1
"""
# name: dialect, mount, the other server's model, background, extras
WIRES: dict[str, tuple[str, str, str, str, str]] = {
    "zhipu": ("zhipu", "/api/paas/v4", "cogview-4", "false", '["seed", "negative_prompt"]'),
    "zhipu-task": ("zhipu", "/api/paas/v4", "glm-image", "true", '["response_format"]'),
    "qwen": ("dashscope", "/api/v1", "qwen-image-2.0", "false", "[]"),
    "qwen-task": ("dashscope", "/api/v1", "qwen-image-2.0", "true", "[]"),
    "wan-task": ("dashscope", "/api/v1", "wan2.7-image", "true", '["message_tasks"]'),
}
ASKED: dict[str, Any] = {"prompt": "a cat", "size": "1024x1024"}


second = shared_server(NULL_STEP_S="0.02")


def start_first(folder: Path, second: LiveServer, **keys: str) -> LiveServer:
    """A server with every wire to the other one, once for each key: its own, and others by their names."""
    tables: list[str] = []
    for suffix, token in {"": second.token, **keys}.items():
        key = folder / f"key{suffix}"
        key.write_text(token)
        for name, (dialect, mount, model, background, extras) in WIRES.items():
            table = BACKEND.format(
                name=name + suffix,
                dialect=dialect,
                url=second.url,
                mount=mount,
                key=key,
                model=model,
                background=background,
                extras=extras,
            )
            tables.append(table)
    (folder / "catalog.toml").write_text("".join(tables), encoding="utf-8")
    return start_server(
        folder / "data",
        module="tests.null_server",
        DANQING_CATALOG_FILE=str(folder / "catalog.toml"),
        DANQING_BRAND__TEXT="A relay of pictures",
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, second: LiveServer) -> Iterator[LiveServer]:
    poor = second.account("poor-relay", 1)
    folder = tmp_path_factory.mktemp("first")
    live = start_first(folder, second, _poor=poor, _wrong="sk-no.no")
    yield live
    assert stop_server(live) == 0


@pytest.mark.parametrize("name", WIRES)
def test_each_wire_draws(first: LiveServer, second: LiveServer, name: str) -> None:
    before, theirs = first.balance("operator"), second.balance("operator")
    answer = first.client.post("/v1/images/generations", json=ASKED | {"model": name, "n": 2})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-danqing-model"] == name
    links = [item["url"] for item in answer.json()["data"]]
    assert len(links) == 2
    for link in links:
        assert link.startswith(first.url)
        assert Image.open(io.BytesIO(httpx2.get(link).content)).size == (1024, 1024)
    price = 10_000 if name == "zhipu-task" else PRICE  # GLM-Image is hd only
    assert before - first.balance("operator") == 2 * PRICE
    assert theirs - second.balance("operator") == 2 * price
    shown = first.client.get(f"/admin/v1/tasks/{answer.headers['x-danqing-task']}").json()
    assert all(one["upstream_id"] for one in shown["upstream"])


def mark_px(link: str) -> int:
    """How wide the brand mark of a picture of one colour is, left of its AI label; 0 = there is none."""
    with Image.open(io.BytesIO(httpx2.get(link).content)) as image:
        left = image.convert("RGB").crop((0, 0, image.width // 2, image.height))
        plain = Image.new("RGB", left.size, left.getpixel((0, 0)))
        box = ImageChops.difference(left, plain).getbbox()
    return 0 if box is None else box[2] - box[0]


@pytest.mark.parametrize(
    ("name", "whose"), [("qwen", "second"), ("qwen-task", "second"), ("zhipu", "first")]
)
def test_a_brand_mark_is_drawn_by_one_of_the_two(
    first: LiveServer, second: LiveServer, name: str, whose: str
) -> None:
    def asked(server: LiveServer, model: str, watermark: bool) -> int:
        body = {"model": model, "input": {"prompt": "a cat"}}
        body["parameters"] = {"watermark": watermark, "size": "1024*1024"}
        answer = server.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        return mark_px(answer.json()["data"][0]["url"])

    own = {"first": asked(first, "dall-e-3", True), "second": asked(second, "dall-e-3", True)}
    assert own["first"] > 1.5 * own["second"] > 0  # by their words
    assert asked(first, name, True) == pytest.approx(own[whose], rel=0.1)  # its shade differs
    assert asked(first, name, False) == 0


@pytest.mark.parametrize("name", ["zhipu", "qwen", "qwen-task"])
def test_a_seed_comes_through(first: LiveServer, name: str) -> None:
    body = ASKED | {"model": name, "seed": 77}
    answer = first.client.post("/v1/images/generations", json=body)
    assert answer.headers["x-danqing-seed"] == "77"


def test_what_the_wire_cannot_say_is_refused_by_name(first: LiveServer, second: LiveServer) -> None:
    before, theirs = first.balance("operator"), second.balance("operator")
    for model, field, value in [
        ("zhipu-task", "seed", 7),
        ("zhipu-task", "negative_prompt", "dogs"),
        ("qwen", "negative_prompt", "d" * 501),
        ("qwen", "quality", "hd"),
    ]:
        body = ASKED | {"model": model, field: value}
        answer = first.client.post("/v1/images/generations", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert (first.balance("operator"), second.balance("operator")) == (before, theirs)


@pytest.mark.parametrize("name", ["qwen", "qwen-task", "wan-task"])
def test_pictures_go_to_the_provider(first: LiveServer, second: LiveServer, name: str) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(data, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"image": picture}, {"text": "a hat"}]
    body = {
        "model": name,
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {"size": "1024*1024"},
    }
    answer = first.client.post("/api/v1/services/aigc/multimodal-generation/generation", json=body)
    assert answer.status_code == 200, answer.text
    shown = first.client.get(f"/admin/v1/tasks/{answer.headers['x-danqing-task']}").json()
    upstream = second.client.get(f"/v1/images/tasks/{shown['upstream'][0]['upstream_id']}")
    assert upstream.json()["status"] == "succeeded"


@pytest.mark.parametrize("name", WIRES)
def test_what_fails_there_costs_nothing_here(first: LiveServer, name: str) -> None:
    before = first.balance("operator")
    body = ASKED | {"model": name, "prompt": "fail@1 a cat"}
    answer = first.client.post("/v1/images/generations", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_failed")
    assert first.balance("operator") == before


@pytest.mark.slow
def test_a_task_that_nobody_waits_for_is_cancelled_there(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("slow") / "data"
    # A step lasts long enough to cancel a task before its first one is over.
    slow = start_server(folder, module="tests.null_server", NULL_STEP_S="8")
    live = start_first(tmp_path, slow)
    try:
        theirs = slow.balance("operator")
        body = ASKED | {"model": "qwen-task"}
        accepted = live.client.post(
            "/v1/images/generations", json=body, headers={"prefer": "respond-async"}
        )
        while not slow.client.get("/api/v1/tasks").json()["data"]:
            time.sleep(0.05)
        ended = live.client.delete(accepted.headers["location"]).json()
        assert ended["status"] == "cancelled"
        (there,) = slow.client.get("/api/v1/tasks").json()["data"]
        assert there["status"] == "CANCELED"
        assert slow.balance("operator") == theirs
    finally:
        assert stop_server(live) == 0
        assert stop_server(slow) == 0


@pytest.mark.parametrize("name", WIRES)
def test_our_account_there_is_not_the_callers(first: LiveServer, name: str) -> None:
    """A balance that is empty there, and a key that is not good there, are the provider's failure here."""
    before = first.balance("operator")
    for suffix in ("_poor", "_wrong"):
        answer = first.client.post("/v1/images/generations", json=ASKED | {"model": name + suffix})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "provider_failed")
        # The key rests: the next one is not asked with it.
        again = first.client.post("/v1/images/generations", json=ASKED | {"model": name + suffix})
        assert again.status_code in (429, 502, 503), again.text
    assert first.balance("operator") == before
