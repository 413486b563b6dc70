"""Edits and variations over real HTTP: forms, JSON, keys, background, and every way an upload can be wrong."""

from __future__ import annotations

import base64
import io
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.conftest import LiveServer, shared_server

LIMITS = {
    "DANQING_UPLOADS__IMAGE_BYTES_MAX": "300000",
    "DANQING_UPLOADS__REQUEST_BYTES_MAX": "1200000",
    "DANQING_UPLOADS__PIXELS_MAX": "1000000",
    "DANQING_BODY_BYTES_MAX": "100000",
}


edits = shared_server(**LIMITS)
"""A server that edits anything into one colour, with small limits."""


@pytest.fixture
def client(edits: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(api_key=edits.token, base_url=f"{edits.url}/v1", max_retries=0)


def picture(size: tuple[int, int] = (300, 200), format: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(out, format)
    return out.getvalue()


def hole(size: tuple[int, int] = (300, 200)) -> bytes:
    return picture(size, mode="RGBA")


def inputs_left(live: LiveServer) -> list[Path]:
    return list((live.data_dir / "images").rglob("input-*"))


def test_an_edit_by_the_official_client(client: openai.OpenAI, edits: LiveServer) -> None:
    answer = client.images.edit(
        image=("cat.png", picture()),
        mask=hole(),
        prompt="a hat",
        model="gpt-image-1",
        quality="low",
    )
    shown = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (shown.format, shown.size) == ("PNG", (1536, 1024))  # the nearest to 300x200
    assert (answer.size, answer.quality, answer.background) == ("1536x1024", "low", "opaque")
    assert answer.usage.input_tokens_details.text_tokens == len("a hat")
    assert answer.usage.input_tokens_details.image_tokens == round(2 * 300 * 200 / 256)
    assert inputs_left(edits) == []


def test_a_variation_by_the_official_client(client: openai.OpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = client.images.create_variation(
            image=picture((256, 256)), n=2, size="256x256", response_format="b64_json"
        )
    assert len(answer.data) == 2
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size == (256, 256)


def test_several_images_are_too_many_here(client: openai.OpenAI) -> None:
    """One is what pocket takes, whatever the model's provider takes."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=[picture(), picture()], prompt="a hat", model="gpt-image-1")
    assert caught.value.param == "image"
    assert "at most 1" in str(caught.value)


def post(live: LiveServer, path: str = "/v1/images/edits", **options: Any) -> httpx2.Response:
    return live.client.post(path, **options)


def edit(live: LiveServer, image: bytes | None = None, **fields: str) -> httpx2.Response:
    files = {"image": ("cat.png", picture() if image is None else image, "image/png")}
    small = {"prompt": "a hat", "model": "dall-e-2", "size": "256x256"}
    return post(live, data=small | fields, files=files)


def as_json(**changes: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    return {"model": "gpt-image-1", "prompt": "a hat", "images": [{"image_url": url}]} | changes


def test_the_json_variant(edits: LiveServer) -> None:
    answer = post(edits, json=as_json())
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-danqing-size"] == "1536x1024"
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == round(60_000 / 256)


def test_a_json_body_with_a_picture_may_be_large(edits: LiveServer) -> None:
    noise = Image.effect_noise((450, 450), 100)
    out = io.BytesIO()
    noise.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    assert len(url) > 150_000
    assert post(edits, json=as_json(images=[{"image_url": url}])).status_code == 200
    # Elsewhere the bound for texts holds.
    answer = post(edits, "/paas/v4/images/generations", json={"prompt": "x" * 150_000})
    assert answer.status_code == 413


def test_a_model_that_was_not_named(edits: LiveServer) -> None:
    answer = post(edits, data={"prompt": "a hat"}, files={"image": ("c", picture())})
    assert answer.status_code == 200
    assert "b64_json" in answer.json()["data"][0]  # gpt-image-1.5's way
    answer = post(edits, "/v1/images/variations", files={"image": ("c", picture())})
    assert answer.status_code == 200
    assert "url" in answer.json()["data"][0]  # dall-e-2's


def test_an_answered_image_can_be_edited_by_its_link(edits: LiveServer) -> None:
    first = post(edits, "/v1/images/generations", json={"prompt": "a cat"}).json()
    answer = post(edits, json=as_json(images=[{"image_url": first["data"][0]["url"]}]))
    assert (
        answer.status_code == 413 or answer.status_code == 400
    )  # 1024x1024 is above this server's pixels_max
    small = post(
        edits, "/v1/images/generations", json={"prompt": "a cat", "size": "256x256"}
    ).json()
    answer = post(edits, json=as_json(images=[{"image_url": small["data"][0]["url"]}]))
    assert answer.status_code == 200, answer.text


def test_a_key_covers_the_files(edits: LiveServer) -> None:
    def ask(image: bytes, key: str = "edit-1") -> httpx2.Response:
        return post(
            edits,
            data={"prompt": "a hat", "model": "dall-e-2", "size": "256x256"},
            files={"image": ("cat.png", image)},
            headers={"idempotency-key": key},
        )

    first, again = ask(picture()), ask(picture())
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-danqing-task"] == first.headers["x-danqing-task"]
    other = ask(picture((200, 300)))
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"


def test_an_edit_in_the_background(edits: LiveServer) -> None:
    answer = post(
        edits,
        data={"prompt": "a hat", "model": "dall-e-2", "size": "256x256"},
        files={"image": ("cat.png", picture())},
        headers={"prefer": "respond-async"},
    )
    assert answer.status_code == 202
    place = answer.headers["location"]
    while (task := edits.client.get(place).json())["status"] not in ("succeeded", "failed"):
        time.sleep(0.05)
    assert task["status"] == "succeeded"
    assert len(task["data"]) == 1
    assert inputs_left(edits) == []


def bomb() -> bytes:
    return picture((4000, 4000), mode="L")


WRONG: list[tuple[str, Callable[[], bytes], str]] = [
    ("a bomb", bomb, "is 4000x4000 pixels"),
    ("nothing", lambda: b"", "is empty"),
    ("text", lambda: b"a cat", "is not a whole"),
    ("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG"),
    ("cut", lambda: picture()[:100], "is not a whole"),
    ("a line", lambda: picture((30_000, 1)), "each side"),
    ("many bytes", lambda: picture() + bytes(300_000), "more than 300000 bytes"),
]


@pytest.mark.parametrize(("make", "why"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_pictures(edits: LiveServer, make: Callable[[], bytes], why: str) -> None:
    answer = edit(edits, make())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        "invalid_image_file",
        "image",
    )
    assert why in error["message"]
    assert answer.headers["openai-version"] == "2020-10-01"
    assert "openai-processing-ms" in answer.headers


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP", "JPEG"])
def test_other_kinds_of_pictures(edits: LiveServer, format: str) -> None:
    assert edit(edits, picture(format=format)).status_code == 200


def test_wrong_masks(edits: LiveServer) -> None:
    for mask, why in (
        (picture(), "no alpha"),
        (hole((200, 300)), "200x300"),
        (b"x", "not a whole"),
    ):
        answer = post(
            edits,
            data={"prompt": "a hat", "model": "gpt-image-1"},
            files={"image": ("c", picture()), "mask": ("m", mask)},
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "mask")
        assert why in error["message"]


def test_addresses_inside_are_refused(edits: LiveServer) -> None:
    for url in (
        edits.url + "/healthz",
        "http://169.254.169.254/",
        "http://localhost/",
        "http://[::1]/",
    ):
        answer = post(edits, json=as_json(images=[{"image_url": url}]))
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "images[0].image_url"), url


def raw_form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end


def text_part(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


FILE_PART = b'Content-Disposition: form-data; name="image"; filename="c.png"\r\n\r\n' + picture()
BAD_FORMS: list[tuple[str, str, bytes, str]] = [
    ("no boundary", "multipart/form-data", raw_form(), "boundary"),
    ("a long boundary", "multipart/form-data; boundary=" + "b" * 71, raw_form(), "boundary"),
    ("not a form", "multipart/form-data; boundary=b", b"{}", "not a valid multipart form"),
    ("nothing at all", "multipart/form-data; boundary=b", b"", "last boundary"),
    ("cut", "multipart/form-data; boundary=b", raw_form(FILE_PART)[:200], "last boundary"),
    ("no end", "multipart/form-data; boundary=b", raw_form(FILE_PART, end=b""), "last boundary"),
    (
        "no name",
        "multipart/form-data; boundary=b",
        raw_form(b"Content-Type: text/plain\r\n\r\nx"),
        "no valid name",
    ),
    (
        "another disposition",
        "multipart/form-data; boundary=b",
        raw_form(b'Content-Disposition: attachment; name="x"\r\n\r\nx'),
        "no valid name",
    ),
    (
        "base64",
        "multipart/form-data; boundary=b",
        raw_form(b"Content-Transfer-Encoding: base64\r\n" + FILE_PART),
        "is encoded",
    ),
    (
        "latin-1",
        "multipart/form-data; boundary=b",
        raw_form(b'Content-Disposition: form-data; name="prompt"\r\n\r\n\xe9'),
        "UTF-8",
    ),
    ("NUL", "multipart/form-data; boundary=b", raw_form(text_part("prompt", "a\0b")), "NUL"),
    (
        "twice",
        "multipart/form-data; boundary=b",
        raw_form(text_part("n", "1"), text_part("n", "1")),
        "more than once",
    ),
    (
        "a header bomb",
        "multipart/form-data; boundary=b",
        raw_form(b"X: " + b"x" * 5000 + b"\r\n\r\nx"),
        "not a valid multipart form",
    ),
    (
        "many headers",
        "multipart/form-data; boundary=b",
        raw_form(b"X: x\r\n" * 20 + b"\r\nx"),
        "not a valid multipart form",
    ),
    (
        "many parts",
        "multipart/form-data; boundary=b",
        raw_form(*[text_part(f"p{i}", "x") for i in range(65)]),
        "more than 64 parts",
    ),
    ("another type", "application/x-www-form-urlencoded", b"prompt=x", "not valid JSON"),
]


@pytest.mark.parametrize(
    ("kind", "body", "why"), [r[1:] for r in BAD_FORMS], ids=[r[0] for r in BAD_FORMS]
)
def test_bad_forms(edits: LiveServer, kind: str, body: bytes, why: str) -> None:
    answer = post(edits, content=body, headers={"content-type": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_body"), error
    assert why in error["message"]


def test_bounds_of_forms(edits: LiveServer) -> None:
    form = {"content-type": "multipart/form-data; boundary=b"}
    long_text = raw_form(text_part("prompt", "x" * 100_001))
    assert post(edits, content=long_text, headers=form).status_code == 413
    files = [FILE_PART.replace(b'"image"', b'"image[]"')] * 18
    answer = post(edits, content=raw_form(*files), headers=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image[]")
    assert post(edits, content=bytes(1_200_001), headers=form).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(13):
            yield bytes(100_000)

    assert post(edits, content=chunks(), headers=form).status_code in (400, 413)


def test_routes_say_what_they_take(edits: LiveServer) -> None:
    answer = post(edits, "/v1/images/variations", json={"model": "dall-e-2"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
    answer = post(edits, "/v1/images/generations", files={"image": ("c", picture())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_a_stranger_uploads_nothing(edits: LiveServer) -> None:
    answer = post(
        edits,
        data={"prompt": "a hat"},
        files={"image": ("c", picture())},
        headers={"authorization": "Bearer sk-no.no"},
    )
    assert answer.status_code == 401


def test_a_client_that_leaves_in_the_middle_leaves_nothing(edits: LiveServer) -> None:
    host, port = edits.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {edits.token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(head.encode() + raw_form(FILE_PART, end=b""))
    # Three such uploads would fill the room of four; the whole of it is there again.
    until_s = time.monotonic() + 60
    while edit(edits).status_code != 200:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert inputs_left(edits) == []


def test_uploads_beyond_the_memory_are_told_to_come_back(
    null_server: Callable[..., LiveServer],
) -> None:
    live = null_server(
        DANQING_UPLOADS__BYTES_AT_ONCE_MAX="420000", DANQING_UPLOADS__IMAGE_BYTES_MAX="200000"
    )
    padded = picture() + bytes(150_000)
    host, port = live.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 290000\r\n\r\n"
    )
    assert edit(live, padded).status_code == 200
    with socket.create_connection((host, int(port))) as wire:
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        wire.sendall(head.encode() + body + bytes(190_000))
        until_s = time.monotonic() + 60
        while live.metric("danqing_upload_bytes") < 190_000:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        busy = edit(live, padded)
    assert busy.status_code == 429
    assert busy.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(busy.headers["retry-after"]) >= 1
    while live.metric("danqing_upload_bytes"):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert edit(live, padded).status_code == 200


def test_one_account_cannot_fill_the_room_for_uploads(
    null_server: Callable[..., LiveServer],
) -> None:
    """However many slow uploads it begins: there is room for another one's picture."""
    live = null_server(DANQING_UPLOADS__BYTES_AT_ONCE_MAX="1000000", NULL_DRAIN_S="1")
    host, port = live.url.removeprefix("http://").split(":")
    token = live.account("greedy")
    head = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 290000\r\n\r\n"
    )
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    wires = []
    try:
        for _ in range(8):
            wire = socket.create_connection((host, int(port)))
            wires.append(wire)
            wire.sendall(head.encode() + body + bytes(240_000))
        until_s = time.monotonic() + 60
        while live.metric("danqing_upload_bytes") < 480_000:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        refused: set[socket.socket] = set()
        while len(refused) < 6:  # whichever six: the server reads them in no certain order
            assert time.monotonic() < until_s
            readable, _, _ = select.select(
                [wire for wire in wires if wire not in refused], [], [], 1
            )
            for wire in readable:
                answer = wire.recv(1000)
                assert answer.startswith(b"HTTP/1.1 429 ")
                assert b"retry-after: " in answer.lower()
                refused.add(wire)
        for _ in range(3):
            assert edit(live, picture() + bytes(50_000)).status_code == 200
    finally:
        for wire in wires:
            wire.close()


def test_the_reference_lists_both_bodies(edits: LiveServer) -> None:
    document = json.loads(edits.client.get("/openapi.json").text)
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    [form] = content["multipart/form-data"]["schema"]["anyOf"]
    image = form["properties"]["image"]
    assert (image["type"], image["format"]) == ("string", "binary")
    assert "Body, as a form" in edits.client.get("/docs").text


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
@pytest.mark.parametrize(
    ("model", "of", "expected"),
    [
        ("gpt-image-1", (300, 200), "1536x1024"),
        ("gpt-image-1", (200, 300), "1024x1536"),
        ("gpt-image-2", (480, 320), "480x320"),
        ("dall-e-3", (350, 200), "1792x1024"),
        ("dall-e-2", (300, 200), "256x256"),
        ("pocket", (320, 192), "320x192"),
    ],
)
def test_without_a_size_the_pictures_shape_counts(
    edits: LiveServer, path: str, model: str, of: tuple[int, int], expected: str
) -> None:
    fields = {"model": model} | ({"prompt": "a hat"} if "edits" in path else {})
    answer = post(edits, path, data=fields, files={"image": ("a.png", picture(of), "image/png")})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-danqing-size"] == expected
