"""Signed links: served as they should be, and not at all when anything in them was touched."""

from __future__ import annotations

import httpx2
import pytest

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
    ):
        answer = httpx2.get(altered)
        assert answer.status_code == 404, altered
        assert b"\x89PNG" not in answer.content


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
