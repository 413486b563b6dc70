"""GET /v1/models: a client that knows nothing else can say to the character what a request will cost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import LiveServer


def cost(price: dict[str, Any], quality: str, width: int, height: int, n: int) -> int:
    """What docs/prices.md tells a client to compute."""
    tier = next(t for t in price["pixels"] if t["up_to"] is None or width * height <= t["up_to"])
    unit = -(-price["characters"][quality] * tier["permille"] // 1000)
    return unit * n if price["per"] == "image" else unit


def test_the_price_shown_before_is_the_price_charged_after(null_server) -> None:
    server = null_server()
    models = {row["id"]: row["danqing"] for row in server.client.get("/v1/models").json()["data"]}
    spent = 0
    for model, quality, width, height, n in (
        ("dall-e-3", "standard", 1024, 1024, 3),
        ("dall-e-3", "hd", 256, 256, 2),
        ("jimeng-4.0", "standard", 1024, 1024, 1),
        ("jimeng-4.0", "standard", 832, 1248, 4),
        ("gpt-image-2", "high", 1536, 1024, 1),
        ("gpt-image-2", "low", 1552, 1024, 2),
        ("gpt-image-2", "low", 2688, 1536, 1),
    ):
        body = {"model": model, "prompt": "x", "quality": quality, "n": n}
        answer = server.client.post(
            "/v1/images/generations", json=body | {"size": f"{width}x{height}"}
        )
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == n
        charged = int(answer.headers["x-danqing-charged"])
        assert charged == cost(models[model]["price"], quality, width, height, n) > 0, body
        spent += charged
    assert spent == 15_000 + 20_000 + 5_000 + 5_000 + 10_000 + 20_000 + 20_000
    assert server.balance("operator") == 1_000_000 - spent


@pytest.mark.parametrize(
    ("body", "n", "characters"),
    [
        ({"model": "jimeng-4.0", "prompt": "x", "size": "1:1"}, 4, 5_000),
        ({"model": "jimeng-4.0", "prompt": "x", "size": "1:1", "n": 2}, 2, 5_000),
        ({"model": "dall-e-3", "prompt": "x", "n": 2}, 2, 10_000),
        (
            {
                "model": "dall-e-3",
                "input": {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
                "parameters": {"n": 2, "size": "1024*1024"},
            },
            2,
            10_000,
        ),
    ],
    ids=["jimeng's own four", "jimeng, n", "openai, n", "dashscope, parameters.n"],
)
def test_n_counts_once_wherever_the_dialect_puts_it(
    null_server, body: dict[str, Any], n: int, characters: int
) -> None:
    answer = null_server().client.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == n
    assert answer.headers["x-danqing-charged"] == str(characters)


def test_one_model_shows_its_price_too(server: LiveServer) -> None:
    row = server.client.get("/v1/models/gpt-image-2").json()
    assert row["danqing"]["price"] == {
        "per": "image",
        "characters": {"low": 5_000, "medium": 5_000, "high": 10_000},
        "edit": {"low": 5_000, "medium": 5_000, "high": 10_000},
        "pixels": [
            {"up_to": 1_572_864, "permille": 1000},
            {"up_to": 3_686_400, "permille": 2000},
            {"up_to": None, "permille": 4000},
        ],
    }
    assert row in server.client.get("/v1/models").json()["data"]
