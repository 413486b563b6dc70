"""Signed links: served as they should be, and not at all when anything in them was touched."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from PIL import Image

from danqing.app import Books
from danqing.service.links import LinkSigner
from danqing.storage import metadata
from tests.conftest import LiveServer


@pytest.fixture(scope="module")
def link(server: LiveServer) -> str:
    body = {"prompt": "a cat", "size": "256x256"}
    return server.client.post("/v1/images/generations", json=body).json()["data"][0]["url"]


def test_link_shape(server: LiveServer, link: str) -> None:
    assert link.startswith(f"{server.url}/files/")
    assert "x-expires=" in link
    assert "x-signature=" in link


def test_headers_and_cache(link: str) -> None:
    answer = httpx2.get(link)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert int(answer.headers["content-length"]) == len(answer.content)
    again = httpx2.get(link, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = httpx2.head(link)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_ranges(link: str) -> None:
    whole = httpx2.get(link).content
    spans = {
        "bytes=0-9": whole[:10],
        "bytes=10-": whole[10:],
        "bytes=-5": whole[-5:],
        f"bytes=5-{10**12}": whole[5:],
    }
    for span, expected in spans.items():
        answer = httpx2.get(link, headers={"range": span})
        assert (answer.status_code, answer.content) == (206, expected), span
        start = len(whole) - len(expected) if span != "bytes=0-9" else 0
        end = start + len(expected) - 1
        assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"
    for span in ("bytes=abc", "items=0-1", "bytes=-", "bytes=0-1,3-4"):
        assert httpx2.get(link, headers={"range": span}).status_code == 200
    for span in (f"bytes={len(whole)}-", "bytes=9-3", "bytes=-0"):
        assert httpx2.get(link, headers={"range": span}).status_code == 416


def test_touched_links_are_dead(server: LiveServer, link: str) -> None:
    path, _, query = link.partition("?")
    expires, signature = (part.split("=", 1)[1] for part in query.split("&"))
    image_id = path.rsplit("/", 1)[1].split(".")[0]
    other = f"{int(image_id, 16) ^ 1:011x}"
    for altered in (
        path,
        f"{path}?x-expires={expires}",
        f"{path}?x-expires={int(expires) + 1}&x-signature={signature}",
        f"{path}?x-expires=1&x-signature={signature}",
        f"{path}?x-expires=abc&x-signature={signature}",
        f"{path}?x-expires={'9' * 5000}&x-signature={signature}",
        f"{path}?x-expires={expires}&x-signature={signature[:-2]}",
        link.replace(image_id, other),
        link.replace(".png", ".jpeg"),
        f"{server.url}/files/..%2f..%2fkeys.json?{query}",
        f"{server.url}/files/%00?{query}",
        f"{server.url}/files/{image_id}.png%00.jpeg?{query}",
        f"{server.url}/files/{image_id}.PNG?{query}",
        f"{server.url}/files/{image_id}?{query}",
        f"{server.url}/files/.{image_id}.png?{query}",
        f"{server.url}/files/%2e%2e?{query}",
    ):
        answer = httpx2.get(altered)
        assert answer.status_code == (404 if "%2f" in altered else 403), altered
        assert answer.headers.get("cache-control", "no-store") == "no-store"
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "link_invalid"
            assert "Ask for the image again" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "::1%@evil.example:80",
        "localhost:80@evil.example",
        "[::1]evil.example",
        "localhost.evil.example",
        "127.0.0.1:99999",
        "localhost/evil",
    ],
)
def test_links_never_echo_a_foreign_host(server: LiveServer, host: str) -> None:
    answer = server.client.post(
        "/v1/images/generations",
        json={"prompt": "x", "size": "256x256"},
        headers={"host": host},
    )
    assert answer.json()["data"][0]["url"].startswith(server.url)


def test_task_by_id(server: LiveServer) -> None:
    body = {"prompt": "a cat", "size": "256x256", "n": 2}
    made = server.client.post("/v1/images/generations", json=body)
    path = f"/v1/images/tasks/{made.headers['x-danqing-task']}"
    task = server.client.get(path).json()
    assert task["status"] == "succeeded"
    assert task["charged"] == 10_000
    assert len(task["data"]) == 2
    assert httpx2.get(task["data"][1]["url"]).status_code == 200
    stranger = {"authorization": f"Bearer {server.account('stranger')}"}
    assert server.client.get(path, headers=stranger).status_code == 404
    assert server.client.get("/v1/images/tasks/nothing").status_code == 404


def test_a_lost_file_is_not_found_rather_than_a_crash(server: LiveServer) -> None:
    body = {"prompt": "a cat", "size": "256x256"}
    url = server.client.post("/v1/images/generations", json=body).json()["data"][0]["url"]
    name = url.split("/files/")[1].split("?")[0]
    (path,) = (server.data_dir / "images").rglob(f"*-{name}")
    path.unlink()
    answer = httpx2.get(url)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_link_that_has_expired_says_so(server: LiveServer, link: str) -> None:
    async def expired(books: Books) -> str:
        signer = LinkSigner(books.keys.derive("links"))
        return signer.sign(link.split("/files/")[1].split(".")[0], "png", int(time.time()) - 1)

    answer = httpx2.get(server.url + server.books(expired))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "link_expired")


def test_a_copy_lives_no_longer_than_its_link(server: LiveServer, link: str) -> None:
    async def short(books: Books) -> str:
        signer = LinkSigner(books.keys.derive("links"))
        return signer.sign(link.split("/files/")[1].split(".")[0], "png", int(time.time()) + 100)

    def fresh_s(url: str) -> int:
        control = httpx2.get(url).headers["cache-control"]
        return int(re.fullmatch(r"private, max-age=(\d+), immutable", control)[1])

    assert fresh_s(server.url + server.books(short)) <= 100
    assert fresh_s(link) == 86_400  # of 30 days: a link may be revoked


def test_saved_under_a_name(link: str) -> None:
    assert httpx2.get(link).headers["content-disposition"].startswith('inline; filename="')
    named = httpx2.get(f"{link}&download=小猫.jpg")
    assert named.status_code == 200
    assert named.headers["content-disposition"].endswith("filename*=UTF-8''%E5%B0%8F%E7%8C%AB.png")


def test_conditional_requests(link: str) -> None:
    first = httpx2.get(link)
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    same = httpx2.get(link, headers={"if-modified-since": modified})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == etag
    part = {"range": "bytes=0-9"}
    assert httpx2.get(link, headers=part | {"if-range": etag}).status_code == 206
    assert httpx2.get(link, headers=part | {"if-range": modified}).status_code == 206
    assert httpx2.get(link, headers=part | {"if-range": '"other"'}).content == first.content


def test_a_thumbnail_that_a_power_cut_left_empty_is_made_again(server: LiveServer) -> None:
    body = {"prompt": "a cat", "size": "256x256"}
    url = server.client.post("/v1/images/generations", json=body).json()["data"][0]["url"]
    small = httpx2.get(f"{url}&w=256").content
    image_id = url.split("/files/")[1].split(".")[0]
    (path,) = (server.data_dir / "images").rglob(f"*-{image_id}-w256.webp")
    path.write_bytes(b"")
    assert httpx2.get(f"{url}&w=256").content == small


def test_thumbnails(server: LiveServer) -> None:
    body = {"prompt": "三只红苹果", "size": "1024x768", "model": "cogview-4"}
    url = server.client.post("/v1/images/generations", json=body).json()["data"][0]["url"]
    whole = httpx2.get(url)
    for side in (256, 512):
        answer = httpx2.get(f"{url}&w={side}")
        assert answer.headers["content-type"] == "image/webp"
        assert answer.headers["content-disposition"].endswith('.webp"')
        small = Image.open(io.BytesIO(answer.content))
        assert small.size == (side, side * 3 // 4)
        assert len(answer.content) < len(whole.content) / 4
        # Labelled as the image is: what it says of itself in its text, and in its corner.
        assert metadata.read(answer.content).xmp == metadata.read(whole.content).xmp
        plain = Image.open(io.BytesIO(whole.content)).resize(small.size)
        difference = np.abs(np.asarray(small, float) - np.asarray(plain, float)).mean()
        assert difference < 4
        head = httpx2.head(f"{url}&w={side}")
        assert head.headers["content-length"] == answer.headers["content-length"]
        assert (
            httpx2.get(f"{url}&w={side}", headers={"range": "bytes=4-8"}).content
            == answer.content[4:9]
        )
        known = {"if-none-match": answer.headers["etag"]}
        assert httpx2.get(f"{url}&w={side}", headers=known).status_code == 304
    name = url.split("/files/")[1].split(".")[0]
    kept = [path.name for path in (server.data_dir / "images").rglob(f"*{name}*")]
    assert sorted(kept) == [f"0-{name}-w256.webp", f"0-{name}-w512.webp", f"0-{name}.png"]
    for side in ("", "0", "255", "-256", "99999", "256.0", "abc"):
        refused = httpx2.get(f"{url}&w={side}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_field")
        assert "'w'" in refused.json()["error"]["message"]
    forged = url.replace("x-signature=", "x-signature=A") + "&w=256"
    assert httpx2.get(forged).status_code == 403


def test_many_who_ask_at_once_get_one_thumbnail(server: LiveServer) -> None:
    body = {"prompt": "a dog", "size": "256x256"}
    url = server.client.post("/v1/images/generations", json=body).json()["data"][0]["url"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx2.get(f"{url}&w=512"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # Never enlarged.
    assert Image.open(io.BytesIO(answers[0].content)).size == (256, 256)
