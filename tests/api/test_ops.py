"""Health, readiness, metrics, and the catalog's face."""

from __future__ import annotations

import re

import httpx2
import pytest

from tests.conftest import LiveServer


def test_health_and_readiness(server: LiveServer) -> None:
    assert server.client.get("/readyz").status_code == 200
    health = server.client.get("/healthz")
    assert health.status_code == 200
    assert health.json()["engine"]["alive"] is True


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_head_is_get_without_its_body(server: LiveServer, path: str) -> None:
    """What balancers and uptime checks ask."""
    head, got = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert (
        server.client.get(path).status_code == 200
    )  # on the same connection: no byte was left over


def test_metrics_move(server: LiveServer) -> None:
    names = (
        "danqing_requests_total",
        "danqing_images_total",
        "danqing_engine_steps_total",
        "danqing_characters_posted_total",
        "danqing_stage_seconds_count",
    )
    before = {name: server.metric(name) for name in names}
    assert server.client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
    after = {name: server.metric(name) for name in names}
    gained = {name: after[name] - before[name] for name in names}
    assert gained["danqing_requests_total"] == 1
    assert gained["danqing_images_total"] == 1
    assert gained["danqing_engine_steps_total"] == 8
    assert gained["danqing_characters_posted_total"] == 5_000
    assert gained["danqing_stage_seconds_count"] == 6


def test_metrics_are_not_for_forwarded_strangers(server: LiveServer) -> None:
    for header in (
        {"x-forwarded-for": "203.0.113.9"},
        {"forwarded": "for=127.0.0.1"},
        {"x-real-ip": "::1"},
    ):
        assert httpx2.get(f"{server.url}/metrics", headers=header).status_code == 403
    assert httpx2.get(f"{server.url}/metrics").status_code == 200


def test_models_say_what_really_draws(server: LiveServer) -> None:
    models = {row["id"]: row["danqing"] for row in server.client.get("/v1/models").json()["data"]}
    assert models["cogview-4"]["stand_in"] is True
    assert models["pocket"]["stand_in"] is False
    assert httpx2.get(f"{server.url}/v1/models").status_code == 401
    fault = server.client.get("/v1/models/cogvew-4").json()["error"]
    assert "Did you mean 'cogview-4'?" in fault["message"]


def test_request_ids(server: LiveServer) -> None:
    mine = server.client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    odd = server.client.get("/healthz", headers={"x-request-id": "no spaces here"})
    assert odd.headers["x-request-id"] != "no spaces here"


def test_start_page(server: LiveServer) -> None:
    page = server.client.get("/")
    assert page.status_code == 200
    assert "Danqing" in page.text
    icon = server.client.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")


def test_the_reference_shows_the_address_that_it_was_asked_at(server: LiveServer) -> None:
    page = server.client.get("/docs").text
    assert f"{server.url}/v1/images/generations" in page
    assert "127.0.0.1:8000" not in page
    forged = server.client.get("/docs", headers={"host": "evil.example"}).text
    assert "evil.example" not in forged


def test_api_reference_needs_nothing_from_elsewhere(server: LiveServer) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200
    for route in (
        "/v1/images/generations",
        "/v1/chat/completions",
        "/api/paas/v4/images/generations",
    ):
        assert route in page.text
    assert "watermark_enabled" in page.text.replace("<wbr>", "")
    assert (
        re.search(
            r"""(src|href|action) *= *["']?(https?:)?//|url\( *["']?http|@import""", page.text
        )
        is None
    )
    paths = server.client.get("/openapi.json").json()["paths"]
    assert "/v1/images/tasks/{task_id}" in paths
    assert "/files/{name}" in paths
