"""Quota under concurrency, over real HTTP: never overdrawn, nothing charged for nothing."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx2
import pytest

from tests.conftest import LiveServer


async def flood(server: LiveServer, token: str, n: int) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(
        base_url=server.url,
        headers={"authorization": f"Bearer {token}"},
        timeout=120,
        limits=httpx2.Limits(max_connections=n),
    ) as client:
        return await asyncio.gather(
            *(
                client.post(
                    "/v1/images/generations", json={"prompt": f"cat {i}", "size": "256x256"}
                )
                for i in range(n)
            )
        )


def test_200_requests_on_a_balance_for_20(null_server) -> None:
    server = null_server()
    token = server.account("crowd", 100_000)
    answers = asyncio.run(flood(server, token, 200))
    outcomes = Counter(answer.status_code for answer in answers)
    assert outcomes == {200: 20, 429: 180}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"insufficient_quota"}
    assert {answer.headers["x-should-retry"] for answer in refused} == {"false"}
    assert server.balance("crowd") == 0
    urls = {answer.json()["data"][0]["url"] for answer in answers if answer.status_code == 200}
    assert len(urls) == 20
    assert all(httpx2.get(url).status_code == 200 for url in urls)
    assert server.metric("danqing_characters_posted_total") == 100_000


@pytest.mark.slow
def test_1000_requests_on_a_balance_for_500_ten_times(null_server, database_url: str) -> None:
    """The first published proof for image generation: exactly 500, each time, on both databases."""
    server = null_server(DANQING_DATABASE_URL=database_url, DANQING_ENGINE__QUEUE_MAX="1000")
    for number in range(10):
        name = f"crowd-{number}"
        token = server.account(name, 2_500_000)
        answers = asyncio.run(flood(server, token, 1000))
        assert Counter(answer.status_code for answer in answers) == {200: 500, 429: 500}
        codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 429}
        assert codes == {"insufficient_quota"}
        assert (
            sum(int(answer.headers.get("x-danqing-charged", 0)) for answer in answers) == 2_500_000
        )
        assert server.balance(name) == 0


def test_quota_errors_in_each_dialects_shape(null_server) -> None:
    server = null_server()
    token = server.account("poor")
    headers = {"authorization": f"Bearer {token}"}
    for _ in range(3):
        spent = server.client.post("/v1/images/generations", json={"prompt": "x"}, headers=headers)
        assert spent.status_code == 200
    openai = server.client.post("/v1/images/generations", json={"prompt": "x"}, headers=headers)
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "insufficient_quota")
    draw = server.client.post(
        "/v1/chat/completions", json={"prompt": "x", "model": "draw"}, headers=headers
    )
    assert draw.status_code == 200
    assert draw.json() == {"codes": 300, "mess": "当前额度不足，请充值后继续使用", "data": ""}
    zhipu = server.client.post(
        "/api/paas/v4/images/generations",
        json={"prompt": "x", "model": "cogview-4"},
        headers=headers,
    )
    assert (zhipu.status_code, zhipu.json()["error"]["code"]) == (429, "1113")
    assert server.balance("poor") == 0


def test_prices(null_server) -> None:
    """Per image, per call, hd double, n applied once."""
    server = null_server()
    cases = [
        ({"prompt": "x", "n": 3}, 15_000),
        ({"prompt": "x", "quality": "hd"}, 10_000),
        ({"prompt": "x", "n": 2, "quality": "hd"}, 20_000),
        ({"prompt": "x", "model": "jimeng-4.0", "size": "1:1"}, 5_000),
    ]
    for body, price in cases:
        answer = server.client.post("/v1/images/generations", json=body)
        assert answer.headers["x-danqing-charged"] == str(price), body
        assert len(answer.json()["data"]) == body.get("n", 4 if "size" in body else 1)
    assert server.balance("operator") == 1_000_000 - sum(price for _, price in cases)
