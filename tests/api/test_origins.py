"""CORS: which web pages may read what, asked beforehand (preflight) and on every answer, errors included."""

from __future__ import annotations

import httpx2
import pytest

from tests.conftest import LiveServer, shared_server

PAGE = "https://app.example.com"
PATH = "/v1/images/generations"


open_server = shared_server(
    DANQING_CORS_ORIGINS=f'["{PAGE}", "http://localhost:3000"]',
)
"""A server whose APIs one page may call."""


def preflight(
    url: str, origin: str, method: str = "POST", headers: str = "authorization,content-type"
):
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }
    return httpx2.options(url, headers=asked)


@pytest.mark.parametrize(
    "path",
    [
        PATH,
        "/v1/chat/completions",
        "/api/paas/v4/images/generations",
        "/api/v3/images/generations",
        "/api/v1/services/aigc/multimodal-generation/generation",
        "/account/v1/me",
        "/admin/v1/accounts",
    ],
)
def test_the_apis_are_open_to_the_pages_named(open_server: LiveServer, path: str) -> None:
    answer = preflight(open_server.url + path, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in answer.headers
    assert preflight(open_server.url + path, "https://evil.example").status_code == 400


def test_every_answer_says_who_may_read_it(open_server: LiveServer) -> None:
    asked = {"origin": PAGE}
    body = {"prompt": "a cat", "size": "256x256"}
    drawn = open_server.client.post(PATH, json=body, headers=asked)
    refused = open_server.client.post(PATH, json=body | {"size": "1x1"}, headers=asked)
    stranger = httpx2.post(open_server.url + PATH, json=body, headers=asked)
    missing = open_server.client.get("/v1/nothing", headers=asked)
    answers = [drawn, refused, stranger, missing]
    assert [answer.status_code for answer in answers] == [200, 400, 401, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "x-danqing-charged" in answer.headers["access-control-expose-headers"]
        assert "origin" in answer.headers["vary"].lower()
    foreign = open_server.client.post(PATH, json=body, headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_images_are_open_to_every_page(open_server: LiveServer) -> None:
    body = {"prompt": "a cat", "size": "256x256"}
    link = open_server.client.post(PATH, json=body).json()["data"][0]["url"]
    answer = preflight(link, "https://any.example", "GET", "range,if-none-match")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    for url in (link, f"{link}&w=256", link.replace("x-signature=", "x-signature=A")):
        answer = httpx2.get(url, headers={"origin": "https://any.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "content-range" in answer.headers["access-control-expose-headers"]
    assert preflight(link, PAGE, "DELETE").status_code == 400


def test_the_apis_are_closed_to_pages_where_nothing_is_said(server: LiveServer) -> None:
    assert preflight(server.url + PATH, PAGE).status_code == 405
    answer = server.client.get("/v1/models", headers={"origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers
