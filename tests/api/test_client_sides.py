"""The client sides of Ark, chat and draw against our own server over real HTTP: images, and who an error is about."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from PIL import Image

from danqing.dialects.client import Incoming, Pending, ProviderImage, ProviderResult, Target
from danqing.dialects.registry import client_of
from danqing.domain import errors
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask
from tests.conftest import LiveServer
from tests.pictures import are_alike

# dialect: base URL, model, size, most images
WIRES = {
    "ark": ("/api/v3", "doubao-seedream-4-0-250828", Size(1152, 864), 3),
    "chat": ("/v1", "dall-e-3", Size(512, 512), 3),
    "draw": ("/v1", "draw", Size(768, 1344), 1),
}

# Seedream 4.0 has no output_format.
CLIENTS = {name: client_of(name, frozenset({"seed"})) for name in ("ark", "draw")}
CLIENTS["chat"] = client_of("chat", frozenset({"response_format", "n", "seed"}))


def ask(
    server: LiveServer, name: str, token: str = "", form: Any = "url", **changes: Any
) -> tuple[Incoming, ImageTask]:
    """What the server answers to a task, as the client side of `name` puts it."""
    base, model, size, n = WIRES[name]
    task = replace(ImageTask(model, "a small red boat", size, "standard", n, seed=5), **changes)
    sent = CLIENTS[name].encode_request(task, Delivery(form), Target(model))
    headers = {"authorization": f"Bearer {token}"} if token else {}
    reply = server.client.request(sent.method, base + sent.path, json=sent.json, headers=headers)
    heard = {key.lower(): value for key, value in reply.headers.items()}
    return Incoming(reply.status_code, reply.content, heard), task


def read(name: str, answer: Incoming, task: ImageTask) -> ProviderResult:
    result = CLIENTS[name].decode_result(answer, task)
    assert not isinstance(result, Pending)
    return result


@pytest.mark.parametrize("form", ["url", "b64_json"])
@pytest.mark.parametrize("name", WIRES)
def test_images(server: LiveServer, name: str, form: str) -> None:
    if (name, form) == ("draw", "b64_json"):
        assert CLIENTS[name].unsupported(
            ImageTask("draw", "x", Size(1, 1), "standard"), Delivery("b64_json")
        ) == {"form"}
        return
    answer, task = ask(server, name, form=form)
    result = read(name, answer, task)
    assert len(result.images) == task.n
    pictures: list[bytes] = []
    for image in result.images:
        assert isinstance(image, ProviderImage)
        assert (image.url is None) == (form == "b64_json")
        data = image.data or httpx2.get(image.url or "").content
        assert Image.open(io.BytesIO(data)).size == task.size
        pictures.append(data)
    assert len(set(pictures)) == task.n
    assert result.upstream_id


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("key", errors.ProviderFailed),
        ("balance", errors.ProviderFailed),
        ("refused", errors.ContentRefused),
        ("size", errors.InvalidField),
        ("model", errors.ProviderFailed),
    ],
)
def test_who_an_error_is_about(server: LiveServer, name: str, case: str, expected: Any) -> None:
    match case:
        case "key":
            answer, task = ask(server, name, token="sk-wrong.wrong")
        case "balance":
            poor = server.account(f"poor-{name}", 1000)
            answer, task = ask(server, name, token=poor)
        case "refused":
            answer, task = ask(server, name, prompt="child pornography")
        case "size":
            answer, task = ask(server, name, size=Size(100, 30_000))
        case _:
            base, model, size, _ = WIRES[name]
            task = ImageTask(model, "a boat", size, "standard")
            sent = CLIENTS[name].encode_request(task, Delivery(), Target("no-such-model"))
            reply = server.client.post(base + sent.path, json=sent.json)
            answer = Incoming(reply.status_code, reply.content, dict(reply.headers))
    error = CLIENTS[name].decode_error(answer)
    assert type(error) is expected
    assert "wrong" not in error.message
    if isinstance(error, errors.InvalidField):
        assert error.param == "size"
    with pytest.raises(expected):
        read(name, answer, task)


def test_draw_says_200_all_the_same(server: LiveServer) -> None:
    answer, _ = ask(server, "draw", token="sk-wrong.wrong")
    assert answer.status == 200
    assert json.loads(answer.body)["codes"] == 900


def test_what_the_wire_says_is_what_is_drawn(server: LiveServer) -> None:
    """The same seed by two wires gives the same picture: size, seed and prompt came through."""
    drawn: list[Image.Image] = []
    for name in ("ark", "chat"):
        base, _, _, _ = WIRES[name]
        task = ImageTask("m", "a blue bird", Size(1024, 1024), "standard", seed=9)
        model = "doubao-seedream-4-0-250828"
        sent = CLIENTS[name].encode_request(task, Delivery("b64_json"), Target(model))
        reply = server.client.post(base + sent.path, json=sent.json)
        answer = Incoming(reply.status_code, reply.content, dict(reply.headers))
        (image,) = read(name, answer, task).images
        assert isinstance(image, ProviderImage)
        assert image.data is not None
        drawn.append(Image.open(io.BytesIO(image.data)))
    assert are_alike(drawn[0], drawn[1])
